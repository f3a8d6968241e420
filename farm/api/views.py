"""How do jobs and what belongs to them look over HTTP?

Times are ISO 8601 in UTC. `code` and `message` say why something failed, in the words of the README's error codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import CODES
from farm.estimate import Estimate, eta_s
from farm.job import Job, PlannedStage
from farm.records import ENDED, JobRecord, RunRecord, StageRecord

BASE = "/api/v1"


class View(BaseModel):
    """What is answered; it is made once and never changed."""

    model_config = ConfigDict(frozen=True)


class StageView(View):
    """Where one stage of a job is."""

    index: int
    kind: str
    checkpoint: str
    state: str = Field(description="waiting, queued, running, backoff, committed, or what ended the job here")
    phase: str
    step: int
    steps: int
    attempt: int
    code: str
    message: str
    crashes: int = Field(description="failed attempts that killed their worker")
    ooms: int = Field(description="failed attempts that ran out of the device's memory")
    lapses: int = Field(description="attempts whose worker was not heard of in time")
    mean_s: float | None = Field(description="how long such a stage takes here: its share of its call; none: not known")
    wall_s: float | None = Field(description="the whole call")
    workers: int = Field(description="live workers that serve its queue")
    tags: list[str] = Field([], description="what the farm's safety checker found")
    unread: str = Field("", description="the end of the prompt, where it is too long to be read")

    @classmethod
    def of(cls, stage: StageRecord) -> StageView:
        """The view of a record. Who works on it is the operator's to know: `/workers` tells."""
        kind, _, checkpoint = stage.queue.partition(".")
        names = ("index", "state", "phase", "step", "steps", "attempt", "code", "lapses", "mean_s", "wall_s")
        output = json.loads(stage.output) if stage.output else {}
        return cls(
            kind=kind, checkpoint=checkpoint, crashes=stage.crash, ooms=stage.oom, tags=output.get("tags") or [],
            unread=output.get("unread") or "", message=told(stage.code, stage.message), workers=stage.live,
            **{name: getattr(stage, name) for name in names},
        )  # fmt: skip


class Snapshot(View):
    """Where a job is: all that an event tells, whatever came before it."""

    id: str
    run: str | None
    state: str = Field(
        description="queued, running, paused, done, failed, quarantined, cancelled, expired, or, in an event, deleted"
    )
    stage: int = Field(description="index of the current stage, from 0")
    stage_count: int = Field(description="how many stages there are")
    kind: str = Field("", description="of the current stage")
    phase: str = Field("", description="of the running stage: load, fetch, encode, step, tile, decode, upload, spool")
    step: int = 0
    steps: int = 0
    progress: float = Field(description="0 to 1 over the whole chain; each stage counts the same")
    preview: str | None = Field(None, description="address of the running stage's picture; another with each picture")
    position: int | None = Field(
        None, description="stages that its queue's workers take before its own; 0: next; none where it is not ready"
    )
    waits_for: str | None = Field(None, description="why its stage does not run yet")
    eta_s: float | None = Field(
        None, description="seconds until the job is done, from how long its stages took before; none where not known"
    )
    code: str = ""
    message: str = ""
    created: str
    started: str | None = None
    ended: str | None = None

    @classmethod
    def of(cls, record: JobRecord) -> Snapshot:
        """The snapshot of a record; without its stages it knows no step."""
        return cls(**_snapshot(record))


class Urls(View):
    """Where to go from a job."""

    self: str
    events: str
    artifacts: str
    cancel: str


class JobView(Snapshot):
    """A job."""

    owner: str
    lane: str
    priority: int
    seed: int
    prompt: str
    deadline: str | None
    chain: dict[str, Any] = Field(description="as a chain file would write it")
    stages: list[StageView] = []
    urls: Urls

    @classmethod
    def of(cls, record: JobRecord) -> JobView:
        """The view of a record."""
        chain = json.loads(record.spec)["chain"]
        here = f"{BASE}/jobs/{record.job}"
        return cls(
            **_snapshot(record), owner=record.owner, lane=record.lane, priority=record.priority,
            seed=chain["seed"], prompt=chain.get("prompt", ""), deadline=instant(record.deadline_ms),
            chain=chain, stages=[StageView.of(one) for one in record.stages],
            urls=Urls(
                self=here, events=f"{here}/events", artifacts=f"{here}/artifacts", cancel=f"{here}/cancel"
            ),
        )  # fmt: skip


class JobPage(View):
    """Jobs, the newest first."""

    jobs: list[JobView]
    next: str | None = Field(None, description="the cursor of the page after this one; none where this is the last")


class MadeJob(View):
    """One job that a submit made."""

    id: str
    seed: int
    url: str


class Made(View):
    """What a submit made."""

    run: str | None = Field(description="the run that the jobs belong to, where they are several")
    count: int
    idempotency_key: str
    jobs: list[MadeJob]


class PlannedView(View):
    """One stage of a chain, with everything that the chain fixes for it. Sizes are width and height in pixels."""

    index: int
    kind: str
    checkpoint: str
    queue: str
    takes: str | None
    emits: str
    space: str
    given_size: list[int] | None
    size: list[int]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, item: PlannedStage) -> PlannedView:
        """The view of a planned stage."""
        return cls(**item.facts)


class DryRun(View):
    """What a submit would make; nothing was stored."""

    count: int
    seed: int | None = Field(description="of the first job; none where it would be drawn")
    steps: int = Field(description="denoising steps of all jobs together")
    pixels: int = Field(description="pixels of the final images together")
    cost_s: float | None = Field(
        None,
        description="device-seconds of all stages that are not made already, by whomever, for equal recipes are made "
        "once for all owners; none where one was never measured",
    )
    eta_s: float | None = Field(None, description="seconds until all jobs would be done; none where nobody can tell")
    stages: list[PlannedView] = Field(description="of the first job")

    @classmethod
    def of(cls, jobs: Sequence[Job], took: Estimate) -> DryRun:
        """The view of jobs that are not submitted."""
        first = jobs[0]
        return cls(
            count=len(jobs),
            seed=None if first.chain.seed is None else first.seed,
            steps=sum(getattr(item.stage, "num_inference_steps", 0) for job in jobs for item in job.plan),
            pixels=sum(job.plan[-1].size.width * job.plan[-1].size.height for job in jobs),
            cost_s=took.cost_s,
            eta_s=took.eta_s,
            stages=[PlannedView.of(item) for item in first.plan],
        )


class RunView(View):
    """A run: jobs that were submitted together."""

    id: str
    owner: str
    created: str
    count: int
    states: dict[str, int] = Field(description="how many of its jobs are in each state")
    progress: float = Field(description="0 to 1: the share of jobs that have ended")
    ended: str | None = Field(description="when the last of its jobs ended; none while one has not")
    events: str

    @classmethod
    def of(cls, record: RunRecord) -> RunView:
        """The view of a record."""
        ended = sum(count for state, count in record.states.items() if state in ENDED)
        return cls(
            id=record.run, owner=record.owner, created=instant(record.created_ms) or "", count=record.count,
            states=record.states, progress=ended / record.count, ended=instant(record.ended_ms),
            events=f"{BASE}/runs/{record.run}/events",
        )  # fmt: skip


class RunPage(View):
    """Runs, the newest first."""

    runs: list[RunView]
    next: str | None = Field(None, description="the cursor of the page after this one; none where this is the last")


class Artifact(View):
    """One picture of a job. Its addresses need a token; `url` leads on to a signed one that needs none for a while."""

    index: int = Field(description="0: the final image; stage + 1: what was kept of that stage")
    kind: Literal["result", "intermediate"]
    stage: int
    medium: Literal["image", "preview"] = Field(description="image: a PNG as it was made; preview: a small WebP of it")
    sha256: str
    width: int
    height: int
    size_bytes: int | None
    url: str
    thumbnail: str


def instant(ms: float) -> str | None:
    """A time in milliseconds since 1970 as ISO 8601 in UTC; None for 0, "not yet"."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds") if ms else None


def told(code: str, message: str) -> str:
    """What callers are told of a failure: of one that nobody foresaw only that, for its words may name hosts and files.

    The operator has them: `farm jobs show`, `farm quarantine show`.
    """
    return CODES[code] if code == "internal" else message


def _snapshot(record: JobRecord) -> dict[str, Any]:
    """The fields of a `Snapshot`."""
    stage = record.stages[record.at] if record.at < len(record.stages) else None
    running = stage is not None and stage.state == "running"
    return {
        "id": record.job,
        "run": record.run or None,
        "state": record.state,
        "stage": record.at,
        "stage_count": record.n,
        "kind": stage.queue.partition(".")[0] if stage else "",
        "phase": stage.phase if stage and running else "",
        "step": stage.step if stage and running else 0,
        "steps": stage.steps if stage and running else 0,
        "progress": _progress(record, stage if running else None),
        "preview": f"{BASE}/jobs/{record.job}/preview?v={stage.preview}" if stage and stage.preview else None,
        "position": record.position,
        "waits_for": record.waits_for or None,
        "eta_s": eta_s(record),
        "code": record.code,
        "message": told(record.code, record.message),
        "created": instant(record.created_ms) or "",
        "started": instant(record.started_ms),
        "ended": instant(record.ended_ms),
    }


def _progress(record: JobRecord, running: StageRecord | None) -> float:
    """How far the job is, from 0 to 1: whole stages, and the steps of the running one."""
    if record.state == "done":
        return 1.0
    share = running.step / running.steps if running is not None and running.steps else 0.0
    return round((record.at + min(share, 1.0)) / record.n, 4)
