// Which dataset is to be made of which file, how is it asked for, and how does that outlive a reload?

import { BASE, door, Refused } from "./api";
import { asked as onForm, card, isAs, sweepOf, type Axis, type Card } from "./form.svelte";
import { namedChain, offer } from "./offer.svelte";
import { tell } from "./toast.svelte";
import type { ChainSpec, DatasetAsk, DatasetView, FileView, PreviewView, Problem } from "./types";

/** What a column gives: a parameter's name, or one of these. */
export const KEPT = "";
export const LEFT_OUT = "-";
/** So many columns of a file are shown. */
export const COLUMNS = 40;
const KEY = "farm.dataset.";

interface Draft {
  file: FileView | null;
  /** The name of a file that the farm had and has no more. */
  lost: string;
  /** What each column gives, as the user or the farm has said. */
  gives: Record<string, string>;
  /** A named chain; "form" for the one on the form. */
  preset: string;
  cards: Card[];
  /** Fields of the chain that the form does not show: `fit`, `exact`, `reuse`. */
  rest: Record<string, unknown>;
  prompt: string;
  negative: string;
  axes: Axis[];
  templates: "off" | "random" | "all";
  variants: number;
  wildcards: Record<string, string[]>;
  name: string;
  /** The name that the file gave; where the two are the same, another file gives another one. */
  suggested: string;
  shard: number;
  format: "png" | "webp" | "jpg";
  quality: number;
  keep: ("base" | "latents")[];
  seed: number;
  partial: boolean;
}

function fresh(): Draft {
  return {
    file: null, lost: "", gives: {}, preset: "txt", cards: [], rest: {}, prompt: "", negative: "", axes: [], templates: "off", variants: 4,
    wildcards: {}, name: "", suggested: "", shard: 1000, format: "png", quality: 90, keep: [], seed: 0, partial: false,
  };
}

/** What is being filled in. */
export const draft = $state<Draft>(fresh());
let owner: string | null = null;

/** Takes up the draft as this owner left it in this tab, or last in this browser. */
export function restore(whose: string): void {
  if (whose === owner) return;
  owner = whose;
  try {
    const kept = sessionStorage.getItem(KEY + owner) ?? localStorage.getItem(KEY + owner);
    Object.assign(draft, fresh(), JSON.parse(kept ?? "{}"));
  } catch {
    Object.assign(draft, fresh());
  }
}

/** Notes the draft for this tab, and for the next one that is opened. */
export function store(): void {
  for (const place of [sessionStorage, localStorage]) {
    try {
      place.setItem(KEY + owner, JSON.stringify(draft));
    } catch {
      // There is no room, for its wildcards are long. An earlier draft must not come back instead.
      place.removeItem(KEY + owner);
    }
  }
}

export function startAnew(): void {
  Object.assign(draft, fresh());
}

/** Takes a named chain's stages, or those on the form. */
export function useChain(name: string): void {
  const found = name === "form" ? undefined : namedChain(name);
  const chain: Partial<ChainSpec> = name === "form" ? (onForm().chain as ChainSpec) : { ...found?.fields, stages: found?.stages };
  // A row's seed, and what is kept of each, is said on this form.
  const { stages, prompt, negative_prompt, seed: _, keep: __, ...rest } = chain;
  Object.assign(draft, { preset: name, rest, cards: (stages ?? []).map(card) });
  draft.prompt = prompt ?? draft.prompt;
  draft.negative = negative_prompt ?? draft.negative;
}

/** Takes another chain; where stages that were changed, or words, are lost by that, it can be taken back. */
export function changeChain(name: string): void {
  const { preset, cards, rest, prompt, negative } = $state.snapshot(draft);
  const before = preset === "form" ? (onForm().chain as ChainSpec) : offer.chains.find((one) => one.name === preset);
  const changed = !isAs(cards, before?.stages);
  useChain(name);
  if (!changed && draft.prompt === prompt && draft.negative === negative) return;
  const run = () => void Object.assign(draft, { preset, cards, rest, prompt, negative });
  tell("Every row runs another chain.", "info", { name: "Undo", run });
}

/** Takes a file that was uploaded. What its columns give stays where they are called as those of the one before. */
export function useFile(file: FileView): void {
  const told = Object.keys(draft.gives);
  if (told.length !== file.columns.length || told.some((name) => !file.columns.includes(name))) draft.gives = {};
  // No more of its rows is kept than is shown.
  const shown = new Set(file.columns.slice(0, COLUMNS));
  const rows = file.rows.map((row) => ({ ...row, values: Object.fromEntries(Object.entries(row.values).filter(([name]) => shown.has(name))) }));
  [draft.file, draft.lost] = [{ ...file, rows }, ""];
  if (!draft.name || draft.name === draft.suggested) draft.name = named(file.name);
  draft.suggested = named(file.name);
}

/** Lets go of a file that the farm has no more; what was said of it stays for when it is there again. */
export function loseFile(): void {
  [draft.file, draft.lost] = [null, draft.file?.name ?? ""];
}

/** A dataset's name after a file's. */
function named(file: string): string {
  const stem = file.toLowerCase().replace(/(\.(csv|tsv|json|jsonl|ndjson|txt|parquet))?(\.gz)?$/, "");
  const found = stem.replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, "").slice(0, 64);
  return found.length > 1 ? found : "dataset";
}

/** What a column gives, as shown: what the user said, else what the farm takes it for. */
export const given = (column: string, preview: PreviewView | null): string =>
  draft.gives[column] ?? guessed(preview?.columns.find((one) => one.name === column)?.gives);
const guessed = (gives: string | null | undefined): string => (gives === null ? LEFT_OUT : (gives ?? KEPT));

/** What is asked for, as the API takes it. */
export function asked(): Omit<DatasetAsk, "name"> {
  const chain: ChainSpec = { ...draft.rest, stages: draft.cards.filter((one) => one.on).map((one) => one.spec) };
  const told = Object.entries(draft.gives);
  const columns = Object.fromEntries(told.filter(([, gives]) => gives !== KEPT && gives !== LEFT_OUT).map(([column, gives]) => [gives, column]));
  return {
    file: draft.file!.id,
    chain,
    ...(draft.prompt && { prompt: draft.prompt }),
    ...(draft.negative && { negative_prompt: draft.negative }),
    columns,
    // Once a column's meaning was chosen, all of them are said.
    automatic: !told.length,
    left_out: told.filter(([, gives]) => gives === LEFT_OUT).map(([column]) => column),
    sweep: sweepOf(draft.axes, draft.cards),
    templates: draft.templates,
    ...(draft.templates === "random" && { variants: draft.variants }),
    ...(draft.templates !== "off" && { wildcards: draft.wildcards }),
    seed: draft.seed,
    shard_samples: draft.shard,
    image_format: draft.format,
    image_quality: draft.quality,
    keep: draft.keep,
  };
}

/** Says what every column gives, beginning with what the farm takes each for, and changes one. */
export function choose(column: string, gives: string, preview: PreviewView | null): void {
  const all = Object.fromEntries((draft.file?.columns ?? []).map((name) => [name, given(name, preview)]));
  // What one column gives no other does.
  if (gives !== KEPT && gives !== LEFT_OUT) for (const name of Object.keys(all)) if (all[name] === gives) all[name] = KEPT;
  draft.gives = { ...all, [column]: gives };
}

/** Uploads a file of rows; `told` hears the share that has gone up. Throws Refused. */
export function send(file: File, told: (share: number) => void, stop: AbortSignal): Promise<FileView> {
  return new Promise((done, refuse) => {
    // fetch does not tell how much of a body has gone up.
    const call = new XMLHttpRequest();
    call.open("POST", `${BASE}/datasets/files?name=${encodeURIComponent(file.name)}`);
    call.setRequestHeader("Content-Type", "application/octet-stream");
    if (door.csrf) call.setRequestHeader("X-CSRF-Token", door.csrf);
    call.responseType = "json";
    call.upload.onprogress = (event) => event.lengthComputable && told(event.loaded / event.total);
    call.onload = () => {
      if (call.status === 201) return done(call.response as FileView);
      if (call.status === 401) door.closed();
      const problem = (call.response ?? {}) as Partial<Problem>;
      refuse(new Refused({ ...problem, status: call.status, detail: problem.detail ?? `The farm answered ${call.status}.` }));
    };
    call.onerror = () => refuse(new Refused({ detail: "The farm cannot be reached." }));
    call.onabort = () => refuse(new Refused({ detail: "The upload was stopped." }));
    stop.addEventListener("abort", () => call.abort());
    call.send(file);
  });
}

/** How a dataset's samples stand, as a run's jobs do: what is in shards and in work, and the rest, which has no colour. */
export function states(one: DatasetView): Record<string, number> {
  const dead = ["failed", "quarantined", "cancelled", "expired"].reduce((sum, state) => sum + (one.open[state] ?? 0), one.failed);
  const done = one.done + (one.open.done ?? 0);
  const running = one.open.running ?? 0;
  const line = (one.open.queued ?? 0) + (one.open.paused ?? 0);
  const rest = Math.max(0, one.samples - done - dead - running - line);
  return {
    done, running, [one.state === "paused" ? "paused" : "queued"]: line, failed: dead,
    [one.state === "planned" ? "waiting to be started" : "to come"]: rest,
  };
}

/** Why a dataset does not go on though it is to; "" where it does, or is not to. */
export function waits(one: DatasetView): string {
  // One that waits for its turn among its owner's says so itself.
  if (one.fed || one.trouble?.code === "busy" || (one.state !== "planning" && one.state !== "running")) return "";
  return one.state === "planning" ? "It waits for its turn to be planned." : "It waits for a feeder.";
}

/** A file that was dropped on the list: the form takes it when it opens. */
export const brought: { file: File | null } = { file: null };
