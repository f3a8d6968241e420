// How does the page call the farm?

import type { Problem, SessionView, WrongField } from "./types";
import { where } from "./words";

export const BASE = "/api/v1";
const TRIES = 3;
/** Characters of a call that is made also where the page is left at once: browsers take 64 KiB of such in all. */
const SMALL = 4096;

/** What a call failed of, in the API's words. `status` 0: the farm was not reached. */
export class Refused extends Error {
  readonly status: number;
  readonly code: string;
  /** What helps, where the farm can say more than what is wrong. */
  readonly hint: string;
  readonly errors: WrongField[];
  readonly retryAfter: number | null;

  constructor(problem: Partial<Problem> & { detail: string }) {
    super(problem.detail);
    this.status = problem.status ?? 0;
    this.code = problem.code ?? "unavailable";
    this.hint = problem.hint ?? "";
    this.errors = problem.errors ?? [];
    this.retryAfter = problem.retry_after ?? null;
  }

  /** What is wrong, in one line. */
  get wrong(): string {
    const fields = this.errors.map((one) => `${where(one.loc)}: ${one.msg}`);
    return fields.length ? fields.join(" · ") : this.message;
  }

  /** The whole of it in one line. */
  get told(): string {
    return this.hint ? `${this.wrong}; ${this.hint}` : this.wrong;
  }
}

/** Told by the session: the word that writing calls need, and what to do when the session is over. */
export const door = { csrf: null as string | null, closed: () => {} };

type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";

/**
 * What the API answers. Looks, and calls with an idempotency key, are tried three times where the farm is away.
 *
 * Throws Refused.
 */
export async function call<T>(method: Method, path: string, body?: unknown, key?: string): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (body instanceof Blob) headers["Content-Type"] = body.type || "application/octet-stream";
  else if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  if (method !== "GET" && door.csrf) headers["X-CSRF-Token"] = door.csrf;
  const sent = body === undefined || body instanceof Blob ? body : JSON.stringify(body);
  const keepalive = method !== "GET" && !(sent instanceof Blob) && (sent ?? "").length < SMALL;
  for (let left = method === "GET" || key ? TRIES : 1; ; ) {
    left -= 1;
    let refused: Refused;
    try {
      const answer = await fetch(path.startsWith("/") ? path : `${BASE}/${path}`, { method, headers, body: sent, keepalive });
      if (answer.ok) return (answer.status === 204 ? undefined : await answer.json()) as T;
      refused = await refusal(answer);
    } catch (error) {
      refused = error instanceof Refused ? error : new Refused({ detail: "The farm cannot be reached." });
    }
    if (refused.status === 401 && !path.endsWith("session")) door.closed();
    if (refused.status === 403 && method !== "GET" && (await isRenewed(headers))) continue;
    if (left <= 0 || ![0, 429, 502, 503, 504].includes(refused.status)) throw refused;
    await new Promise((done) => setTimeout(done, 1000 * Math.min(refused.retryAfter ?? 1, 5)));
  }
}

/** Whether another window has begun a new session since, whose word this one takes over. */
async function isRenewed(headers: Record<string, string>): Promise<boolean> {
  const found = await get<SessionView>("session").catch(() => null);
  if (!found?.csrf_token || found.csrf_token === headers["X-CSRF-Token"]) return false;
  door.csrf = headers["X-CSRF-Token"] = found.csrf_token;
  return true;
}

async function refusal(answer: Response): Promise<Refused> {
  try {
    return new Refused(await answer.json());
  } catch {
    return new Refused({ status: answer.status, detail: `The farm answered ${answer.status}.` });
  }
}

export const get = <T>(path: string): Promise<T> => call<T>("GET", path);
export const post = <T>(path: string, body?: unknown, key?: string): Promise<T> => call<T>("POST", path, body, key);

/** A path with its query; what is null, undefined or empty is left out. */
export function query(path: string, given: Record<string, string | number | null | undefined>): string {
  const told = new URLSearchParams();
  for (const [name, value] of Object.entries(given)) if (value != null && value !== "") told.set(name, String(value));
  return told.size ? `${path}?${told}` : path;
}

/** A part of a path. */
export const part = (text: string): string => encodeURIComponent(text);

/** A new idempotency key. */
export const newKey = (): string =>
  // Not randomUUID, which browsers keep from pages that did not come over TLS.
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");
