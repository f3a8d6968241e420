"""What passes in and out of the ledger?

Opaque strings (`spec`, `payload`, `output`) come back exactly as they went in. Times are Redis's clock in milliseconds
since 1970; 0 stands for "not yet".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")
"""In the order in which they are served."""
STATES = ("queued", "running", "paused", "done", "failed", "quarantined", "cancelled", "expired")
"""In which a job may be, in the order in which people are told."""
SCHEMA = 1
"""Version of the records that a submit of this build writes: what a payload and an output mean to a worker."""
KNOWN_SCHEMAS = (1,)
"""Versions that a worker of this build can run. Newer ones are left to newer workers, so that both share a farm."""
ENDED = frozenset({"done", "failed", "quarantined", "cancelled", "expired"})
"""States that only a retry leaves."""
OPEN = tuple(state for state in STATES if state not in ENDED)
"""States of jobs that count against limits."""


PAUSING = "paused after the stage that runs now"
"""What a paused job waits for, while its stage may still commit."""


@dataclass(frozen=True)
class StageEntry:
    """One stage of a submission: which execution it is, whose queue serves it, and what its worker needs.

    `work`: what its time grows with, among those of its queue (see `PlannedStage.work`); 0 where that is not known.
    """

    exec: str
    queue: str
    payload: str
    work: float = 0.0


@dataclass(frozen=True)
class Submission:
    """One job as the ledger takes it. `idem` may be empty; `priority` is 0 to 100, higher first.

    `owner` is of a to z, 0 to 9 and -, or empty; all jobs of a run are one owner's. `collected`: whoever submits it
    takes its output from the store, and no readable copy of it is written. `tags` are as `farm.tags` allows them.
    """

    job: str
    stages: tuple[StageEntry, ...]
    spec: str
    idem: str
    body_hash: str
    lane: Lane = "interactive"
    priority: int = 50
    deadline_s: float | None = None
    run: str = ""
    owner: str = ""
    schema: int = SCHEMA
    collected: bool = False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submitted:
    """The job that holds now: the earlier one where its idempotency key was used before (`existed`)."""

    job: str
    state: str
    existed: bool


@dataclass(frozen=True)
class Claim:
    """The right to run one execution until its lease ends.

    `input` is the committed output of the stage before, "" for none; for a `publish` claim it is the final output, of
    which only the job's readable result is to be written. `waiters` are the jobs that wait for it, `finishing` those of
    them whose last stage it is (500 at most: those left out are published by claims of their own). `attempt` counts
    from 1; `oom` counts the out-of-memory errors before it, `crash` the crashes and lapsed leases.
    """

    exec: str
    token: str
    epoch: int
    queue: str
    payload: str
    input: str
    waiters: tuple[str, ...]
    finishing: tuple[str, ...]
    publish: bool
    attempt: int
    stage: int
    lease_s: float
    oom: int = 0
    crash: int = 0


@dataclass(frozen=True)
class Commit:
    """The output of a claim. `published`: the jobs whose readable result is written already."""

    claim: Claim
    output: str
    published: tuple[str, ...] = ()


class Beat(StrEnum):
    """What a worker learns from its beat."""

    OK = "ok"
    WATCHED = "watched"
    """Go on, and show pictures: somebody looks."""
    CANCELLED = "cancelled"
    """Nobody waits any more: stop and release."""
    STALE = "stale"
    """The lease is lost: stop; nothing of it will be taken."""


@dataclass(frozen=True)
class StageRecord:
    """Where one stage of a job is.

    `state` is waiting, queued, running, backoff, committed, or what ended or paused the job there. The last stage of a
    job whose output another job made shows the job's own publish execution. `preview` numbers its live pictures,
    rising; 0 for none.

    How long it takes, in seconds, going by what executions of its queue took and by its own work beside theirs:
    `mean_s` is its share of its call, `wall_s` the whole call; None where that was not measured yet. Where its output
    is there already, both are 0. `queue_s`: as `mean_s`, of the queue's executions on the average. `elapsed_s`: for
    how long it has been running; None where it is not. `live`: the workers that serve it.
    """

    index: int
    exec: str
    queue: str
    state: str
    phase: str = ""
    step: int = 0
    steps: int = 0
    worker: str = ""
    attempt: int = 0
    crash: int = 0
    oom: int = 0
    lapses: int = 0
    output: str = ""
    code: str = ""
    message: str = ""
    started_ms: int = 0
    committed_ms: int = 0
    preview: int = 0
    mean_s: float | None = None
    wall_s: float | None = None
    live: int = 0
    queue_s: float | None = None
    elapsed_s: float | None = field(default=None, compare=False)

    @property
    def has_begun(self) -> bool:
        """Whether its steps count: it runs, or its job was paused or ended in it."""
        return self.state not in ("waiting", "queued", "backoff")


@dataclass(frozen=True)
class JobRecord:
    """One job. `at` is the index of its current stage, of `n`. No two jobs share a `created_ms`.

    `position`: so many ready executions of its queue are claimed before its own; None where that is not ready.
    `waits_for`: why it waits, as a sentence's end; "" while its stage runs and when it has ended. Both are known where
    its stages are. `tags`: in the order in which it was given them (see `farm.tags`).
    """

    job: str
    state: str
    spec: str
    run: str
    lane: str
    priority: int
    created_ms: float
    deadline_ms: int
    started_ms: int
    ended_ms: int
    at: int
    n: int
    code: str
    message: str
    idem: str
    outputs: tuple[str, ...]
    stages: tuple[StageRecord, ...] = ()
    owner: str = ""
    position: int | None = None
    waits_for: str = ""
    collected: bool = False
    tags: tuple[str, ...] = ()

    @property
    def progress(self) -> float:
        """How far it is, from 0 to 1: whole stages, and the steps of its current one. Each stage counts the same."""
        if self.state == "done":
            return 1.0
        stage = self.stages[self.at] if self.at < len(self.stages) else None
        share = stage.step / stage.steps if stage and stage.has_begun and stage.steps else 0.0
        return round((self.at + min(share, 1.0)) / self.n, 4)


@dataclass(frozen=True)
class RunRecord:
    """One run: how many of its jobs are in each state (those with none are left out), and whose it is.

    `ended_ms`: when the last of them ended; 0 while one has not.
    """

    run: str
    owner: str
    created_ms: float
    count: int
    states: dict[str, int]
    ended_ms: int


@dataclass(frozen=True)
class WorkerRecord:
    """One live worker. `draining` is the operator's flag; `state` is the worker's own word (idle, busy, draining, …).

    `isolated_s`: for how long it is given nothing, because it failed everything it tried. `info`: what it says of
    itself: host, pid, `device`, `memory_bytes` of `memory_total_bytes`, and `checkpoints`, separated by commas. `jobs`:
    some of those that wait for what it runs.
    """

    worker: str
    boot: str
    queues: tuple[str, ...]
    state: str
    host: str
    pid: int
    draining: bool
    held: tuple[str, ...]
    seen_ms: int
    isolated_s: float = 0.0
    info: dict[str, str] = field(default_factory=dict)
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Minute:
    """How many stages were committed in one minute, by queue and by worker. `t`: its begin, ms since 1970.

    `images`: how many jobs each worker ended as done, by its last stage or by publishing what another job had drawn.
    """

    t: int
    queues: dict[str, int]
    workers: dict[str, int]
    images: dict[str, int]


@dataclass(frozen=True)
class Attempt:
    """One failed attempt at an execution: on which worker, why, and the last lines of that worker's log."""

    t: int
    worker: str
    attempt: int
    code: str
    message: str
    log: str


@dataclass(frozen=True)
class Quarantined:
    """One execution that is in quarantine since `t`, and how many `jobs` it ended. `payload` says what it would run."""

    exec: str
    t: int
    queue: str
    code: str
    message: str
    attempts: int
    payload: str
    jobs: int


@dataclass(frozen=True)
class QueueState:
    """One queue: executions that are ready and running, and live workers that serve it and are not draining.

    `mean_s` and `wall_s`: how long its executions take on the average, and `work` theirs; 0 where that is not known.
    """

    queue: str
    ready: int
    running: int
    live: int
    mean_s: float | None = None
    wall_s: float | None = None
    work: float = 0.0


@dataclass(frozen=True)
class Event:
    """One transition of one job. `id` is the place in the stream to go on after; `t` is in milliseconds.

    `owner` and `run` are said where the job is `deleted`, for nobody can look them up any more.
    """

    id: str
    type: str
    job: str
    stage: int
    state: str
    worker: str
    code: str
    exec: str
    token: str
    epoch: str
    t: int
    owner: str = ""
    run: str = ""


def share_of(work: float, usual: float) -> float | None:
    """How many times as long an execution of `work` takes as one of the `usual` work; None where nobody can tell.

    Of far more it is the most: what small ones take is partly what each takes whatever its size. Source: two stages of
    the tiny family on a CPU, of 134 times the work, took 155 times as long.
    """
    if not work:
        return 1.0
    return work / usual if usual else None


def place_of(id_: str) -> tuple[int, int]:
    """What tells which of two events' ids is the later one; "" is before all."""
    first, _, second = id_.partition("-")
    return int(first or 0), int(second or 0)


def instant(ms: float, *, exact: bool = False) -> str | None:
    """A time in milliseconds since 1970 as ISO 8601 in UTC; None for 0, "not yet".

    `exact`: to the microsecond, as no two jobs' times of creation are the same.
    """
    timespec = "microseconds" if exact else "milliseconds"
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec=timespec) if ms else None
