"""What has failed again and again, and may it be tried once more? An operator's calls: recipes are everybody's."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Query, Request

from farm.api.desk import Desk, desk_of
from farm.api.door import Door, needs
from farm.api.views import View, instant
from farm.records import Attempt, Quarantined

router = APIRouter(route_class=Door, prefix="/quarantine", tags=["quarantine"], dependencies=[needs("admin")])


class QuarantinedView(View):
    """One recipe in quarantine since `time`. `payload` says what it would run, as JSON."""

    execution: str
    time: str
    queue: str
    code: str
    message: str
    attempts: int
    payload: str
    jobs: int

    @classmethod
    def of(cls, one: Quarantined) -> QuarantinedView:
        """The view of a record."""
        return cls(**_facts(one))


class FailureView(View):
    """One failed attempt, with the last lines of its worker's log."""

    time: str
    worker: str
    attempt: int
    code: str
    message: str
    log: str


class CaseView(QuarantinedView):
    """One recipe in quarantine, with what happened and the jobs that it ended."""

    failures: list[FailureView]
    job_ids: list[str]


class Retried(View):
    """The jobs that are queued again."""

    execution: str
    jobs: list[str]


class Dropped(View):
    """A quarantine that is lifted and forgotten."""

    execution: str


@router.get("")
async def ls(request: Request, limit: int = Query(100, ge=1, le=10000)) -> list[QuarantinedView]:
    """What is in quarantine, the newest first."""
    desk = desk_of(request)
    return [QuarantinedView.of(one) for one in await desk.ask(desk.farm.quarantined, limit)]


@router.get("/{name}")
async def show(request: Request, name: str) -> CaseView:
    """One case, by the first 4 or more characters of its recipe, or by a job that it ended."""
    desk = desk_of(request)
    return await desk.ask(_case, desk, name)


@router.post("/{name}/retry")
async def retry(request: Request, name: str) -> Retried:
    """Lifts a quarantine and queues all jobs that it ended again."""
    desk = desk_of(request)
    exec_ = await desk.ask(desk.farm.quarantine_of, name)
    return Retried(execution=exec_, jobs=await desk.work(desk.farm.retry_quarantined, exec_))


@router.delete("/{name}")
async def drop(request: Request, name: str) -> Dropped:
    """Lifts a quarantine and forgets its cause; its jobs stay ended, new ones may run."""
    desk = desk_of(request)
    exec_ = await desk.ask(desk.farm.quarantine_of, name)
    await desk.ask(desk.farm.drop_quarantined, exec_)
    return Dropped(execution=exec_)


def _case(desk: Desk, name: str) -> CaseView:
    found, attempts, jobs = desk.farm.failures(desk.farm.quarantine_of(name))
    failures = [FailureView(**_facts(attempt)) for attempt in attempts]
    return CaseView(**_facts(found), failures=failures, job_ids=jobs)


def _facts(one: Quarantined | Attempt) -> dict[str, Any]:
    """A record's fields in the API's words."""
    found = asdict(one)
    told: dict[str, Any] = {"time": instant(found.pop("t"))}
    if "exec" in found:
        told["execution"] = found.pop("exec")
    return {**found, **told}
