// What is asked for on the page's form, and how does it outlive a reload?

import { BASE, get, newKey, part, Refused } from "./api";
import { namedChain, offer } from "./offer.svelte";
import type { ChainSpec, JobAsk, JobView, LoraView, RecalledView, Spec, StageSpec } from "./types";

export interface Card {
  /** Of this page alone: tells cards apart while they are sorted. */
  id: string;
  on: boolean;
  spec: StageSpec;
}

export interface Axis {
  id: string;
  /** `seed`, `prompt`, or a stage's parameter as `ID.strength`, by its card: stages may be moved. */
  field: string;
  values: string;
}

export interface Given {
  image: string;
  width: number;
  height: number;
  /** What the page shows of it: its bytes as a data URL of a small picture. */
  shown: string;
}

export interface Form {
  prompt: string;
  negative: string;
  preset: string;
  cards: Card[];
  seed: number | null;
  count: number;
  keep: "none" | "preview" | "image";
  axes: Axis[];
  given: Given | null;
  /** Fields of the chain that the form does not show: `fit`, `exact`, `reuse`. */
  rest: Record<string, unknown>;
  /** LoRAs that a picture says it was drawn with, until they are put on a stage or left. */
  offered: LoraView[];
  earlier: string[];
}

const KEY = "farm.form.";
const EARLIER = 50;
/** Stages that a chain may have. */
export const MOST_STAGES = 8;
/** More values than this of one range are not written out: no run may have so many jobs. */
export const MOST_VALUES = 10_000;

function fresh(): Form {
  return {
    prompt: "", negative: "", preset: "hires", cards: [], seed: null, count: 1, keep: "preview", axes: [], given: null,
    rest: {}, offered: [], earlier: [],
  };
}

export const form = $state<Form>(fresh());
let owner = "";

/** Takes up the form as this owner left it in this tab, or last in this browser. */
export function restore(whose: string): void {
  owner = whose;
  try {
    const kept = sessionStorage.getItem(KEY + owner) ?? localStorage.getItem(KEY + owner);
    Object.assign(form, fresh(), JSON.parse(kept ?? "{}"));
  } catch {
    Object.assign(form, fresh());
  }
}

/** Notes the form for this tab, and for the next one that is opened. */
export function store(): void {
  try {
    const kept = JSON.stringify(form);
    sessionStorage.setItem(KEY + owner, kept);
    localStorage.setItem(KEY + owner, kept);
  } catch {
    // The browser keeps nothing, or has no room: the form is as it is until the page is closed.
  }
}

/** Whether the cards are these stages, nothing changed. */
export const isAs = (cards: Card[], stages: StageSpec[] = []): boolean =>
  cards.every((one) => one.on) && JSON.stringify(cards.map((one) => one.spec)) === JSON.stringify(stages);

export const card = (spec: StageSpec): Card => ({ id: newKey(), on: true, spec: { ...spec } });

/** Takes a named chain. */
export function usePreset(name: string): void {
  const found = namedChain(name);
  if (!found) return;
  form.preset = name;
  useWritten({ ...found.fields, stages: found.stages });
}

/** Takes a chain as in a chain file: what it says nothing of, such as a prompt, stays as it is on the form. */
export function useWritten(chain: ChainSpec): void {
  const { stages, prompt, negative_prompt, seed, keep, ...rest } = chain;
  form.rest = rest;
  form.cards = stages.map(card);
  form.prompt = prompt ?? form.prompt;
  form.negative = negative_prompt ?? form.negative;
  form.seed = seed ?? form.seed;
  form.keep = keep ?? form.keep;
}

/** The form's chain as in a chain file: what `useWritten` takes; with the prompts and the seed, where these are wanted. */
export function written(prompts: boolean, seeded: boolean): ChainSpec {
  const { chain, prompt, negative_prompt, seed, keep } = asked();
  return {
    ...(prompts && { prompt: prompt ?? "", ...(negative_prompt && { negative_prompt }) }),
    ...(seeded && seed != null && { seed }),
    ...(keep && { keep }),
    ...(chain as ChainSpec),
  };
}

/** What the form asks for, as the API takes it. `front`: before all others. */
export function asked(front = false): JobAsk {
  const chain: ChainSpec = { ...form.rest, stages: form.cards.filter((one) => one.on).map((one) => one.spec) };
  return {
    chain,
    prompt: form.prompt,
    ...(form.negative && { negative_prompt: form.negative }),
    ...(form.seed !== null && { seed: form.seed }),
    ...(form.keep !== "none" && { keep: form.keep }),
    ...(form.given && takesImage() && { image: form.given.image }),
    count: form.count,
    sweep: sweepOf(form.axes, form.cards),
    ...(front && { priority: 100 }),
  };
}

/** Whether the chain begins with an image: its first stage starts from no noise of its own. */
export function takesImage(): boolean {
  const first = form.cards.find((one) => one.on);
  return !!first && (offer.kinds[first.spec.kind]?.takes.length ?? 0) > 0;
}

/** The axes as the API takes them, a stage by its place; those of a stage that is off or gone change nothing. */
export function sweepOf(axes: Axis[], cards: Card[]): Record<string, unknown[]>[] {
  const on = cards.filter((one) => one.on).map((one) => one.id);
  return axes.flatMap((axis) => {
    const [id, name] = axis.field.split(".");
    const field = name ? `${on.indexOf(id!)}.${name}` : axis.field;
    return !field || field.startsWith("-") || !axis.values.trim() ? [] : [{ [field]: valuesOf(axis) }];
  });
}

/** An axis' values: separated by commas or, in texts, by lines; `5..9:2` is a range, or `5-9:2`. */
export function valuesOf(axis: Axis): unknown[] {
  const texts = (axis.field.endsWith("prompt") ? axis.values.split("\n") : axis.values.split(","))
    .map((text) => text.trim())
    .filter(Boolean);
  return texts.flatMap((text): unknown[] => {
    const range = /^(-?\d+(?:\.\d+)?)\s*(?:-|\.\.)\s*(-?\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?$/.exec(text);
    if (range && !axis.field.endsWith("prompt")) {
      const [from, to, step] = [Number(range[1]), Number(range[2]), Number(range[3] ?? 1)];
      // One more than may be: that it is too many is the farm's to say.
      const many = step > 0 ? Math.min(Math.floor(Math.abs(to - from) / step + 1e-9) + 1, MOST_VALUES + 1) : 0;
      const by = to < from ? -step : step;
      return Array.from({ length: many }, (_, at) => Number((from + at * by).toFixed(6)));
    }
    if (text === "true" || text === "false") return [text === "true"];
    return [axis.field.endsWith("prompt") || Number.isNaN(Number(text)) ? text : Number(text)];
  });
}

/** Gives what makes the form as it is now once more, whatever was put into it since. */
export function restoring(): () => void {
  const kept = $state.snapshot(form);
  return () => {
    given += 1;
    Object.assign(form, kept);
  };
}

export type Recalled = "all" | "prompt" | "seed" | "size" | "remix";

/** Fills the form from a job: `remix` is all but the seed. */
export function recall(job: Pick<JobView, "chain" | "seed"> & { id?: string }, what: Exclude<Recalled, "size">): void {
  const { chain } = job;
  if (what === "prompt" || what === "all" || what === "remix") {
    form.prompt = chain.prompt ?? "";
    form.negative = chain.negative_prompt ?? "";
  }
  if (what === "all" || what === "remix") {
    form.preset = "";
    form.cards = chain.stages.map(card);
    form.axes = [];
    form.count = 1;
    form.keep = chain.keep ?? "none";
    const { stages: _, prompt: __, negative_prompt: ___, seed: ____, keep: _____, ...rest } = chain;
    form.rest = rest;
    form.offered = [];
    form.given = null;
    if (job.id) void regive(job.id);
  }
  if (what === "seed" || what === "all") form.seed = job.seed;
  if (what === "remix") form.seed = null;
}

export interface Size {
  width: number;
  height: number;
}

/** The size that a job begins with, also where its chain does not say it. Throws Refused. */
export async function sizeOf(job: JobView): Promise<Size> {
  const { kind, width, height } = job.chain.stages[0]!;
  if (width && height) return { width: Number(width), height: Number(height) };
  if (offer.kinds[kind]?.takes.length) {
    const { image } = await get<Spec>(`jobs/${part(job.id)}/spec`);
    if (image) return image;
  }
  const native = offer.checkpoints.find((one) => one.name === job.stages[0]?.checkpoint)?.native;
  if (!native) throw new Refused({ detail: "How large it was is not known: its checkpoint is not in the catalog." });
  return { width: Number(width ?? native), height: Number(height ?? native) };
}

/** Has the chain begin with a size; false where its first stage has none of its own. */
export function useSize({ width, height }: Size): boolean {
  const first = form.cards.find((one) => one.on);
  if (!first || !offer.kinds[first.spec.kind]?.parameters.properties?.width) return false;
  first.spec = { ...first.spec, width, height };
  return true;
}

let given = 0;

/** Gives the image that a job began with once more, as it was fitted. */
async function regive(id: string): Promise<void> {
  const turn = ++given;
  const { image } = await get<Spec>(`jobs/${part(id)}/spec`).catch(() => ({ image: null }));
  // What was given meanwhile is what is wanted.
  if (!image || turn !== given || form.given) return;
  const { sha256, width, height } = image;
  form.given = { image: `sha256:${sha256}`, width, height, shown: `${BASE}/jobs/${part(id)}/inputs/${sha256}` };
}

/** Fills the form from what a picture says; stages that name a checkpoint which is not here take the default. */
export function refill(found: RecalledView): void {
  const known = (spec: StageSpec) => !spec.checkpoint || offer.checkpoints.some((one) => one.name === spec.checkpoint);
  const stages = found.chain.stages.map((spec) => {
    const { checkpoint: _, ...rest } = spec;
    return known(spec) ? spec : (rest as StageSpec);
  });
  recall({ chain: { ...found.chain, stages, keep: form.keep }, seed: found.chain.seed ?? 0 }, "all");
  form.offered = found.loras;
  if (found.chain.seed === undefined) form.seed = null;
}

/** Notes a prompt that was submitted, for Alt+Up. */
export function remember(prompt: string): void {
  form.earlier = [prompt, ...form.earlier.filter((one) => one !== prompt)].slice(0, EARLIER);
}
