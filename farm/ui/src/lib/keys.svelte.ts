// Does the page take keys of one character? Who speaks to the computer, or hits keys by accident, may not want them.

import { keep, kept } from "./kept";

const KEY = "farm.keys";

export const single = $state<{ on: boolean }>({ on: kept(KEY) !== "off" });

export function take(on: boolean): void {
  single.on = on;
  keep(KEY, on ? "on" : "off");
}
