// Who uses the page, and may they?

import { call, door, get, post, Refused } from "./api";
import { complain, tried } from "./toast.svelte";
import type { SessionView } from "./types";

const AWAY_MS = 2000;
type Known = { state: "asked" | "out" | "in"; who: SessionView | null };

export const session = $state<Known>({ state: "asked", who: null });

/** Whether the caller may change what is theirs; `admin` may change everything. */
export const may = (scope: "submit" | "admin"): boolean =>
  !!session.who && (session.who.scopes.includes(scope) || session.who.scopes.includes("admin"));

function admitted(who: SessionView): void {
  door.csrf = who.csrf_token;
  session.who = who;
  session.state = "in";
}

/** Begins: by a token in the address's fragment, which is then removed, or by the session that the browser still has. */
export async function begin(): Promise<void> {
  door.closed = () => {
    session.who = null;
    session.state = "out";
  };
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    await tried(logIn(token));
  }
  while (session.state === "asked") {
    try {
      admitted(await get<SessionView>("session"));
    } catch (error) {
      if (error instanceof Refused && error.status === 401) session.state = "out";
      // A farm that is away says nothing of who one is.
      else await new Promise((done) => setTimeout(done, AWAY_MS));
    }
  }
}

// A link with a token that is opened where the page is already: only the fragment changes.
addEventListener("hashchange", () => void begin());

/** Begins a session by a token. Throws Refused. */
export async function logIn(token: string): Promise<void> {
  await post("session", { token });
  // Who was here before leaves with all that the page knew.
  if (session.state === "in") door.closed();
  admitted(await get<SessionView>("session"));
}

/** Ends the session, for every window of this browser; where the farm did not hear of it, the user is told. */
export async function logOut(): Promise<void> {
  try {
    await call("DELETE", "session");
  } catch (error) {
    if (!(error instanceof Refused && error.status === 401)) return complain(error);
  }
  door.closed();
}
