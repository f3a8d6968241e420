// Dark, light, or as the system has it?

export type Theme = "system" | "dark" | "light";
const KEY = "farm.theme";
const kept = localStorage.getItem(KEY);

export const theme = $state<{ chosen: Theme }>({ chosen: kept === "dark" || kept === "light" ? kept : "system" });

export function choose(chosen: Theme): void {
  theme.chosen = chosen;
  localStorage.setItem(KEY, chosen);
}
