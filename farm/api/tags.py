"""How are jobs tagged over HTTP, and which tags are there?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from farm.api.asks import Ask
from farm.api.desk import desk_of
from farm.api.door import Door, Reader, Submitter, Whose
from farm.api.jobs import record_of
from farm.api.many import JobId
from farm.api.views import JobView, View
from farm.tags import MOST, RULE, check_change

router = APIRouter(route_class=Door, tags=["jobs"])
Words = Annotated[list[str], Field(max_length=MOST, description=f"each of {RULE}")]


class TagAsk(Ask):
    """Which tags are to be put on, and which are to be taken off; those that are, or are not, there stay so."""

    add: Words = []
    remove: Words = []


class TagManyAsk(TagAsk):
    """The same for many jobs."""

    jobs: Annotated[list[JobId], Field(min_length=1, max_length=1000)] = Field(description="ids")


class Tagged(View):
    """What became of them. Jobs that would have more than 16 tags stay as they are, and are not counted."""

    count: int = Field(description="jobs that are tagged so now")


class TagView(View):
    """A tag that jobs have."""

    tag: str
    count: int = Field(description="how many jobs have it, in whatever state")


@router.get("/tags")
async def tags(request: Request, caller: Reader, owner: Whose = None) -> list[TagView]:
    """The tags of the caller's jobs, the one of the most jobs first; an admin's are everybody's."""
    desk, whose = desk_of(request), caller.looks_at(owner)
    found = await desk.ask(desk.farm.ledger.tags, whose)
    return [TagView(tag=name, count=count) for name, count in found.items()]


@router.patch("/jobs/{job}/tags")
async def tag(request: Request, job: str, ask: TagAsk, caller: Submitter) -> JobView:
    """Puts tags on a job, in any state, and takes others off."""
    desk = desk_of(request)

    def call() -> JobView:
        record = caller.check(record_of(desk, job))
        desk.farm.ledger.tag(record.job, ask.add, ask.remove)
        return JobView.of(caller.check(record_of(desk, job)))

    return await desk.ask(call)


@router.post("/jobs/tags")
async def tag_many(request: Request, ask: TagManyAsk, caller: Submitter) -> Tagged:
    """Puts tags on many jobs at once, and takes others off."""
    desk = desk_of(request)

    def call() -> Tagged:
        check_change(ask.add, ask.remove)
        records = desk.farm.ledger.read(list(dict.fromkeys(ask.jobs)), whole=False)
        theirs = [record.job for record in records if caller.owns(record)]
        return Tagged(count=desk.farm.ledger.tag_all(theirs, ask.add, ask.remove))

    return await desk.ask(call)
