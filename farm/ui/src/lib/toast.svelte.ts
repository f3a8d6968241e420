// What is the user told that asks for no answer?

import { Refused } from "./api";

export interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
  /** How often it was told while it stood there. */
  times: number;
  /** What may be done about it, by a button. */
  act?: { name: string; run: () => void };
}

const STAYS_MS = 6000;
const ERROR_STAYS_MS = 15_000;
/** More at once would be read by nobody. */
const MOST = 4;
/** What asks for a decision stays longer, and as long as it is pointed at or has the focus. */
const ACT_STAYS_MS = 20_000;
export const toasts = $state<Toast[]>([]);
let next = 0;
const timers = new Map<number, number>();

/** Tells something for a few seconds, an error for longer; the same once more is counted. */
export function tell(text: string, kind: Toast["kind"] = "info", act?: Toast["act"]): void {
  const again = toasts.find((one) => !act && !one.act && one.text === text && one.kind === kind);
  if (again) {
    again.times += 1;
    leaveIn(again.id, kind === "error" ? ERROR_STAYS_MS : STAYS_MS);
    return;
  }
  const id = next++;
  // Of two that may be undone only the newer can.
  if (act) for (const old of toasts) delete old.act;
  toasts.push({ id, text, kind, act, times: 1 });
  if (toasts.length > MOST) dismiss((toasts.find((one) => !one.act) ?? toasts[0]!).id);
  leaveIn(id, kind === "error" ? ERROR_STAYS_MS : act ? ACT_STAYS_MS : STAYS_MS);
}

function leaveIn(id: number, ms: number): void {
  clearTimeout(timers.get(id));
  timers.set(id, window.setTimeout(leave, ms, id));
}

function leave(id: number): void {
  if (document.querySelector(`[data-toast="${id}"]:is(:hover, :focus-within)`)) leaveIn(id, STAYS_MS);
  else dismiss(id);
}

/** Dismisses what went wrong on another view. */
export function forgetTrouble(): void {
  for (const one of toasts.filter((one) => one.kind === "error")) dismiss(one.id);
}

/** Does what a message offers, once. */
export function act(toast: Toast): void {
  dismiss(toast.id);
  toast.act?.run();
}

export function dismiss(id: number): void {
  clearTimeout(timers.get(id));
  timers.delete(id);
  const at = toasts.findIndex((one) => one.id === id);
  if (at >= 0) toasts.splice(at, 1);
}

/** What a call failed of, in one line. */
export const reason = (error: unknown): string => (error instanceof Refused ? error.told : String(error));

/** Tells what a call failed of. */
export function complain(error: unknown): void {
  tell(reason(error), "error");
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
