// What is the user told that asks for no answer?

import { Refused } from "./api";

export interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
}

const STAYS_MS = 6000;
export const toasts = $state<Toast[]>([]);
let next = 0;

/** Tells something for a few seconds; an error stays until it is dismissed. */
export function tell(text: string, kind: Toast["kind"] = "info"): void {
  const id = next++;
  toasts.push({ id, text, kind });
  if (kind === "info") setTimeout(() => dismiss(id), STAYS_MS);
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
