// Dark, light, or as the system has it?

import { keep, kept } from "./kept";

export type Theme = "system" | "dark" | "light";
const KEY = "farm.theme";

const before = kept(KEY);
export const theme = $state<{ chosen: Theme }>({ chosen: before === "dark" || before === "light" ? before : "system" });

export function choose(chosen: Theme): void {
  theme.chosen = chosen;
  keep(KEY, chosen);
}
