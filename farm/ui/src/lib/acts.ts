// What can be done with jobs and runs, from any view?

import { call, part, post } from "./api";
import { answered } from "./live.svelte";
import { tell, tried } from "./toast.svelte";
import type { JobView, Snapshot, Steered } from "./types";
import { many } from "./words";

const AT_ONCE = 1000;
export type Act = "cancel" | "pause" | "resume" | "retry";
const SAID: Record<Act, string> = { cancel: "cancelled", pause: "paused", resume: "resumed", retry: "retried" };

/** Steers a job; what became of it is shown at once, without waiting for the event. */
export async function steer(id: string, act: Act): Promise<boolean> {
  const found = await tried(post<JobView>(`jobs/${part(id)}/${act}`));
  if (found) answered(found);
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
    answered(found);
    tell(found.position === 0 ? "It is next in line." : `Its priority is ${priority}.`);
  }
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

/** Which jobs a call steers: those named, or all that a list shows in a state; `open` and `ended` are several states. */
export type Which = string[] | "open" | "ended" | "failed";

/** Steers many jobs, and tells of how many it was true. Gives that number. */
export async function bulk(act: Act | "delete", which: Which): Promise<number> {
  const calls = typeof which === "string" ? 1 : Math.ceil(which.length / AT_ONCE);
  const parts = Array.from({ length: calls }, (_, at) => (typeof which === "string" ? which : which.slice(at * AT_ONCE, (at + 1) * AT_ONCE)));
  let [count, kept] = [0, 0];
  let found: Steered | undefined;
  for (const jobs of parts) {
    for (let more = true; more; ) {
      found = await tried(post<Steered>("jobs/steer", { act, jobs }));
      count += found?.count ?? 0;
      kept = found?.kept ?? kept;
      // Those that were steered are no longer in the way: the same call goes on with the rest.
      more = !!found?.more && found.count > 0;
    }
    if (!found || found.hindered) break;
  }
  if (found?.hindered) tell(found.hindered, "error");
  // What failed was told; of what it left undone there is nothing to say.
  if (!found && !count) return 0;
  const left = kept ? ` ${many(kept, "job with a star or tag is", "jobs with a star or tag are")} kept.` : "";
  tell(`${count} ${count === 1 ? "job is" : "jobs are"} ${act === "delete" ? "deleted" : SAID[act]}.${left}`);
  return count;
}

/** Forgets ended jobs, with their results. Gives whether all of them are gone. */
export async function forget(ids: string[]): Promise<boolean> {
  return (await bulk("delete", ids)) === ids.length;
}
