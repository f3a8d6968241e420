"""How does a program follow jobs live?

By Server-Sent Events (WHATWG HTML, 9.2), on one stream per job, per run and for the farm. Each event is a whole
snapshot::

    id: 1763781600000-0
    event: job
    data: {"id": …, "state": "running", "stage": 1, "progress": 0.31, …}

A reader that comes back with `Last-Event-ID` gets the newest state of every job that has changed since; one that was
away for longer than the ledger's stream reaches back, unended jobs and what has ended since. A job's stream says `end`
after its last snapshot, and answers 204 to whoever comes back after that. A job that is deleted is told once more, in
the state `deleted`.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from farm.api.callers import Caller
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Reader, identify
from farm.api.feed import Feed, Told
from farm.api.guard import STOP
from farm.api.jobs import record_of
from farm.api.readings import GONE, NOW
from farm.api.runs import run_of
from farm.api.threads import answer_within, queue_for
from farm.api.views import Snapshot
from farm.errors import FarmError, Unavailable
from farm.records import ENDED

OPEN_S = 20.0
"""How long one who opens a stream waits for each turn, seconds: a browser that is refused does not come back."""
RETRY_MS = 1000
"""How long a browser waits before it comes back, milliseconds."""
END = ".end"
"""What the last id of a job's stream ends in."""
MISSED = 1000
"""Ended jobs that a reader of everything is told of who was away for long: so many more than the list's first pages."""
_ID = re.compile(r"\d{1,19}-\d{1,19}")
"""An id of the ledger's stream: two numbers of 64 bits."""
_HELD: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the stream; each event is as said here",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "required": ["event", "data"],
                    "properties": {
                        "id": {"type": "string", "description": "for Last-Event-ID"},
                        "event": {"enum": ["job", "end"]},
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": Snapshot.model_json_schema(),
                        },
                    },
                }
            }
        },
    }
}


class StreamDoor(Door):
    """A route to a stream: very many are opened at once, when the API or a page comes back."""

    async def enter(self, request: Request) -> None:
        """Notes who asks, if they may."""
        queue_for(OPEN_S)
        await super().enter(request)


router = APIRouter(route_class=StreamDoor, tags=["events"])
LastId = Annotated[str, Header(alias="Last-Event-ID", max_length=64)]
Last = Annotated[str, Query(max_length=64, description="as Last-Event-ID, for whoever cannot set a header")]


class EventStream(Response):
    """A response that goes on until its reader leaves, its token is removed, or the watched job has ended."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, feed: Feed, names: Callable[[], Awaitable[Mapping[str, str]]]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._feed, self._names, self._desk = request, feed, names, desk_of(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until it is over. `send` waits for a slow reader, and the feed meanwhile keeps the newest only."""

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        # From here on each question has its own time: hundreds that begin at once wait for each other.
        answer_within(math.inf)
        with self._desk.hub.watching(self._feed):
            # Only now: what happens while the names are looked up is offered already.
            first = await self._desk.hub.catch_up(self._feed, await self._names())
            async with anyio.create_task_group() as tasks:
                scope["state"][STOP] = tasks.cancel_scope.cancel
                tasks.start_soon(listen)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for part in self._parts(first):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                tasks.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b""})

    async def _parts(self, found: list[Told]) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        asked = anyio.current_time()
        while True:
            found = found or await self._next()
            # However much there is to tell: a token that was removed tells nobody anything.
            if (now := anyio.current_time()) - asked >= self._desk.heartbeat_s:
                asked = now
                if not await self._may_go_on():
                    return
            if not found:
                yield b": alive\n\n"
                continue
            yield b"".join(_event("job", told.id, told.data) for told in found)
            last, found = found[-1], []
            if self._feed.job is not None and last.state in (*ENDED, GONE):
                yield _event("end", last.id + END if last.id else "", last.data)
                return

    async def _next(self) -> list[Told]:
        """The next events; none where there were none for a while."""
        with anyio.move_on_after(self._desk.heartbeat_s):
            while self._feed.needed:
                try:
                    if found := await self._desk.hub.catch_up(self._feed):
                        return found
                except Unavailable:
                    await anyio.sleep(RETRY_MS / 1000)
            return await self._feed.take()
        return []

    async def _may_go_on(self) -> bool:
        """Whether the token still holds; where nobody can say, the stream goes on."""
        try:
            await identify(self._request)
        except Unavailable:
            return True
        except FarmError:
            return False
        return True


def _event(name: str, id_: str, data: str) -> bytes:
    """One event on the wire; JSON has no line breaks of its own."""
    return (f"id: {id_}\n" if id_ else "").encode() + f"event: {name}\ndata: {data}\n\n".encode()


@router.get(
    "/jobs/{job}/events",
    response_class=Response,
    responses={**_HELD, 204: {"description": "the job has ended, and its end was seen"}},
)
async def of_job(request: Request, job: str, caller: Reader, last: LastId = "") -> Response:
    """A job's snapshots, the newest first at once, until it has ended."""
    desk = desk_of(request)
    record = caller.check(await desk.ask(record_of, desk, job))
    if last.endswith(END) and record.state in ENDED:
        return Response(status_code=204)  # which tells a browser not to come back

    async def names() -> dict[str, str]:
        return {record.job: NOW}

    return EventStream(request, Feed(lambda found: found.job == record.job, caller.owner, record.job), names)


@router.get("/runs/{run}/events", response_class=Response, responses=_HELD)
async def of_run(request: Request, run: str, caller: Reader, header: LastId = "", last: Last = "") -> Response:
    """Snapshots of a run's jobs, those of all of them at first."""
    desk = desk_of(request)
    await desk.ask(run_of, desk, caller, run)

    async def names() -> dict[str, str]:
        missed = await _since(desk, caller, header or last)
        if missed is not None:
            return missed
        return dict.fromkeys(await desk.ask(desk.farm.ledger.run_jobs, run), "")

    return EventStream(request, Feed(lambda found: found.run == run and caller.owns(found), caller.owner), names)


@router.get("/events", response_class=Response, responses=_HELD)
async def of_farm(request: Request, caller: Reader, header: LastId = "", last: Last = "") -> Response:
    """Snapshots of all the caller's jobs, those of the newest unended ones at first."""
    desk, seen = desk_of(request), header or last

    async def names() -> dict[str, str]:
        missed = await _since(desk, caller, seen)
        if missed is not None:
            return missed
        readings = desk.hub.readings
        ended = await readings.ended_since(seen, MISSED) if _ID.fullmatch(seen) else {}
        return ended | await readings.unended(caller.sees)

    return EventStream(request, Feed(caller.owns, caller.owner), names)


async def _since(desk: Desk, caller: Caller, last: str) -> dict[str, str] | None:
    """The jobs that a reader that saw the event `last` has missed; None where that cannot be said.

    Of the others that have not ended only what comes is told: they are looked at from now on.
    """
    missed = await desk.hub.readings.since(last) if _ID.fullmatch(last) else None
    if missed is not None:
        await desk.hub.follow(await desk.hub.readings.unended(caller.sees))
    return missed
