// Which jobs are there, the newest first, however many?

import { get, query } from "./api";
import { jobs, listen } from "./live.svelte";
import { tried } from "./toast.svelte";
import type { JobPage, JobView, Snapshot } from "./types";

const PAGE = 100;
const GATHER_MS = 400;

/**
 * The jobs of a filter, fetched a page at a time. What an event tells of a job that is not listed yet has the newest
 * page fetched anew; states are always those of `jobs`, the newest told.
 */
export class Pages {
  list = $state.raw<JobView[]>([]);
  /** Whether there are older ones. */
  more = $state(true);
  busy = $state(false);
  #known = new Set<string>();
  #next: string | null = null;
  #timer = 0;
  #filter: () => { state?: string; run?: string };
  #fits: (job: Snapshot) => boolean;
  #turn = 0;

  /** `filter`: what the API is asked; `fits`: whether a job that an event tells of would be among its answers. */
  constructor(filter: () => { state?: string; run?: string }, fits: (job: Snapshot) => boolean = () => true) {
    this.#filter = filter;
    this.#fits = fits;
  }

  /** Follows the events; gives what ends that. */
  follow(): () => void {
    const unheard = listen((job) => {
      if (job.state === "deleted") {
        if (this.#known.has(job.id)) this.drop([job.id]);
      } else if (!this.#known.has(job.id) && this.#fits(job)) this.#soon();
    });
    return () => {
      clearTimeout(this.#timer);
      unheard();
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
    const page = await tried(get<JobPage>(query("jobs", { ...this.#filter(), limit: PAGE, cursor: this.#next })));
    if (turn !== this.#turn) return;
    this.busy = false;
    this.#next = page?.next ?? null;
    this.more = !!page?.next;
    this.#add(page?.jobs ?? [], false);
  }

  /** Takes jobs that are gone off the list. */
  drop(ids: string[]): void {
    const gone = new Set(ids);
    for (const id of gone) this.#known.delete(id);
    this.list = this.list.filter((job) => !gone.has(job.id));
  }

  #soon(): void {
    if (this.#timer) return;
    this.#timer = window.setTimeout(async () => {
      this.#timer = 0;
      const turn = this.#turn;
      const page = await tried(get<JobPage>(query("jobs", { ...this.#filter(), limit: PAGE })));
      if (turn === this.#turn) this.#add(page?.jobs ?? [], true);
    }, GATHER_MS);
  }

  #add(found: JobView[], first: boolean): void {
    const fresh = found.filter((job) => !this.#known.has(job.id));
    for (const job of fresh) {
      this.#known.add(job.id);
      if (!jobs.has(job.id)) jobs.set(job.id, job);
    }
    if (fresh.length) this.list = first ? [...fresh, ...this.list] : [...this.list, ...fresh];
  }
}
