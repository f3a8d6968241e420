"""How do jobs and what belongs to them look over HTTP?

Times are ISO 8601 in UTC. `code` and `message` say why something failed, in the words of the README's error codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from farm.estimate import Estimate
from farm.job import Job
from farm.plan import PlannedStage
from farm.records import ENDED, JobRecord, RunRecord, StageRecord, instant
from farm.snapshot import BASE, Snapshot, View, snapshot_fields, told


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
            **snapshot_fields(record), owner=record.owner, lane=record.lane, priority=record.priority,
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
    prompt: str = Field("", description="of its newest job")
    progress: float = Field(description="0 to 1: the share of jobs that have ended")
    ended: str | None = Field(description="when the last of its jobs ended; none while one has not")
    events: str

    @classmethod
    def of(cls, record: RunRecord, newest: Sequence[JobRecord]) -> RunView:
        """The view of a record and of the run's newest job; none where that is gone."""
        prompt = next((json.loads(job.spec)["chain"].get("prompt", "") for job in newest), "")
        ended = sum(count for state, count in record.states.items() if state in ENDED)
        return cls(
            id=record.run, owner=record.owner, created=instant(record.created_ms, exact=True) or "", count=record.count,
            states=record.states, prompt=prompt, progress=ended / record.count, ended=instant(record.ended_ms),
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
