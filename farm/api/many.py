"""How are many jobs steered in one call?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from farm.api.asks import Ask
from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Submitter
from farm.api.jobs import record_of
from farm.api.runs import STEER_S
from farm.api.views import View
from farm.client import PATIENCE_S
from farm.errors import Conflict, Forbidden, NotFound, QuotaExceeded
from farm.handle import JobHandle
from farm.records import ENDED, OPEN
from farm.runs import STEERED, Verb
from farm.scripts import within

router = APIRouter(route_class=Door, prefix="/jobs", tags=["jobs"])
PAGE = 200
WHICH = {"open": OPEN, "ended": tuple(sorted(ENDED)), "failed": ("failed", "quarantined", "expired")}
JobId = Annotated[str, Field(min_length=1, max_length=64)]


class SteerAsk(Ask):
    """What is to be done with which jobs."""

    act: Literal["cancel", "pause", "resume", "retry", "delete"]
    jobs: Annotated[list[JobId], Field(min_length=1, max_length=1000)] | Literal["open", "ended", "failed"] = Field(
        description="ids, or all that a list shows the caller: the open ones (queued, running or paused), those that "
        "have ended, or those that failed (also quarantined and expired)"
    )


class Steered(View):
    """What became of them. Jobs whose state does not allow the act stay as they are, and are not counted."""

    count: int = Field(description="jobs that were steered")
    more: bool = Field(description="whether time ran out: the same call goes on with the rest")
    hindered: str = Field("", description="what kept the call from steering the rest, as a limit that is reached")
    kept: int = Field(0, description="tagged jobs that were left alone: who deletes by state deletes none of those")


@router.post("/steer")
async def steer(request: Request, ask: SteerAsk, caller: Submitter) -> Steered:
    """Steers many jobs at once: cancels, pauses, resumes, retries or deletes them. Tagged ones are deleted by id."""
    desk = desk_of(request)
    return await desk.work(_steer, desk, caller, ask)


def _steer(desk: Desk, caller: Caller, ask: SteerAsk) -> Steered:
    spares = ask.act == "delete" and isinstance(ask.jobs, str)
    act, until = _acts(desk, caller, spares)[ask.act], time.monotonic() + STEER_S
    count, kept, queues, more, hindered = 0, 0, set[str](), False, ""
    try:
        for job, is_tagged in _asked(desk, caller, ask):
            if more := time.monotonic() > until:
                break
            if spares and is_tagged:
                kept += 1
                continue
            with within(PATIENCE_S):
                try:
                    queues |= act(job)
                except (Conflict, Forbidden, NotFound):
                    continue
                except QuotaExceeded as full:
                    if not count:
                        raise
                    hindered = full.message
                    break
            count += 1
    finally:  # whatever hinders the rest, those that may go on do so at once
        desk.farm.broker.ring(queues)
    return Steered(count=count, more=more, kept=kept, hindered=hindered)


def _acts(desk: Desk, caller: Caller, spares: bool) -> dict[str, Callable[[str], set[str]]]:
    """What each act does with a job; the queues that it made ready. `spares`: not with one that has tags."""
    ledger = desk.farm.ledger

    def cancel(job: str) -> set[str]:
        ledger.cancel(job)
        return set()

    def pause(job: str) -> set[str]:
        ledger.pause(job)
        return set()

    def delete(job: str) -> set[str]:
        JobHandle(desk.farm, job).delete()
        return set()

    def retry(job: str) -> set[str]:
        return ledger.retry(job, caller.max_open_jobs, lift=caller.is_admin)

    def owned(act: Callable[[str], set[str]], states: Sequence[str]) -> Callable[[str], set[str]]:
        def checked(job: str) -> set[str]:
            record = caller.check(record_of(desk, job))
            # Read once more: somebody may have tagged it since it was listed.
            if record.state not in states or (spares and record.tags):
                raise Conflict("its state does not allow this, or it was tagged")
            return act(job)

        return checked

    acts: dict[Verb, Callable[[str], set[str]]] = {
        "cancel": cancel, "pause": pause, "resume": ledger.resume, "retry": retry
    }  # fmt: skip
    return {**{verb: owned(act, STEERED[verb]) for verb, act in acts.items()}, "delete": owned(delete, tuple(ENDED))}


def _asked(desk: Desk, caller: Caller, ask: SteerAsk) -> Iterator[tuple[str, bool]]:
    """The jobs that are to be steered, and whether each has tags, where it was not named.

    Of those that a list shows the caller the newest of each state come first.
    """
    if not isinstance(ask.jobs, str):
        yield from ((job, False) for job in ask.jobs)
        return
    for state in WHICH[ask.jobs]:
        before = None
        while True:
            with within(PATIENCE_S):
                page = desk.farm.ledger.jobs(state, None, PAGE, before, owner=caller.sees)
            yield from ((record.job, bool(record.tags)) for record in page)
            if len(page) < PAGE:
                break
            before = page[-1].created_ms
