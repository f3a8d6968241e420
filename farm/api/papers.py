"""What is on record of a job: its recipes, the images that it began from, and what has happened to it?"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import RedirectResponse

from farm.again import named_images
from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader
from farm.api.jobs import record_of
from farm.api.views import View, instant
from farm.comfy_graph import workflow
from farm.errors import NotFound

router = APIRouter(route_class=Door, prefix="/jobs", tags=["jobs"])


class Spec(View):
    """A job as it was submitted: the chain with its seed, the fitted input image, and the recipe of each stage."""

    v: int
    chain: dict[str, Any]
    image: dict[str, Any] | None
    recipes: list[dict[str, Any]]


class WorkflowView(View):
    """A job as ComfyUI would draw it."""

    workflow: dict[str, Any] = Field(description="ComfyUI's API format: what its `POST /prompt` takes as `prompt`")
    notes: list[str] = Field(description="what has to lie in ComfyUI's folders, and what is not the same there")


class Transition(View):
    """One event of a job's. `worker` is told to an admin."""

    id: str
    type: str
    stage: int
    state: str
    code: str
    worker: str | None
    time: str


@router.get("/{job}/spec")
async def spec(request: Request, job: str, caller: Reader) -> Spec:
    """All that decides a job's pixels: with it `farm script` writes a plain program."""
    desk = desk_of(request)
    return Spec(**await desk.ask(_spec, desk, caller, job))


@router.get("/{job}/comfy")
async def comfy(request: Request, job: str, caller: Reader) -> WorkflowView:
    """The job as a graph that ComfyUI runs; what it cannot run is refused."""
    desk = desk_of(request)

    def call() -> WorkflowView:
        found = workflow(_spec(desk, caller, job), desk.farm.catalog)
        return WorkflowView(workflow=found.nodes, notes=found.notes)

    return await desk.ask(call)


@router.get("/{job}/inputs/{sha256}", status_code=307, response_class=RedirectResponse)
async def given(request: Request, job: str, sha256: str, caller: Reader) -> RedirectResponse:
    """Leads on to a signed URL of an image that the job began from, as it was fitted at submit."""
    desk = desk_of(request)
    named = {one: name for name, one in named_images(await desk.ask(_spec, desk, caller, job))}
    if sha256 not in named:
        raise NotFound("the job names no such image")
    key = desk.farm.inbox.blob_key(sha256)
    return RedirectResponse(await desk.ask(desk.farm.inbox.presign, key, named[sha256]), 307)


@router.get("/{job}/history")
async def history(
    request: Request,
    job: str,
    caller: Reader,
    after: Annotated[str, Query(pattern=r"^\d{1,19}-\d{1,19}$", description="the id of the last one known")] = "0-0",
) -> list[Transition]:
    """What has happened to a job, the oldest first; the last few hundred events are kept."""
    desk = desk_of(request)
    caller.check(await desk.ask(record_of, desk, job))
    found = await desk.ask(desk.farm.ledger.events, job, after)
    names = ("id", "type", "stage", "state", "code")
    return [
        Transition(
            worker=one.worker if caller.is_admin else None, time=instant(one.t) or "",
            **{name: getattr(one, name) for name in names},
        )
        for one in found
    ]  # fmt: skip


def _spec(desk: Desk, caller: Caller, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(caller.check(record_of(desk, job)).spec)
    return found
