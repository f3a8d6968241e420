// How are states, times and sizes put into words?

import type { JobState, Snapshot } from "./types";

export const ENDED: readonly JobState[] = ["done", "failed", "quarantined", "cancelled", "expired", "deleted"];
export const ended = (state: JobState): boolean => ENDED.includes(state);

/** A span in seconds, in two units at most: 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h. */
export function span(seconds: number | null | undefined): string {
  if (seconds == null) return "";
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]] as const;
  const first = units.findIndex(([size]) => whole >= size);
  const [size, name] = units[first]!;
  const below = units[first + 1];
  const rest = below ? Math.floor((whole % size) / below[0]) : 0;
  return `${Math.floor(whole / size)} ${name}${rest && below ? ` ${rest} ${below[1]}` : ""}`;
}

/** How long ago an instant was. */
export const ago = (instant: string, now: number): string => `${span((now - Date.parse(instant)) / 1000)} ago`;

/** How quickly images come, given how many of them a second. */
export const pace = (rate: number): string => (rate < 0.1 ? `${(60 * rate).toFixed(1)} images/min` : `${rate.toFixed(1)} images/s`);

/** An instant as the user's clock shows it. */
export const clock = (instant: string | null): string => (instant ? new Date(instant).toLocaleString() : "");

/** A number of bytes. */
export function bytes(count: number | null | undefined): string {
  if (count == null) return "";
  const power = count < 1000 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), 4);
  return `${(count / 1000 ** power).toFixed(power ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** So many things, in words. */
export const many = (count: number, one: string, more = `${one}s`): string => `${count} ${count === 1 ? one : more}`;

/** Ascending numbers, those that follow each other as one span: 2–5, 9. */
export function spans(numbers: number[]): string {
  const found: [number, number][] = [];
  for (const one of numbers) {
    const last = found.at(-1);
    if (last && one <= last[1] + 1) last[1] = one;
    else found.push([one, one]);
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}

/** A wrong field as people count and call it: `stages.0.num_inference_steps` is stage 1, steps. */
export const where = (loc: string): string =>
  loc
    .replace(/^stages\.(\d+)\.?/, (_, at) => `stage ${Number(at) + 1}, `)
    .replace(/^sweep\.(\d+)$/, (_, at) => `axis ${Number(at) + 1}`)
    .replace(/^sweep\.(\d+)\./, (_, at) => `axis of stage ${Number(at) + 1}, `)
    .replace(/^sweep\./, "axis ")
    .replace("num_inference_steps", "steps")
    .replace(/\.(\d+)(?=\.|$)/g, (_, at) => ` ${Number(at) + 1}`)
    .replaceAll(".", ", ")
    .replaceAll("_", " ")
    .replace(/, $/, "");

/** What `whereabouts` says beyond the state, for where that stands before it already. */
export function beyond(job: Snapshot): string {
  const told = whereabouts(job);
  return told === job.state ? "" : told.replace(/^paused,? /, "");
}

/** What a job is called now: one that has begun and whose next stage nobody runs waits. */
export const called = (job: Snapshot): string => (job.state === "running" && job.waits_for ? "waiting" : job.state);

/** Where a job is, in one line: what runs, or why it waits. */
export function whereabouts(job: Snapshot): string {
  const stage = `stage ${job.stage + 1} of ${job.stage_count}: ${job.kind}`;
  if (job.state === "running" && !job.waits_for) {
    const step = job.steps ? `, step ${job.step} of ${job.steps}` : job.phase ? `, ${job.phase}` : "";
    return `${stage}${step}`;
  }
  if (job.state === "queued" || job.state === "running") {
    // Where the reason names the place, that is not said once more.
    const placed = job.position == null || /^(\d+ ahead|next) in /.test(job.waits_for ?? "");
    const place = placed ? "" : job.position === 0 ? "next in line" : `${job.position} before it`;
    const told = [job.waits_for, place].filter(Boolean).join(" · ") || `waits for ${job.kind}`;
    return job.state === "queued" ? told : `${stage} · ${told}`;
  }
  if (job.state === "paused" && job.waits_for && job.waits_for !== "paused") return `${job.waits_for} · ${stage}`;
  if (job.state === "paused") return `paused before stage ${job.stage + 1}: ${job.kind}`;
  if (job.message) return job.message;
  return job.state;
}
