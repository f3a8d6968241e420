// What can be done with jobs and runs, from any view?

import { call, part, post } from "./api";
import { jobs } from "./live.svelte";
import { tell, tried } from "./toast.svelte";
import type { JobView, Snapshot, Steered } from "./types";

const AT_ONCE = 1000;
export type Act = "cancel" | "pause" | "resume" | "retry";
const SAID: Record<Act, string> = { cancel: "cancelled", pause: "paused", resume: "resumed", retry: "queued again" };

/** Steers a job; what became of it is shown at once, without waiting for the event. */
export async function steer(id: string, act: Act): Promise<boolean> {
  const found = await tried(post<JobView>(`jobs/${part(id)}/${act}`));
  if (found) jobs.set(id, found);
  return !!found;
}

/** Steers all jobs of a run. */
export async function steerRun(run: string, act: Act): Promise<boolean> {
  const found = await tried(post(`runs/${part(run)}/${act}`));
  if (found) tell(`The run is ${SAID[act]}.`);
  return !!found;
}

/** Puts a job before or behind the others of its lane: priority 0 to 100. */
export async function prioritise(id: string, priority: number): Promise<void> {
  const found = await tried(call<JobView>("PATCH", `jobs/${part(id)}`, { priority }));
  if (found) {
    jobs.set(id, found);
    tell(priority >= 100 ? "It is next in line." : `Its priority is ${priority}.`);
  }
}

/** Forgets ended jobs. Gives the ids of those that are gone. */
export async function forget(ids: string[]): Promise<string[]> {
  const gone: string[] = [];
  for (let at = 0; at < ids.length; at += AT_ONCE) {
    const some = ids.slice(at, at + AT_ONCE);
    if (!(await tried(post<Steered>("jobs/steer", { act: "delete", jobs: some })))) break;
    for (const id of some) jobs.delete(id);
    gone.push(...some);
  }
  return gone;
}

/** What of `act` makes sense for a job in this state. */
export function allows(job: Pick<Snapshot, "state">, act: Act | "delete"): boolean {
  const { state } = job;
  if (act === "cancel") return ["queued", "running", "paused"].includes(state);
  if (act === "pause") return state === "queued" || state === "running";
  if (act === "resume") return state === "paused";
  if (act === "retry") return ["failed", "quarantined", "cancelled", "expired"].includes(state);
  return !["queued", "running", "paused"].includes(state);
}

/** Which jobs a call steers: those named, or all of the caller's in a state; `open` and `ended` are several states. */
export type Which = { jobs: string[] } | { state: "open" | "ended" | "failed" };

/** Steers many jobs in one call, and tells of how many it was true. */
export async function bulk(act: Act | "delete", which: Which): Promise<void> {
  let count = 0;
  for (let more = true; more; ) {
    const found = await tried(post<Steered>("jobs/steer", { act, ...which }));
    if (!found) return;
    count += found.count;
    // Of named ones those that were steered are no longer in the way: the same call goes on with the rest.
    more = found.more;
  }
  tell(`${count} ${count === 1 ? "job is" : "jobs are"} ${act === "delete" ? "deleted" : SAID[act]}.`);
}
