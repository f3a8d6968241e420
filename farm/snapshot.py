"""Where is a job, in all that one look at it tells?

The API's events are snapshots, and so is what `events` of every farm yields. Times are ISO 8601 in UTC. `code` and
`message` say why something failed, in the words of the README's error codes.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import CODES
from farm.estimate import eta_s
from farm.records import JobRecord, instant

BASE = "/api/v1"
"""Where the API's addresses begin."""


class View(BaseModel):
    """What is answered; it is made once and never changed."""

    model_config = ConfigDict(frozen=True)


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
    phase: str = Field("", description="of the stage: load, fetch, encode, step, tile, decode, upload, spool")
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
    created: str = Field(description="to the microsecond: no two jobs share one")
    started: str | None = None
    ended: str | None = None
    tags: list[str] = Field([], description="words that somebody put on the job; `starred` is the page's star")

    @classmethod
    def of(cls, record: JobRecord) -> Snapshot:
        """The snapshot of a record; without its stages it knows no step."""
        return cls(**snapshot_fields(record))


def told(code: str, message: str) -> str:
    """What callers are told of a failure: of one that nobody foresaw only that, for its words may name hosts and files.

    The operator has them: `farm jobs show`, `farm quarantine show`.
    """
    return CODES[code] if code == "internal" else message


def snapshot_fields(record: JobRecord) -> dict[str, Any]:
    """The fields of a `Snapshot`."""
    stage = record.stages[record.at] if record.at < len(record.stages) else None
    begun = stage is not None and stage.has_begun
    return {
        "id": record.job,
        "run": record.run or None,
        "state": record.state,
        "stage": record.at,
        "stage_count": record.n,
        "kind": stage.queue.partition(".")[0] if stage else "",
        "phase": stage.phase if stage and begun else "",
        "step": stage.step if stage and begun else 0,
        "steps": stage.steps if stage and begun else 0,
        "progress": record.progress,
        "preview": f"{BASE}/jobs/{record.job}/preview?v={stage.preview}" if stage and stage.preview else None,
        "position": record.position,
        "waits_for": record.waits_for or None,
        "eta_s": eta_s(record),
        "code": record.code,
        "message": told(record.code, record.message),
        "created": instant(record.created_ms, exact=True) or "",
        "started": instant(record.started_ms),
        "ended": instant(record.ended_ms),
        "tags": list(record.tags),
    }
