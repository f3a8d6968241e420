"""How does a job go on otherwise, from a stage on, over HTTP?"""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from farm.api.asks import Ask, check_images
from farm.api.callers import Caller
from farm.api.desk import UNKNOWN, Desk, desk_of
from farm.api.door import Door, Submitter
from farm.api.jobs import Key, record_of
from farm.api.threads import patience_s
from farm.api.views import BASE, Made, MadeJob
from farm.fork import forked_chain
from farm.handle import JobHandle
from farm.job import Job, canonical, images_of, new_id
from farm.records import JobRecord, Lane

router = APIRouter(route_class=Door, prefix="/jobs", tags=["jobs"])


class ForkAsk(Ask):
    """What a fork has otherwise than its job. The stages before `from_stage` are the job's, and are not run again."""

    from_stage: int = Field(ge=1, description="index, from 0, of the first stage that is another one")
    stages: list[dict[str, Any]] | None = Field(
        None, max_length=8, description="those in place of the job's from there on, as in a chain file"
    )
    parameters: dict[str, Any] = Field(
        {}, description="NAME sets every stage from there on that has it, I.NAME that of stage I of the chain"
    )
    lane: Lane | None = Field(None, description="default: the job's")
    priority: int | None = Field(None, ge=0, le=100, description="default: the job's")
    deadline_s: float | None = Field(None, gt=0, description="seconds until the job expires")


@router.post("/{job}/fork", status_code=201)
async def fork(
    request: Request, response: Response, job: str, ask: ForkAsk, caller: Submitter, idempotency_key: Key = None
) -> Made:
    """Submits a job once more with other stages or parameters from a stage on; what stands before is taken as it is.

    The job may be in any state: what of it is not made yet, or is gone, is made for both.
    """
    desk, key = desk_of(request), idempotency_key or new_id()
    # Told with an outcome that is unknown, so that the call can be made again.
    request.state.idempotency_key = key
    record = caller.check(await desk.ask(record_of, desk, job))
    handle, made, again = await desk.decode(UNKNOWN, _submit, desk, caller, record, ask, key, idempotency_key)
    response.status_code = 200 if again else 201
    told = MadeJob(id=handle.id, seed=made.seed, url=f"{BASE}/jobs/{handle.id}")
    return Made(run=None, count=1, idempotency_key=key, jobs=[told])


def _submit(
    desk: Desk, caller: Caller, record: JobRecord, ask: ForkAsk, key: str, given: str | None
) -> tuple[JobHandle, Job, bool]:
    """The submitted job, and whether the key was used before; `given`: the key, where the caller has one."""
    chain, _ = forked_chain(record, ask.from_stage, ask.stages, ask.parameters)
    check_images(chain, desk.kept, caller, ask.from_stage)
    options: dict[str, Any] = {
        "idempotency_key": caller.key(key), "deadline_s": ask.deadline_s, "lane": ask.lane or record.lane,
        "priority": record.priority if ask.priority is None else ask.priority,
    }  # fmt: skip
    told = record, ask.from_stage, ask.stages, ask.parameters
    desk.farm.fork_of(*told, upload=False, **options)
    body = canonical({"fork": record.job, **ask.model_dump(mode="json")})
    with desk.kept.reserved(caller.owner, given, hashlib.sha256(body.encode()).hexdigest(), patience_s()):
        made = desk.farm.fork_of(*told, **options)
        for sha256 in images_of(made):
            desk.kept.own_image(caller.owner, sha256)  # as it was fitted: a fork of the fork names it so
        (handle,) = desk.farm.submit([made], caller.owner, caller.max_open_jobs)
    return handle, made, handle.existed
