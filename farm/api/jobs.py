"""How are jobs submitted, looked at, steered and collected over HTTP?"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Header, Query, Request, Response

from farm.api.asks import JobAsk, Place, body_sha256, jobs_of
from farm.api.callers import Caller
from farm.api.cursors import next_of, position
from farm.api.desk import UNKNOWN, Desk, desk_of
from farm.api.door import Door, Reader, Submitter, Whose
from farm.api.threads import patience_s
from farm.api.views import BASE, DryRun, JobPage, JobView, Made, MadeJob
from farm.errors import NotFound
from farm.estimate import estimate
from farm.handle import JobHandle
from farm.job import images_of, new_id
from farm.records import JobRecord
from farm.scripts import within
from farm.stage import STORED
from farm.tags import MAX_CHARS, check_tag

router = APIRouter(route_class=Door, prefix="/jobs", tags=["jobs"])
PAGE = 200
"""Jobs of one page."""
Key = Annotated[
    str | None,
    Header(min_length=1, max_length=200, pattern=r"^[\x20-\x7e]+$", description="the same key yields the same jobs"),
]
State = Literal["queued", "running", "paused", "done", "failed", "quarantined", "cancelled", "expired"]


@router.post(
    "", status_code=201, response_model=Made, responses={200: {"model": Made, "description": "the same jobs as before"}}
)
async def create(request: Request, ask: JobAsk, caller: Submitter, idempotency_key: Key = None) -> Response:
    """Submits one job or a run. What is answered is durable; sent again with the same key, it is the same jobs.

    Where it names a saved chain that was replaced since then, it is refused as another request of that key (409), and
    where that was deleted, as one without a chain (422): nothing is made twice.
    """
    desk = desk_of(request)
    key = idempotency_key or new_id()
    # Told with an outcome that is unknown, so that the call can be made again.
    request.state.idempotency_key = key
    told, again = await _in_threads(desk, ask)(_submit, desk, caller, ask, key, idempotency_key)
    return Response(told, 200 if again else 201, media_type="application/json")


def _submit(desk: Desk, caller: Caller, ask: JobAsk, key: str, given: str | None) -> tuple[str, bool]:
    """The submitted jobs as JSON, and whether the key was used before; `given`: the key, where the caller has one."""
    jobs = jobs_of(desk.farm, desk.kept, caller, ask, key, upload=False)
    with desk.kept.reserved(caller.owner, given, body_sha256(ask), patience_s()):
        if any(job.image or any(stage.uploads() for stage in job.chain.stages) for job in jobs):
            jobs = jobs_of(desk.farm, desk.kept, caller, ask, key, upload=True)
            for sha256 in {image for job in jobs for image in images_of(job)}:
                desk.kept.own_image(caller.owner, sha256)  # as it was fitted: a picture made from it names it so
        handles = desk.farm.submit(jobs, caller.owner, caller.max_open_jobs)
    made = [
        MadeJob(id=handle.id, seed=job.seed, url=f"{BASE}/jobs/{handle.id}")
        for handle, job in zip(handles, jobs, strict=True)
    ]
    told = Made(run=jobs[0].run or None, count=len(jobs), idempotency_key=key, jobs=made)
    return told.model_dump_json(), all(handle.existed for handle in handles)


@router.post("/dry-run")
async def dry_run(request: Request, ask: JobAsk, caller: Submitter) -> DryRun:
    """Checks what a submit would check, and tells what it would make; stores nothing."""
    desk = desk_of(request)

    def call() -> DryRun:
        jobs = jobs_of(desk.farm, desk.kept, caller, ask, new_id(), upload=False)
        with within(patience_s()):
            return DryRun.of(jobs, estimate(jobs, desk.farm.ledger))

    return cast("DryRun", await _in_threads(desk, ask)(call))


def _in_threads(desk: Desk, ask: JobAsk) -> Callable[..., Any]:
    """Where a request is worked out: one with images among few, for they take memory."""
    # What a saved chain names is known once it is read: it counts as one with images.
    is_saved = isinstance(ask.chain, str) and ask.chain not in desk.farm.catalog.presets
    has_images = ask.image or is_saved or STORED in repr((ask.chain, ask.parameters, ask.sweep))
    return partial(desk.decode, UNKNOWN) if has_images else desk.work


@router.get("", response_model=JobPage)
async def ls(
    request: Request,
    caller: Reader,
    state: State | None = None,
    run: Annotated[str | None, Query(max_length=64)] = None,
    owner: Whose = None,
    tag: Annotated[str | None, Query(max_length=MAX_CHARS, description="only those with this tag")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The caller's jobs, the newest first; an admin's are everybody's."""
    desk, before, whose = desk_of(request), position(cursor), caller.looks_at(owner)
    if tag is not None:
        check_tag(tag, "query.tag")

    def call() -> JobPage:
        records = desk.farm.ledger.jobs(state, run, limit, before, owner=whose, tag=tag, whole=True)
        return JobPage(jobs=[JobView.of(record) for record in records], next=next_of(records, limit))

    return await desk.tell(call)


@router.get("/{job}")
async def show(request: Request, job: str, caller: Reader) -> JobView:
    """A job with its stages."""
    desk = desk_of(request)
    return await desk.ask(_view, desk, caller, job)


@router.delete("/{job}", status_code=204, response_class=Response)
async def delete(request: Request, job: str, caller: Submitter) -> None:
    """Forgets an ended job, and deletes its results; pictures that other jobs share stay with those."""
    desk = desk_of(request)

    def call() -> None:
        JobHandle(desk.farm, caller.check(record_of(desk, job)).job).delete()

    await desk.ask(call)


@router.post("/{job}/cancel")
async def cancel(request: Request, job: str, caller: Submitter) -> JobView:
    """Ends a job; its running stage stops within one step. A cancelled job stays so."""
    return await _steer(request, caller, job, lambda handle: handle.cancel())


@router.post("/{job}/pause")
async def pause(request: Request, job: str, caller: Submitter) -> JobView:
    """Holds a job after the stage that runs now."""
    return await _steer(request, caller, job, lambda handle: handle.pause())


@router.post("/{job}/resume")
async def resume(request: Request, job: str, caller: Submitter) -> JobView:
    """Lets a paused job go on."""
    return await _steer(request, caller, job, lambda handle: handle.resume())


@router.post("/{job}/retry")
async def retry(request: Request, job: str, caller: Submitter) -> JobView:
    """Queues an ended job again from the stage that it did not finish; out of quarantine an admin's only."""

    def again(handle: JobHandle) -> None:
        queues = handle.farm.ledger.retry(handle.id, caller.max_open_jobs, lift=caller.is_admin)
        handle.farm.broker.ring(queues)

    return await _steer(request, caller, job, again)


@router.patch("/{job}")
async def move(request: Request, job: str, place: Place, caller: Submitter) -> JobView:
    """Gives a job another place in the line."""

    def to(handle: JobHandle) -> None:
        handle.farm.ledger.reprioritise(handle.id, place.priority, place.lane)

    return await _steer(request, caller, job, to)


async def _steer(request: Request, caller: Caller, job: str, steer: Callable[[JobHandle], object]) -> JobView:
    """The job after `steer`."""
    desk = desk_of(request)

    def call() -> JobView:
        record = caller.check(record_of(desk, job))
        steer(JobHandle(desk.farm, record.job))
        return _view(desk, caller, job)

    return await desk.ask(call)


def record_of(desk: Desk, job: str) -> JobRecord:
    """The record of the job, by its whole id.

    Raises:
        NotFound: there is none, or this is no id.
    """
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job):
        raise NotFound("there is no such job")
    try:
        return desk.farm.ledger.job(job)
    except NotFound:  # in other words than for somebody else's it would tell which is which
        raise NotFound("there is no such job") from None


def _view(desk: Desk, caller: Caller, job: str) -> JobView:
    return JobView.of(caller.check(record_of(desk, job)))
