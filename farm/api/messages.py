"""What does a webhook say?

::

    {"type": "job.done", "timestamp": "2025-11-22T06:09:21.000Z",
     "data": {"id": …, "run": …, "state": "done", "code": "", "message": "", "owner": …, …, "urls": {"self": …}}}

A message's id is made of what it tells, so that it is the same however often and by whichever process it is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from farm.api.views import BASE, instant, told
from farm.errors import CODES
from farm.job import canonical
from farm.records import JobRecord, RunRecord


@dataclass(frozen=True)
class Message:
    """Something that has ended, at `at_ms`, milliseconds since 1970, and what is sent of it to whom it is for."""

    id: str
    topic: str
    owner: str
    at_ms: float
    body: str


def of_job(record: JobRecord, state: str, code: str, at_ms: int) -> Message:
    """The message that a job ended as `state`, at `at_ms`; the record may be further on, for a job can be retried."""
    here = f"{BASE}/jobs/{record.job}"
    owner = record.owner
    data = {
        "id": record.job,
        "run": record.run or None,
        "state": state,
        "code": code,
        "message": told(code, record.message if record.state == state else CODES.get(code, "")),
        "owner": owner,
        "created": instant(record.created_ms),
        "ended": instant(at_ms),
        "urls": {"self": here, "events": f"{here}/events", "artifacts": f"{here}/artifacts"},
    }
    return _message(f"job.{state}", record.job, owner, at_ms, data)


def of_run(run: RunRecord) -> Message:
    """The message that all jobs of a run have ended."""
    here = f"{BASE}/runs/{run.run}"
    data = {
        "id": run.run,
        "count": run.count,
        "states": run.states,
        "owner": run.owner,
        "ended": instant(run.ended_ms),
        "urls": {"self": here, "events": f"{here}/events"},
    }
    return _message("run.done", run.run, run.owner, run.ended_ms, data)


def of_dataset(told: Mapping[str, Any]) -> Message:
    """The message that every sample of a dataset was tried, of what `Webhooks.tell` left.

    It is for who listened when it was told, by the ledger's clock; that it ended, its feeder's clock says.
    """
    here = f"{BASE}/datasets/{told['id']}"
    data = {**told, "ended": instant(told["ended"]), "urls": {"self": here}}
    at_ms = data.pop("told_ms", told["ended"])  # an older farm did not say
    return replace(_message("dataset.done", told["id"], told["owner"], told["ended"], data), at_ms=at_ms)


def trial(endpoint: str, at_ms: int) -> Message:
    """A message that says nothing: whoever gets it can check the signature."""
    return _message("farm.test", endpoint, "", at_ms, {"id": endpoint})


def _message(topic: str, subject: str, owner: str, at_ms: int, data: Mapping[str, Any]) -> Message:
    name = hashlib.sha256(f"{topic} {subject} {at_ms}".encode()).hexdigest()[:32]
    body = canonical({"type": topic, "timestamp": instant(at_ms), "data": data})
    return Message(f"msg_{name}", topic, owner, at_ms, body)
