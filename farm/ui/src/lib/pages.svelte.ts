// Which jobs are there, the newest first, however many?

import { get, query } from "./api";
import { hold, jobs, listen } from "./live.svelte";
import { tried } from "./toast.svelte";
import type { JobPage, JobView, Snapshot } from "./types";

const PAGE = 100;
const GATHER_MS = 400;
/** Pages that are looked through for jobs which events have told of. */
const MOST = 20;

/**
 * The jobs of a filter, the newest first, fetched a page at a time. What an event tells of a job that belongs among
 * them has it looked up; states are always those of `jobs`, the newest told.
 */
export class Pages {
  list = $state.raw<JobView[]>([]);
  /** Whether there are older ones. */
  more = $state(true);
  busy = $state(false);
  /** Whether the last page could not be fetched. */
  failed = $state(false);
  #known = new Set<string>();
  #next: string | null = null;
  #timer = 0;
  /** Whether jobs that were told of are being looked for. */
  #finding = false;
  /** When the oldest job was made that was told of and is not listed. */
  #missing = "";
  #filter: () => { state?: string; run?: string; tag?: string };
  #fits: (job: Snapshot) => boolean;
  #turn = 0;

  /** `filter`: what the API is asked; `fits`: whether a job that an event tells of would be among its answers. */
  constructor(filter: () => { state?: string; run?: string; tag?: string }, fits: (job: Snapshot) => boolean = () => true) {
    this.#filter = filter;
    this.#fits = fits;
  }

  /** Follows the events; gives what ends that. */
  follow(): () => void {
    const unheard = listen((job) => {
      if (job.state === "deleted") {
        if (this.#known.has(job.id)) this.drop([job.id]);
      } else if (!this.#known.has(job.id) && this.#fits(job)) this.#miss(job.created);
    });
    const unheld = hold((id) => this.#known.has(id));
    return () => {
      clearTimeout(this.#timer);
      unheard();
      unheld();
    };
  }

  /** Begins anew, with the newest. */
  async begin(): Promise<void> {
    this.#turn += 1;
    this.#known.clear();
    this.#next = null;
    this.list = [];
    this.more = true;
    this.busy = false;
    await this.older();
  }

  /** Fetches the next older page. */
  async older(): Promise<void> {
    if (this.busy || !this.more) return;
    this.busy = true;
    const turn = this.#turn;
    const cursor = this.#next;
    const page = await tried(get<JobPage>(query("jobs", { ...this.#filter(), limit: PAGE, cursor })));
    // The list may be another one by now, or end elsewhere.
    if (turn !== this.#turn || cursor !== this.#next) return;
    this.busy = false;
    this.failed = !page;
    // What could not be fetched is asked for again by hand: the view must not hammer a farm that is in trouble.
    this.more = !!page?.next;
    if (!page) return;
    this.#next = page.next;
    this.#add(page.jobs);
  }

  /** Fetches once more what could not be fetched. */
  async again(): Promise<void> {
    this.more = true;
    await this.older();
  }

  /** Takes jobs that are gone off the list. */
  drop(ids: string[]): void {
    const gone = new Set(ids);
    for (const id of gone) this.#known.delete(id);
    this.list = this.list.filter((job) => !gone.has(job.id));
  }

  #miss(created: string): void {
    const last = this.list.at(-1);
    // What is older than all that is listed comes when the user gets there.
    if ((this.more || this.failed) && (!last || created < last.created)) return;
    this.#missing = this.#missing && this.#missing < created ? this.#missing : created;
    this.#gather();
  }

  #gather(): void {
    if (!this.#finding) this.#timer ||= window.setTimeout(() => void this.#find(), GATHER_MS);
  }

  async #find(): Promise<void> {
    this.#timer = 0;
    this.#finding = true;
    await this.#lookBack();
    this.#finding = false;
    if (this.#missing) this.#gather();
  }

  /** Lists what was told of and is missing. */
  async #lookBack(): Promise<void> {
    const [turn, back] = [this.#turn, this.#missing];
    this.#missing = "";
    let cursor: string | null = null;
    let end = "";
    for (let at = 0; at < MOST; at++) {
      const asked = query("jobs", { ...this.#filter(), limit: PAGE, cursor });
      const page: JobPage | undefined = await tried(get<JobPage>(asked));
      if (turn !== this.#turn || !page) return;
      this.#add(page.jobs);
      cursor = page.next;
      end = page.jobs.at(-1)?.created ?? "";
      if (!cursor || end < back) return;
    }
    // So many are new that others are missing below them: the list ends here, and goes on when the user gets there.
    this.drop(this.list.filter((job) => job.created < end).map((job) => job.id));
    [this.#next, this.more, this.busy, this.failed] = [cursor, true, false, false];
  }

  #add(found: JobView[]): void {
    const fresh = found.filter((job) => !this.#known.has(job.id));
    if (!fresh.length) return;
    for (const job of fresh) {
      this.#known.add(job.id);
      if (!jobs.has(job.id)) jobs.set(job.id, job);
    }
    const [last, first] = [this.list.at(-1), fresh[0]!];
    const all = [...this.list, ...fresh];
    this.list = last && first.created > last.created ? all.sort((one, other) => (one.created < other.created ? 1 : one.created > other.created ? -1 : 0)) : all;
  }
}
