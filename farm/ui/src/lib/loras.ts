// Which LoRAs does a prompt name as A1111 does, and which of the catalog's are those?

import type { Card, Form } from "./form.svelte";
import { checkpointOf } from "./model";
import { offer } from "./offer.svelte";
import type { AdapterView, LoraView } from "./types";

export interface Lora {
  name: string;
  weight?: number;
}
/** A LoRA that is named where it has no effect. `text`: as it stands there; "" for one that a picture says it had. */
export interface Tag extends Lora {
  what: string;
  text: string;
}

/** Weights that a stage takes. Source: workers/diffusion.py, Lora. */
export const [LEAST, MOST] = [-4, 4];
/** Names that stand beside an unknown one. */
const NEAR = 3;
const ALIKE = 0.35;
/** Source: A1111, extra_networks.py; the same as in farm/recall.py. */
const TAG = /<(lora|lyco|hypernet):([^<>:]{1,200})(?::([^<>]{0,40}))?>/gi;

/** The LoRAs that a text names, each with its weight: that of the UNet, where there are two. */
export function tagsIn(text: string): Tag[] {
  return [...text.matchAll(TAG)].map((one) => {
    const told = (one[3] ?? "").split(":");
    const named = told.find((word) => word.startsWith("unet="))?.slice(5) ?? told[1] ?? told[0]?.replace(/^te=/, "");
    const weight = named?.trim() ? Number(named) : 1;
    return { what: one[1]!.toLowerCase(), text: one[0], name: one[2]!, weight: within(Number.isFinite(weight) ? weight : 1) };
  });
}

export const within = (weight: number): number => Math.max(LEAST, Math.min(MOST, weight));

/** A text without one of its tags, and without the comma before it. */
export function without(text: string, tag: string): string {
  const at = text.indexOf(tag);
  if (at < 0) return text;
  const before = text.slice(0, at).replace(/,?\s*$/, "");
  const after = text.slice(at + tag.length);
  return before ? before + after : after.replace(/^[,\s]+/, "");
}

/** A name without what programs write differently: folder, ending, case, and what stands between words. */
const plain = (name: string): string =>
  name.toLowerCase().split(/[\\/]/).at(-1)!.replace(/\.(safetensors|ckpt|pt)$/, "").replace(/[\s_.]+/g, "-");

const loras = (): AdapterView[] => offer.adapters.filter((one) => one.type === "lora");

/** The catalog's LoRA of a name, also of its repository's; undefined where there is none. */
export function known(name: string): AdapterView | undefined {
  const wanted = plain(name);
  return loras().find((one) => plain(one.name) === wanted) ?? loras().find((one) => one.source && plain(one.source) === wanted);
}

/** LoRAs whose names are like one that is not known, the likest first. */
export function near(name: string): AdapterView[] {
  const wanted = plain(name);
  const rated = loras().map((one) => ({ one, rate: alike(wanted, plain(one.name)) }));
  return rated.filter(({ rate }) => rate >= ALIKE).toSorted((one, other) => other.rate - one.rate).slice(0, NEAR).map(({ one }) => one);
}

/** How alike two words are, 0 to 1: the share of pairs of letters that both have. Source: Dice 1945. */
function alike(one: string, other: string): number {
  const pairs = (word: string) => new Set(Array.from({ length: Math.max(word.length - 1, 1) }, (_, at) => word.slice(at, at + 2)));
  const [ours, theirs] = [pairs(one), pairs(other)];
  return (2 * [...ours].filter((pair) => theirs.has(pair)).length) / (ours.size + theirs.size);
}

/** Whether a LoRA can be put on a stage: its kind knows them, and its checkpoint is of their family. */
export const fits = (card: Card, lora: AdapterView): boolean =>
  "loras" in (offer.kinds[card.spec.kind]?.parameters.properties ?? {}) && checkpointOf(card)?.adapter_family === lora.family;

export const lorasOf = (card: Card): Lora[] => (Array.isArray(card.spec.loras) ? (card.spec.loras as Lora[]) : []);

/** The places of the stages that a LoRA fits, of those that are on and go by the chain's prompt. */
export const placesFor = (cards: Card[], lora: AdapterView): number[] =>
  cards.flatMap((one, at) => (one.on && one.spec.prompt == null && fits(one, lora) ? [at] : []));

/** Puts a LoRA on a stage, in place of one of its name. */
export function put(card: Card, lora: Required<Lora>): void {
  card.spec = { ...card.spec, loras: [...lorasOf(card).filter((one) => one.name !== lora.name), lora] };
}

/** A text of the form in which LoRAs are named without effect, and how it is written anew. */
export interface Place {
  where: string;
  tags: Tag[];
  /** The places of the stages that it is for; undefined: all that go by the chain's prompt. */
  only?: number;
  drop: (tag: Tag) => void;
}

/** Where the form names LoRAs without effect. */
export function named(form: Form): Place[] {
  const asTag = (one: LoraView): Tag => ({ ...one, what: "lora", text: "" });
  const all: Place[] = [
    { where: "The prompt", tags: tagsIn(form.prompt), drop: (tag) => (form.prompt = without(form.prompt, tag.text)) },
    { where: "The negative prompt", tags: tagsIn(form.negative), drop: (tag) => (form.negative = without(form.negative, tag.text)) },
    {
      where: "The picture", tags: form.offered.map(asTag),
      drop: (tag) => (form.offered = form.offered.filter((one) => one.name !== tag.name)),
    },
    ...form.cards.flatMap((card, at) =>
      (["prompt", "negative_prompt"] as const).map((field) => ({
        where: `The ${field.replace("_", " ")} of stage ${at + 1}`,
        tags: card.on ? tagsIn(String(card.spec[field] ?? "")) : [],
        only: at,
        drop: (tag: Tag) => (card.spec = { ...card.spec, [field]: without(String(card.spec[field]), tag.text) }),
      })),
    ),
  ];
  return all.filter((one) => one.tags.length);
}
