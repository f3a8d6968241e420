"""How are jobs submitted, looked at, steered and collected over HTTP?"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import RedirectResponse

from farm.api.asks import JobAsk, Place, body_sha256, jobs_of
from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader, Submitter
from farm.api.views import BASE, Artifact, DryRun, JobPage, JobView, Made, MadeJob
from farm.client import PATIENCE_S
from farm.errors import FieldError, InvalidJob, NotFound
from farm.handle import JobHandle
from farm.job import Job, new_id
from farm.records import ENDED, JobRecord
from farm.scripts import within

router = APIRouter(route_class=Door, prefix="/jobs", tags=["jobs"])
SCANNED = 2000
"""Jobs that one page looks at: the ledger does not list by owner, so others' are passed over here."""
PAGE = 200
"""Jobs that one look at the ledger brings."""
Key = Annotated[
    str | None,
    Header(min_length=1, max_length=200, pattern=r"^[\x20-\x7e]+$", description="the same key yields the same jobs"),
]
State = Literal["queued", "running", "paused", "done", "failed", "quarantined", "cancelled", "expired"]


@router.post("", status_code=201, responses={200: {"model": Made, "description": "the same jobs as before"}})
async def create(
    request: Request, response: Response, ask: JobAsk, caller: Submitter, idempotency_key: Key = None
) -> Made:
    """Submits one job or a run. What is answered is durable; sent again with the same key, it is the same jobs."""
    desk = desk_of(request)
    key = idempotency_key or new_id()
    # Told with an outcome that is unknown, so that the call can be made again.
    request.state.idempotency_key = key
    jobs, again = await _in_threads(desk, ask)(_submit, desk, caller, ask, key)
    response.status_code = 200 if again else 201
    return Made(
        run=jobs[0][1].run or None,
        count=len(jobs),
        idempotency_key=key,
        jobs=[MadeJob(id=handle.id, seed=job.seed, url=f"{BASE}/jobs/{handle.id}") for handle, job in jobs],
    )


def _submit(desk: Desk, caller: Caller, ask: JobAsk, key: str) -> tuple[list[tuple[JobHandle, Job]], bool]:
    """The submitted jobs, and whether the key was used before."""
    jobs = jobs_of(desk.farm, desk.kept, caller, ask, key, upload=False)
    with within(PATIENCE_S):
        again = desk.kept.reserve(caller.owner, key, body_sha256(ask))
    if any(job.image or any(stage.uploads() for stage in job.chain.stages) for job in jobs):
        jobs = jobs_of(desk.farm, desk.kept, caller, ask, key, upload=True)
    return list(zip(desk.farm.submit(jobs), jobs, strict=True)), again


@router.post("/dry-run")
async def dry_run(request: Request, ask: JobAsk, caller: Submitter) -> DryRun:
    """Checks what a submit would check, and tells what it would make; stores nothing."""
    desk = desk_of(request)
    return DryRun.of(await _in_threads(desk, ask)(jobs_of, desk.farm, desk.kept, caller, ask, new_id(), upload=False))


def _in_threads(desk: Desk, ask: JobAsk) -> Callable[..., Any]:
    """Where a request is worked out: one with images among few, for they take memory."""
    return desk.decode if ask.image or "sha256:" in repr((ask.chain, ask.parameters)) else desk.work


@router.get("")
async def ls(
    request: Request,
    caller: Reader,
    state: State | None = None,
    run: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> JobPage:
    """The caller's jobs, the newest first; an admin's are everybody's."""
    desk, before = desk_of(request), _position(cursor)
    records, after = await desk.ask(_page, desk, caller, state, run, limit, before)
    return JobPage(jobs=[JobView.of(record) for record in records], next=after and _cursor(after))


def _page(
    desk: Desk, caller: Caller, state: str | None, run: str | None, limit: int, before: float | None
) -> tuple[list[JobRecord], float | None]:
    """Up to `limit` jobs, and where the next page begins; a page may be short where many are somebody else's."""
    found: list[JobRecord] = []
    size = limit if caller.is_admin else PAGE
    for _ in range(0, SCANNED, size):
        records = desk.farm.ledger.jobs(state=state, run=run, limit=size, before_ms=before)
        for record in records:
            before = record.created_ms
            if caller.owns(record):
                found.append(record)
            if len(found) == limit:
                return found, before
        if len(records) < size:
            return found, None
    return found, before


@router.get("/{job}")
async def show(request: Request, job: str, caller: Reader) -> JobView:
    """A job with its stages."""
    desk = desk_of(request)
    return await desk.ask(_view, desk, caller, job)


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
    """Queues a failed, quarantined, cancelled or expired job again from the stage it ended in."""
    return await _steer(request, caller, job, lambda handle: handle.retry())


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


@router.get("/{job}/artifacts")
async def artifacts(request: Request, job: str, caller: Reader) -> list[Artifact]:
    """The final images; none until the job is done."""
    desk = desk_of(request)
    found = await desk.ask(_results, desk, caller, job)
    return [Artifact.of(job, index, result) for index, result in enumerate(found)]


@router.get("/{job}/artifacts/{index}", status_code=307, response_class=RedirectResponse)
async def artifact(request: Request, job: str, index: int, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of a final image, which needs no token and holds for a while."""
    desk = desk_of(request)
    found = await desk.ask(_results, desk, caller, job)
    if not 0 <= index < len(found):
        raise NotFound("the job has no such artifact")
    key = found[index].key
    name = f"{job}-{index}.png"
    return RedirectResponse(await desk.ask(desk.farm.inbox.presign, key, name), 307)


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
    record = caller.check(record_of(desk, job))
    return JobView.of(record, None if record.state in ENDED else desk.farm.ledger.waiting_for(record.job))


def _results(desk: Desk, caller: Caller, job: str) -> Any:
    caller.check(record_of(desk, job))
    return JobHandle(desk.farm, job).results


def _cursor(created_ms: float) -> str:
    return base64.urlsafe_b64encode(f"{created_ms:.4f}".encode()).decode().rstrip("=")


def _position(cursor: str | None) -> float | None:
    """The time of creation, in milliseconds, that a cursor stands for."""
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        if re.fullmatch(r"\d{1,15}\.\d{4}", text):
            return float(text)
    except ValueError:
        pass
    raise InvalidJob(errors=(FieldError("query.cursor", "a cursor as `next` gives it"),))
