// How is what was drawn used once more, on the form, and how is that taken back?

import { isAs, recall, refill, restoring, sizeOf, usePreset, useSize, useWritten, form, type Given, type Recalled } from "./form.svelte";
import { isKnown, offer } from "./offer.svelte";
import { go } from "./route.svelte";
import { tell, tried } from "./toast.svelte";
import type { ChainSpec, JobView, RecalledView } from "./types";

/** What of a job the form takes, with the button's name and its key. */
export const RECALLS: readonly [Recalled, string, string][] = [
  ["all", "Use all", "A"], ["remix", "Remix", "R"], ["prompt", "Prompt", "P"], ["seed", "Seed", "S"], ["size", "Size", "D"],
];

/** What a key takes of a job, where it is one of those. */
export const recalledBy = (event: KeyboardEvent): Recalled | undefined =>
  event.ctrlKey || event.metaKey || event.altKey ? undefined : RECALLS.find(([, , key]) => key === event.key.toUpperCase())?.[0];

/** Fills the form from a job, and goes there. */
export async function useAgain(job: JobView, what: Recalled): Promise<void> {
  if (!(await isKnown())) return;
  const size = what === "size" ? await tried(sizeOf(job)) : undefined;
  const undo = restoring();
  if (what !== "size") recall(job, what);
  else if (!size) return;
  else if (!useSize(size)) return tell("This chain has no size of its own: it begins with an image, as large as that is.", "error");
  const whole = what === "all" || what === "remix";
  told(whole ? "The form is filled. Stages before the first that you change are not run again." : `The ${what} is in the form.`, undo);
  go("/");
}

/** Fills the form from what a picture, or `what` it is, says of itself. */
export function useSaid(said: RecalledView, what = "a picture"): void {
  const undo = restoring();
  refill(said);
  told([`The form is filled from ${what} of ${said.source}.`, ...said.notes].join(" · "), undo);
}

/** Takes a named chain; where stages that were changed, words or a seed are lost by that, it can be taken back. */
export function useNamed(name: string): void {
  const [undo, own] = [restoring(), () => JSON.stringify([form.prompt, form.negative, form.seed])];
  const before = own();
  const changed = !isAs(form.cards, offer.chains.find((one) => one.name === form.preset)?.stages);
  usePreset(name);
  const other = own() !== before;
  if (changed || other) told(`The chain ${name} is on the form${other ? ", with its own prompt or seed" : ""}.`, undo);
}

/** Fills the form from a chain file that was checked. */
export function useFile(chain: ChainSpec, name: string): void {
  const undo = restoring();
  form.preset = "";
  useWritten(chain);
  told(`The chain on the form is that of ${name}.`, undo);
}

/** Has a picture be what a named chain begins with, and goes to the form. */
export function useGiven(given: Given, prompt: string, preset: string): void {
  const undo = restoring();
  usePreset(preset);
  Object.assign(form, { given, prompt, axes: [] });
  told("The picture is the input of the chain.", undo);
  go("/");
}

function told(text: string, undo: () => void): void {
  const run = () => {
    undo();
    tell("The form is as it was.");
  };
  tell(text, "info", { name: "Undo", run });
}
