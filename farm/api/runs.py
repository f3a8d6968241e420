"""How is a run, jobs that were submitted together, looked at and ended over HTTP?"""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request

from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader, Submitter
from farm.api.views import RunView
from farm.errors import Conflict, NotFound
from farm.records import ENDED, JobRecord

router = APIRouter(route_class=Door, prefix="/runs", tags=["runs"])
PAGE = 1000
"""Jobs that one look at the ledger brings."""


@router.get("/{run}")
async def show(request: Request, run: str, caller: Reader) -> RunView:
    """A run: how many of its jobs are in each state."""
    desk = desk_of(request)
    return RunView.of(run, await desk.ask(jobs_of_run, desk, caller, run))


@router.post("/{run}/cancel")
async def cancel(request: Request, run: str, caller: Submitter) -> RunView:
    """Ends all jobs of a run that have not ended."""
    desk = desk_of(request)

    def call() -> RunView:
        for record in jobs_of_run(desk, caller, run):
            if record.state not in ENDED:
                with suppress(Conflict):  # it has ended meanwhile
                    desk.farm.ledger.cancel(record.job)
        return RunView.of(run, jobs_of_run(desk, caller, run))

    return await desk.ask(call)


def jobs_of_run(desk: Desk, caller: Caller, run: str) -> list[JobRecord]:
    """The run's jobs, the newest first.

    Raises:
        NotFound: there is no such run, or it is somebody else's.
    """
    found: list[JobRecord] = []
    before: float | None = None
    while True:
        records = desk.farm.ledger.jobs(run=run, limit=PAGE, before_ms=before)
        found += [record for record in records if caller.owns(record)]
        if len(records) < PAGE:
            break
        before = records[-1].created_ms
    if not found or not run:
        raise NotFound("there is no such run")
    return found
