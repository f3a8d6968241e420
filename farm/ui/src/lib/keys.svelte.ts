// Does the page take keys of one character? Who speaks to the computer, or hits keys by accident, may not want them.

const KEY = "farm.keys";

function restore(): boolean {
  try {
    return localStorage.getItem(KEY) !== "off";
  } catch {
    return true; // the browser keeps nothing for this page
  }
}

export const single = $state<{ on: boolean }>({ on: restore() });

export function take(on: boolean): void {
  single.on = on;
  try {
    localStorage.setItem(KEY, on ? "on" : "off");
  } catch {
    // It holds until the page is closed.
  }
}
