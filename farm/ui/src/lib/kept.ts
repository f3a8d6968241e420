// What does the browser keep for this page, where it keeps anything?

export function kept(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Without it, what was chosen holds until the page is closed. */
export function keep(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // It keeps nothing for this page.
  }
}
