// What is the user told that asks for no answer?

import { Refused } from "./api";

export interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
  /** What may be done about it, by a button. */
  act?: { name: string; run: () => void };
}

const STAYS_MS = 6000;
/** What asks for a decision stays longer, and as long as it is pointed at or has the focus. */
const ACT_STAYS_MS = 20_000;
export const toasts = $state<Toast[]>([]);
let next = 0;

/** Tells something for a few seconds; an error stays until it is dismissed. */
export function tell(text: string, kind: Toast["kind"] = "info", act?: Toast["act"]): void {
  const id = next++;
  // Of two that may be undone only the newer can.
  if (act) for (const old of toasts) delete old.act;
  toasts.push({ id, text, kind, act });
  if (kind === "info") setTimeout(leave, act ? ACT_STAYS_MS : STAYS_MS, id);
}

function leave(id: number): void {
  if (document.querySelector(`[data-toast="${id}"]:is(:hover, :focus-within)`)) setTimeout(leave, STAYS_MS, id);
  else dismiss(id);
}

/** Does what a message offers, once. */
export function act(toast: Toast): void {
  dismiss(toast.id);
  toast.act?.run();
}

export function dismiss(id: number): void {
  const at = toasts.findIndex((one) => one.id === id);
  if (at >= 0) toasts.splice(at, 1);
}

/** Tells what a call failed of. */
export function complain(error: unknown): void {
  tell(error instanceof Refused ? error.told : String(error), "error");
}

/** What a call gives, or undefined where it failed and that was told. */
export async function tried<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    complain(error);
    return undefined;
  }
}
