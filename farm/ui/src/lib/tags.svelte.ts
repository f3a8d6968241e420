// Which tags do jobs have, also before the farm has said that they do?

import { SvelteMap } from "svelte/reactivity";
import { call, get, part, post } from "./api";
import { answered, jobs } from "./live.svelte";
import { Newest } from "./newest";
import { tell, tried } from "./toast.svelte";
import type { JobView, Snapshot, Tagged, TagView } from "./types";
import { many } from "./words";

/** The tag that is shown as a star. */
export const STAR = "starred";
/** Jobs that one call tags. */
const AT_ONCE = 1000;

interface Change {
  add: string[];
  remove: string[];
}
/** What was asked for and is not answered yet. */
const waiting = new SvelteMap<string, Change[]>();
/** Each change waits for the one before: they come about in the order in which they were made. */
let turn: Promise<unknown> = Promise.resolve();
/** Has a change sent that waits for its turn. */
const unsent = new Set<() => void>();
// A page that is left hears no answer: what is shown as done has to be under way.
addEventListener("pagehide", () => unsent.forEach((send) => send()));
const looks = new Newest();
/** All tags that there are, as they were last asked for. */
export const known = $state<{ tags: TagView[] }>({ tags: [] });

const after = (tags: string[], change: Change): string[] => [
  ...tags.filter((one) => !change.remove.includes(one)),
  ...change.add.filter((one) => !tags.includes(one)),
];

/** The tags of a job, with what was asked for. */
export const tagsOf = (job: Pick<Snapshot, "id" | "tags">): string[] =>
  (waiting.get(job.id) ?? []).reduce(after, (jobs.get(job.id) ?? job).tags);

export const isStarred = (job: Pick<Snapshot, "id" | "tags">): boolean => tagsOf(job).includes(STAR);

/** Asks which tags there are. */
export async function lookUp(): Promise<void> {
  const asked = looks.ask();
  const found = await get<TagView[]>("tags").catch(() => undefined);
  if (found && looks.shows(asked)) known.tags = found;
}

/** Changes the tags of jobs: shown at once, and undone where it is refused, which is told. Gives whether it was not. */
export async function retag(ids: string[], add: string[], remove: string[] = []): Promise<boolean> {
  const change = { add, remove };
  for (const id of ids) waiting.set(id, [...(waiting.get(id) ?? []), change]);
  let going: Promise<boolean> | undefined;
  const send = () => {
    unsent.delete(send);
    return (going ??= ids.length === 1 ? sendOne(ids[0]!, change) : sendAll(ids, change));
  };
  unsent.add(send);
  const sent = turn.then(send);
  turn = sent;
  const taken = await sent;
  for (const id of ids) {
    const left = (waiting.get(id) ?? []).filter((one) => one !== change);
    if (left.length) waiting.set(id, left);
    else waiting.delete(id);
  }
  void lookUp();
  return taken;
}

/** Stars jobs; where all of them are starred, takes the stars off. */
export function star(all: Pick<Snapshot, "id" | "tags">[]): void {
  const ids = all.map((job) => job.id);
  if (!ids.length) return;
  if (all.every(isStarred)) void retag(ids, [], [STAR]);
  else void retag(ids, [STAR]);
}

/** The words of what was typed, each a tag. */
export const wordsOf = (text: string): string[] => [...new Set(text.split(/[\s,]+/).filter(Boolean))];

/** What is said of stars before jobs are deleted. */
export function starsAmong(ids: string[]): string {
  const stars = ids.filter((id) => isStarred(jobs.get(id) ?? { id, tags: [] })).length;
  if (!stars) return "";
  return ids.length === 1 ? " It is starred." : ` ${many(stars, "of them is starred", "of them are starred")}.`;
}

async function sendOne(id: string, change: Change): Promise<boolean> {
  const found = await tried(call<JobView>("PATCH", `jobs/${part(id)}/tags`, change));
  if (found) answered(found);
  return !!found;
}

async function sendAll(ids: string[], change: Change): Promise<boolean> {
  for (let at = 0; at < ids.length; at += AT_ONCE) {
    const these = ids.slice(at, at + AT_ONCE);
    const found = await tried(post<Tagged>("jobs/tags", { jobs: these, ...change }));
    if (!found) return false;
    if (found.count < these.length) {
      // Which ones, the events tell.
      tell(`${many(these.length - found.count, "job stays", "jobs stay")} as before: with 16 tags, or deleted.`, "error");
      continue;
    }
    for (const id of these) {
      const job = jobs.get(id);
      if (job) answered({ ...job, tags: after(job.tags, change) });
    }
  }
  return true;
}
