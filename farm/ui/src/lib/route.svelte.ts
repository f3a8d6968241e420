// Which view does the address name, and with what?

import { single } from "./keys.svelte";

/** Views by the first part of the path; "" is the one that the page begins with. */
export const VIEWS = ["", "queue", "jobs", "gallery", "sweeps", "datasets", "workers", "settings", "quarantine"] as const;
/** Those behind whose name something else may stand. */
const WITH_ID: readonly string[] = ["jobs", "datasets", "quarantine"];
export type View = (typeof VIEWS)[number];

interface Place {
  /** `lost`: there is no such address. */
  view: View | "lost";
  /** What stands behind the view: a job's id, a dataset's name, a recipe in quarantine. */
  id: string;
  query: Record<string, string>;
}

/** What was encoded for an address; as it stands where it was not. */
export function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function read(): Place {
  const [first = "", ...rest] = location.pathname.split("/").filter(Boolean).map(decoded);
  const known = (VIEWS as readonly string[]).includes(first) && (!rest.length || WITH_ID.includes(first));
  return { view: known ? (first as View) : "lost", id: rest.join("/"), query: Object.fromEntries(new URLSearchParams(location.search)) };
}

export const place = $state<Place>(read());

function look(): void {
  Object.assign(place, read());
}

addEventListener("popstate", look);

/** Goes to another view, as a link does. */
export function go(path: string): void {
  history.pushState(null, "", path);
  look();
  scrollTo(0, 0);
}

/** Notes the view's state in the address; what is empty is left out. `step`: the back button takes it back. */
export function note(changes: Record<string, string | null | undefined>, step = false): void {
  const told = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value) told.set(name, value);
    else told.delete(name);
  }
  history[step ? "pushState" : "replaceState"](null, "", told.size ? `${location.pathname}?${told}` : location.pathname);
  look();
}

/** Has links of this page change the view without loading the page again; with a modifier they are the browser's. */
export function followLinks(event: MouseEvent): void {
  const link = (event.target as Element).closest?.("a[href]");
  if (!(link instanceof HTMLAnchorElement) || link.target || link.hasAttribute("download")) return;
  if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.defaultPrevented) return;
  if (link.hash && link.pathname === location.pathname) return;
  if (link.origin !== location.origin || link.pathname.startsWith("/api/")) return;
  event.preventDefault();
  go(link.pathname + link.search);
}

/**
 * Whether a key is a field's, or a question's that is open, or one that the user has switched off: none of the view's.
 * `own`: a dialog that is the view's.
 */
export function busy(event: KeyboardEvent, own = "none"): boolean {
  if (!single.on && event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey) return true;
  const typing = (event.target as Element).matches?.("input:not([type='checkbox']), textarea, select, [contenteditable]");
  return typing || !!document.querySelector(`dialog[open]:not(${own})`);
}
