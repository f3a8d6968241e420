// Where are the jobs now, on every view and without asking again?

import { SvelteMap } from "svelte/reactivity";
import { BASE, door, get, query } from "./api";
import type { Snapshot } from "./types";
import { ended } from "./words";

const BACK_MS = 2000;
/** A page that is hidden for so long stops listening: a browser has six connections to a server for all its windows. */
const HIDDEN_MS = 5000;
/** So long a job is what a call that changed it has answered: an event of before may still come, one of after follows it. */
const SETTLE_MS = 1000;
/** So many are held before those that have ended, and that no view shows, are forgotten. */
const FORGET = 50_000;

/** The newest snapshot of every job that was told since the page was opened; of very many, of those that are shown. */
export const jobs = new SvelteMap<string, Snapshot>();
export const line = $state({ open: false, tried: 0 });
const heard = new Set<(snapshot: Snapshot) => void>();
const shown = new Set<(id: string) => boolean>();
let most = FORGET;

/** Until when a job is what a call has answered, milliseconds of the page's life. */
const settling = new Map<string, number>();
let source: EventSource | null = null;
let waiting = new Map<string, Snapshot>();
let drawn = false;
let later = 0;

/** Has `listen` called with every snapshot; gives what ends that. */
export function listen(hear: (snapshot: Snapshot) => void): () => void {
  heard.add(hear);
  return () => heard.delete(hear);
}

/** Has no job be forgotten of which `shows` is true: what it was when it was listed is older. Gives what ends that. */
export function hold(shows: (id: string) => boolean): () => void {
  shown.add(shows);
  return () => shown.delete(shows);
}

/**
 * Begins to listen to the farm, from the event `last` on; a connection that breaks is made again by the browser, and
 * after a refusal by us. While the page is hidden it does not listen; once it is seen, it is told what it has missed.
 */
export function connect(last: string): () => void {
  let timer = 0;
  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = () => {
    source = new EventSource(query(`${BASE}/events`, { last }));
    source.onopen = () => Object.assign(line, { open: true, tried: 0 });
    source.addEventListener("job", (event) => {
      last = event.lastEventId;
      take(JSON.parse(event.data));
    });
    source.onerror = () => {
      line.open = false;
      line.tried += 1;
      if (source?.readyState !== EventSource.CLOSED) return;
      // A refused stream does not say why: the session may be over.
      void get("session").catch((error) => error.status === 401 && door.closed());
      timer = window.setTimeout(open, BACK_MS);
    };
  };
  const seen = () => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(close, HIDDEN_MS);
    else if (!source || source.readyState === EventSource.CLOSED) open();
  };
  document.addEventListener("visibilitychange", seen);
  // A page that was left is kept for the back button, with its connection, and runs no timer.
  addEventListener("pagehide", close);
  addEventListener("pageshow", seen);
  if (!document.hidden) open();
  return () => {
    document.removeEventListener("visibilitychange", seen);
    removeEventListener("pagehide", close);
    removeEventListener("pageshow", seen);
    close();
    line.open = false;
    jobs.clear();
    settling.clear();
    waiting = new Map();
  };
}

/** Keeps the newest of each job until the next frame: however much is told, it is drawn once. */
function take(snapshot: Snapshot): void {
  waiting.delete(snapshot.id);
  waiting.set(snapshot.id, snapshot);
  if (drawn) return;
  drawn = true;
  // A hidden page draws no frames.
  if (document.hidden) setTimeout(draw, 250);
  else requestAnimationFrame(draw);
}

/** Takes what a call that changed a job has answered. */
export function answered(snapshot: Snapshot): void {
  jobs.set(snapshot.id, snapshot);
  settling.set(snapshot.id, performance.now() + SETTLE_MS);
}

function draw(): void {
  drawn = false;
  const now = performance.now();
  const told = [...waiting.values()].filter(({ id }) => !(settling.get(id)! > now));
  for (const snapshot of told) {
    waiting.delete(snapshot.id);
    settling.delete(snapshot.id);
    jobs.set(snapshot.id, snapshot);
    for (const hear of heard) hear(snapshot);
  }
  if (waiting.size) later ||= window.setTimeout(() => ((later = 0), draw()), SETTLE_MS);
  if (jobs.size <= most) return;
  for (const [id, job] of jobs) {
    if (jobs.size <= FORGET) break;
    if (ended(job.state) && ![...shown].some((shows) => shows(id))) jobs.delete(id);
  }
  // Where almost all are shown or open, they are not gone through at every frame.
  most = Math.max(FORGET, jobs.size) + FORGET / 10;
}
