"""Which records are meant by what the API says?

Over HTTP less is told than the ledger knows: no execution, and of workers only to an admin who they are.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from farm.api.views import JobView
from farm.handle import Intermediate, Result
from farm.job import canonical
from farm.records import Attempt, Event, JobRecord, Quarantined, QueueState, RunRecord, StageRecord, WorkerRecord
from farm.stage import Size


def record_of(view: JobView) -> JobRecord:
    """A job's record; its `spec` holds the chain alone."""
    stages = tuple(
        StageRecord(
            index=one.index, exec="", queue=f"{one.kind}.{one.checkpoint}", state=one.state, phase=one.phase,
            step=one.step, steps=one.steps, attempt=one.attempt, crash=one.crashes, oom=one.ooms, lapses=one.lapses,
            output=canonical({"tags": one.tags, "unread": one.unread}) if one.state == "committed" else "",
            code=one.code, message=one.message, mean_s=one.mean_s, wall_s=one.wall_s, live=one.workers,
        )
        for one in view.stages
    )  # fmt: skip
    return JobRecord(
        job=view.id, state=view.state, spec=canonical({"chain": {**view.chain, "seed": view.seed}}),
        run=view.run or "", lane=view.lane, priority=view.priority, created_ms=_ms(view.created),
        deadline_ms=round(_ms(view.deadline)), started_ms=round(_ms(view.started)), ended_ms=round(_ms(view.ended)),
        at=view.stage, n=view.stage_count, code=view.code, message=view.message, idem="", outputs=(), stages=stages,
        owner=view.owner, position=view.position, waits_for=view.waits_for or "",
        tags=tuple(view.tags),
    )  # fmt: skip


def result_of(found: dict[str, Any], base: str) -> Result:
    """A final image; its key is its address below `base`, its URI the whole address."""
    key = str(found["url"])
    return Result(key, base.rstrip("/") + key, str(found["sha256"]), Size(found["width"], found["height"]))


def intermediate_of(found: dict[str, Any], base: str) -> Intermediate:
    """What was kept of a stage; key and URI as those of a final image."""
    one = result_of(found, base)
    return Intermediate(one.key, one.uri, one.sha256, one.size, found["stage"], found["medium"], found["size_bytes"])


def event_of(found: dict[str, Any], job: str) -> Event:
    """One transition of a job."""
    told = {name: found[name] for name in ("id", "type", "stage", "state", "code")}
    return Event(
        job=job, worker=found["worker"] or "", exec="", token="", epoch="", t=round(_ms(found["time"])), **told
    )  # fmt: skip


def queue_of(found: dict[str, Any]) -> QueueState:
    """One queue."""
    return QueueState(
        found["queue"], found["ready"], found["running"], found["workers"], found["mean_s"], found["wall_s"]
    )


def run_of(found: dict[str, Any]) -> RunRecord:
    """One run."""
    return RunRecord(
        run=found["id"], owner=found["owner"], created_ms=_ms(found["created"]), count=found["count"],
        states=found["states"], ended_ms=round(_ms(found["ended"])),
    )  # fmt: skip


def worker_of(found: dict[str, Any]) -> WorkerRecord:
    """One live worker; without a name where the caller may not know it."""
    return WorkerRecord(
        worker=found["name"] or "", boot="", queues=tuple(found["queues"]), state=found["state"],
        host=found["host"] or "", pid=found["pid"] or 0, draining=found["draining"], held=("",) * found["running"],
        seen_ms=0, isolated_s=found["isolated_s"],
    )  # fmt: skip


def quarantined_of(found: dict[str, Any]) -> Quarantined:
    """One recipe in quarantine."""
    told = {name: found[name] for name in ("queue", "code", "message", "attempts", "payload", "jobs")}
    return Quarantined(exec=found["execution"], t=round(_ms(found["time"])), **told)


def attempt_of(found: dict[str, Any]) -> Attempt:
    """One failed attempt."""
    told = {name: found[name] for name in ("worker", "attempt", "code", "message", "log")}
    return Attempt(t=round(_ms(found["time"])), **told)


def _ms(instant: str | None) -> float:
    """A time as ISO 8601, in milliseconds since 1970; 0 for none."""
    return datetime.fromisoformat(instant).timestamp() * 1000 if instant else 0.0
