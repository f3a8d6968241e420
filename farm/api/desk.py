"""What does every call work with, and how does it reach the synchronous farm in time?"""

from __future__ import annotations

import os
import platform
import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, ParamSpec, TypeVar, cast

import anyio
import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import Response

from farm.api.courier import Patience
from farm.api.deliverer import Deliverer
from farm.api.hub import Hub
from farm.api.kept import Kept
from farm.api.limits import Limits
from farm.api.outbox import Outbox
from farm.api.readings import Readings
from farm.api.sessions import Sessions
from farm.api.threads import caller_now, patience_s, queue_for, queueing, thinking
from farm.api.turns import Turns
from farm.client import Farm
from farm.errors import Busy, FarmError
from farm.ledger import FAN
from farm.scripts import Server, within
from farm.settings import Settings
from farm.store import Store
from farm.tokens import Tokens
from farm.webhooks import Webhooks

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 32
"""Calls of the farm at the same time. Each waits for a server most of its time."""
LOOKS = 16
"""Looks at tokens at the same time, which nobody's calls keep waiting."""
PAGES = 4
"""Long answers that are written at the same time: that takes the processor, which all share."""
WORKERS = 16
"""Calls at the same time that may think for long. They are none of `THREADS`: others are answered meanwhile. A turn
lasts until the loop hears that it is over, up to 0.1 s where 200 streams are written to: 160 submits a second."""
SPARED = 8
"""One owner leaves one part in so many of each of these to others: the next turn is theirs, but one must end first."""
PIXELS = 1 << 24
"""Pixels of the pictures that are decoded at the same time for those who submit; a larger one is decoded alone. Source:
each pixel takes some 16 bytes while a picture is turned, laid on white and written anew."""
DECODERS = 4
"""Pictures that are decoded at the same time, however small they are."""
UNKNOWN = PIXELS // 2
"""What a picture counts whose size nobody has looked at, pixels."""
SHRINKERS = 2
"""Thumbnails that are made at the same time."""
DECODER_S = 20.0
"""How long a call waits for a decoder, seconds: less than the 30 s that clients wait."""


class AnsweringFarm(Farm):
    """The farm as calls ask it: its store, too, is waited for no longer than a call may be."""

    @cached_property
    def store(self) -> Store:
        """The artifacts in S3."""
        return self.inbox


class Desk:
    """The farm's client, what the API keeps beside the ledger, and the threads in which both are asked."""

    def __init__(self, settings: Settings, *, auth: bool = True, heartbeat_s: float = 15.0) -> None:
        self.settings, self.auth, self.heartbeat_s = settings, auth, heartbeat_s
        # Two containers may share a host's name and a pid.
        self.name = f"api-{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.farm = AnsweringFarm(settings)
        self.patient = Store(settings)
        """The store, for what takes longer than a call may be kept waiting."""
        self._server = Server(settings, FAN)
        self.tokens, self.kept = Tokens(self._server), Kept(self._server, settings.retention_s)
        self.sessions, self.limits = Sessions(self._server, self.tokens), Limits(self._server, settings)
        self.hub = Hub(Readings(self.farm))
        self._threads, self._looks, self._pages, self._workers = (
            Turns(most, most - max(1, most // SPARED)) for most in (THREADS, LOOKS, PAGES, WORKERS)
        )
        self._decoders, self._shrinkers = Turns(PIXELS, PIXELS), Turns(SHRINKERS, SHRINKERS)
        self._unlimited = anyio.CapacityLimiter(float("inf"))
        self.uploading = 0
        """Bytes of uploads that are held in memory now."""
        self.receiving = Counter[str]()
        """Files of rows that are on their way, by owner."""

    def deliverer(self, patience: Patience) -> Deliverer:
        """What tells the endpoints of webhooks; `patience`: how long one is waited for."""
        return Deliverer(self.farm.ledger, Webhooks(self._server), Outbox(self._server, self.name), patience)

    async def warm(self) -> None:
        """Makes what is made once: two threads at once would make it twice."""
        await anyio.to_thread.run_sync(self._make)

    def _make(self) -> None:
        _ = self.farm.catalog, self.farm.ledger, self.farm.broker
        with suppress(FarmError):  # a store that is not configured is told to whoever asks for it
            _ = self.farm.inbox.client

    def close(self) -> None:
        """Closes the connections."""
        self.farm.close()
        self._server.close()

    async def ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, from a thread; a server that does not answer is Unavailable within 3 s of the call.

        Raises:
            Busy: all threads are busy.
            Unavailable: what `call` asks does not answer.
        """
        return await self._within(self._threads, 1, partial(_bounded, partial(call, *args, **kwargs)))

    async def recognise(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call`, which tells who asks, gives; raises as `ask` does."""
        return await self._within(self._looks, 1, partial(_bounded, partial(call, *args, **kwargs)))

    async def tell(self, call: Callable[P, BaseModel], *args: P.args, **kwargs: P.kwargs) -> Response:
        """The answer that tells what `call` gives: a long one, which is written as JSON in the thread, too.

        Raises:
            Busy: too many long answers are being written.
            Unavailable: what `call` asks does not answer.
        """
        told = partial(_bounded, lambda: call(*args, **kwargs).model_dump_json())
        return Response(await self._within(self._pages, 1, told), media_type="application/json")

    async def work(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, which may think for longer than a server is waited for, and bounds its own waits.

        Raises:
            Busy: all threads are busy.
            Unavailable: what `call` asks does not answer.
        """
        return await self._within(self._workers, 1, partial(thinking, partial(call, *args, **kwargs)))

    async def decode(self, pixels: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, which decodes an image of so many pixels: few at a time, for they take memory.

        Raises:
            Busy: too many images are being decoded.
        """
        queue_for(DECODER_S)
        cost = min(max(pixels, PIXELS // DECODERS), PIXELS)
        return await self._within(self._decoders, cost, partial(thinking, partial(call, *args, **kwargs)))

    async def shrink(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, which makes a picture small; a page full of those keeps no submit waiting.

        Raises:
            Busy: too many pictures are being made small.
        """
        queue_for(DECODER_S)
        return await self._within(self._shrinkers, 1, partial(thinking, partial(call, *args, **kwargs)))

    async def _within(self, turns: Turns, cost: int, call: Callable[[], T]) -> T:
        caller = caller_now()
        try:
            with queueing() as most_s, anyio.fail_after(most_s):
                await turns.take(caller, cost)
        except TimeoutError:
            raise Busy() from None
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._unlimited)
        finally:
            turns.give(caller, cost)


def _bounded(call: Callable[[], Any]) -> Any:
    with within(patience_s()):
        return call()


def desk_of(connection: HTTPConnection) -> Desk:
    """The desk of the app that the call came to."""
    return cast("Desk", connection.app.state.desk)
