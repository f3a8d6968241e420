// How are a chain's stages moved and taken out, without the focus getting lost?

import { tick } from "svelte";
import type { Card } from "./form.svelte";

/** Moves a stage up or down, if there is a place for it. */
export async function shift(cards: Card[], at: number, by: number): Promise<void> {
  const to = at + by;
  if (to < 0 || to >= cards.length) return;
  const focused = document.activeElement as HTMLElement | null;
  const [moved] = cards.splice(at, 1);
  cards.splice(to, 0, moved!);
  // What moves in the document loses the focus; and at an end its button can go no further.
  await tick();
  if (focused?.matches(":disabled")) focus(`Parameters of stage ${to + 1}`);
  else focused?.focus();
}

/** Takes a stage out; the focus is on the one that takes its place. */
export async function takeOut(cards: Card[], at: number): Promise<void> {
  cards.splice(at, 1);
  await tick();
  const left = Math.min(at, cards.length - 1) + 1;
  focus(cards.length > 1 ? `Remove stage ${left}` : `Parameters of stage ${left}`);
}

/** Puts the focus on what is called so in the view that is shown; the form stays behind others. */
function focus(name: string): void {
  const found = [...document.querySelectorAll<HTMLElement>(`.stages [aria-label="${name}"]`)];
  found.find((one) => one.offsetParent)?.focus();
}
