// Dark, light, or as the system has it?

export type Theme = "system" | "dark" | "light";
const KEY = "farm.theme";

function restore(): Theme {
  try {
    const kept = localStorage.getItem(KEY);
    return kept === "dark" || kept === "light" ? kept : "system";
  } catch {
    return "system"; // the browser keeps nothing for this page
  }
}

export const theme = $state<{ chosen: Theme }>({ chosen: restore() });

export function choose(chosen: Theme): void {
  theme.chosen = chosen;
  try {
    localStorage.setItem(KEY, chosen);
  } catch {
    // It holds until the page is closed.
  }
}
