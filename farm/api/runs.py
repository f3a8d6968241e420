"""How are runs, jobs that were submitted together, listed, looked at and steered over HTTP?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from farm.api.callers import Caller
from farm.api.cursors import next_of, position
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader, Submitter, Whose
from farm.api.threads import patience_s
from farm.api.views import RunPage, RunView
from farm.errors import NotFound
from farm.records import RunRecord
from farm.runs import Verb
from farm.scripts import within

router = APIRouter(route_class=Door, prefix="/runs", tags=["runs"])
PAGE = 200
"""Runs of one page."""
STEER_S = 25.0
"""How long one call may steer a run, seconds: some 10^5 jobs, and less than the 30 s that clients wait."""


@router.get("", response_model=RunPage)
async def ls(
    request: Request,
    caller: Reader,
    owner: Whose = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The caller's runs, the newest first; an admin's are everybody's."""
    desk, before, whose = desk_of(request), position(cursor), caller.looks_at(owner)

    def call() -> RunPage:
        found = desk.farm.ledger.runs(limit, before, owner=whose)
        return RunPage(runs=[_view(desk, record) for record in found], next=next_of(found, limit))

    return await desk.tell(call)


@router.get("/{run}")
async def show(request: Request, run: str, caller: Reader) -> RunView:
    """A run: how many of its jobs are in each state."""
    desk = desk_of(request)
    return await desk.ask(lambda: _view(desk, run_of(desk, caller, run)))


@router.post("/{run}/cancel")
async def cancel(request: Request, run: str, caller: Submitter) -> RunView:
    """Ends all jobs of a run that have not ended."""
    return await _steer(request, run, caller, "cancel")


@router.post("/{run}/pause")
async def pause(request: Request, run: str, caller: Submitter) -> RunView:
    """Holds all unended jobs of a run after the stages that run now."""
    return await _steer(request, run, caller, "pause")


@router.post("/{run}/resume")
async def resume(request: Request, run: str, caller: Submitter) -> RunView:
    """Lets the paused jobs of a run go on."""
    return await _steer(request, run, caller, "resume")


@router.post("/{run}/retry")
async def retry(request: Request, run: str, caller: Submitter) -> RunView:
    """Queues the ended jobs of a run that are not done again; those in quarantine for an admin only."""
    return await _steer(request, run, caller, "retry")


async def _steer(request: Request, run: str, caller: Caller, verb: Verb) -> RunView:
    """The run after its jobs were steered."""
    desk = desk_of(request)

    def call() -> RunView:
        with within(patience_s()):
            run_of(desk, caller, run)
        with within(STEER_S):
            _, queues = desk.farm.ledger.steer_run(run, verb, caller.max_open_jobs, lift=caller.is_admin)
        desk.farm.broker.ring(queues)
        with within(patience_s()):
            return _view(desk, run_of(desk, caller, run))

    return await desk.work(call)


def _view(desk: Desk, record: RunRecord) -> RunView:
    return RunView.of(record, desk.farm.ledger.jobs(run=record.run, limit=1))


def run_of(desk: Desk, caller: Caller, run: str) -> RunRecord:
    """How the run's jobs are.

    Raises:
        NotFound: there is no such run, or it is somebody else's.
    """
    found = desk.farm.ledger.run(run)
    if not caller.owns(found):
        raise NotFound("there is no such run")
    return found
