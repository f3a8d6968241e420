// Which one model does the chain draw with, and how does it get another?

import type { Card } from "./form.svelte";
import { checkpointsOf, defaultOf, offer } from "./offer.svelte";
import type { CheckpointView } from "./types";

const named = (name: unknown): CheckpointView | undefined => offer.checkpoints.find((one) => one.name === name);
/** The checkpoint that a stage runs with; undefined where the catalog has none of the name. */
export const checkpointOf = (card: Card): CheckpointView | undefined =>
  card.spec.checkpoint ? named(card.spec.checkpoint) : defaultOf(card.spec.kind);
const readsWords = (card: Card): boolean => !!offer.kinds[card.spec.kind]?.parameters.properties?.guidance_scale;

/** The stage whose kind says which models there are to choose from: the first that reads a prompt, else the first. */
function lead(cards: Card[]): Card | undefined {
  const on = cards.filter((one) => one.on);
  return on.find(readsWords) ?? on[0];
}

/** The models to choose from; those that are not pulled last. */
export function modelsOf(cards: Card[]): CheckpointView[] {
  const first = lead(cards);
  return first ? checkpointsOf(first.spec.kind) : [];
}

/** The stages whose model is the chain's: one of those to choose from runs them. */
function drawing(cards: Card[]): Card[] {
  const kinds = new Set(modelsOf(cards).flatMap((one) => one.kinds));
  return cards.filter((one) => kinds.has(one.spec.kind));
}

/** The names of the models that the stages which are on draw with: one, or several where they are mixed. */
export const drawnWith = (cards: Card[]): string[] => [
  ...new Set(drawing(cards.filter((one) => one.on)).map((one) => String(one.spec.checkpoint ?? defaultOf(one.spec.kind)?.name ?? ""))),
];

/**
 * Has every stage that can draw with the model do so. A stage that takes nothing but latents gets a checkpoint of the
 * model's latent space, where it has one of another; all others stay as they are.
 */
export function drawWith(cards: Card[], model: CheckpointView): void {
  for (const card of cards) {
    const { kind } = card.spec;
    if (model.kinds.includes(kind)) put(card, model);
    else if (offer.kinds[kind]?.takes.join() === "latents" && checkpointOf(card)?.space !== model.space) {
      const fitting = checkpointsOf(kind).find((one) => one.space === model.space);
      if (fitting) put(card, fitting);
    }
  }
}

/** What is the default anyway is not written: so a named chain stays itself. */
function put(card: Card, model: CheckpointView): void {
  const { checkpoint: _, ...rest } = card.spec;
  card.spec = (defaultOf(card.spec.kind)?.name === model.name ? rest : { ...rest, checkpoint: model.name }) as Card["spec"];
}
