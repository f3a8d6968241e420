"""What does every call work with, and how does it reach the synchronous farm in time?"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
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
from farm.api.threads import patience_s, thinking
from farm.client import PATIENCE_S, Farm
from farm.errors import FarmError, Unavailable
from farm.ledger import FAN
from farm.scripts import Server, within
from farm.settings import Settings
from farm.tokens import Tokens
from farm.webhooks import Webhooks

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 32
"""Calls of the farm at the same time. Each waits for a server most of its time."""
QUEUE_S = 0.4
"""How long a call waits for a thread, seconds."""
WORKERS = 8
"""Calls at the same time that may think for long. They are none of `THREADS`: others are answered meanwhile."""
DECODERS = 2
"""Images decoded at the same time for those who submit, and as many for thumbnails: each may take 4 bytes for every
pixel that the settings allow."""


class Desk:
    """The farm's client, what the API keeps beside the ledger, and the threads in which both are asked."""

    def __init__(self, settings: Settings, *, auth: bool = True, heartbeat_s: float = 15.0) -> None:
        self.settings, self.auth, self.heartbeat_s = settings, auth, heartbeat_s
        # Two containers may share a host's name and a pid.
        self.name = f"api-{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.farm = Farm(settings)
        self._server = Server(settings, FAN)
        self.tokens, self.kept = Tokens(self._server), Kept(self._server, settings.retention_s)
        self.sessions, self.limits = Sessions(self._server, self.tokens), Limits(self._server, settings)
        self.hub = Hub(Readings(self.farm))
        self._threads, self._workers = anyio.CapacityLimiter(THREADS), anyio.CapacityLimiter(WORKERS)
        self._decoders, self._shrinkers = anyio.CapacityLimiter(DECODERS), anyio.CapacityLimiter(DECODERS)
        self._unlimited = anyio.CapacityLimiter(float("inf"))
        self.uploading = 0
        """Bytes of uploads that are held in memory now."""

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
            Unavailable: all threads are busy, or what `call` asks does not answer.
        """
        return await self._within(self._threads, QUEUE_S, partial(_bounded, partial(call, *args, **kwargs)))

    async def tell(self, call: Callable[P, BaseModel], *args: P.args, **kwargs: P.kwargs) -> Response:
        """The answer that tells what `call` gives: a long one, which is written as JSON in the thread, too.

        Raises:
            Unavailable: all threads are busy, or what `call` asks does not answer.
        """
        return Response(await self.ask(lambda: call(*args, **kwargs).model_dump_json()), media_type="application/json")

    async def work(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, which may think for longer than a server is waited for, and bounds its own waits.

        Raises:
            Unavailable: all threads are busy, or what `call` asks does not answer.
        """
        return await self._within(self._workers, QUEUE_S, partial(thinking, partial(call, *args, **kwargs)))

    async def decode(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, which decodes an image: few at a time, for they take memory.

        Raises:
            Unavailable: too many images are being decoded.
        """
        return await self._within(self._decoders, PATIENCE_S, partial(thinking, partial(call, *args, **kwargs)))

    async def shrink(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives, which makes a picture small; a page full of those keeps no submit waiting.

        Raises:
            Unavailable: too many pictures are being made small.
        """
        return await self._within(self._shrinkers, PATIENCE_S, partial(thinking, partial(call, *args, **kwargs)))

    async def _within(self, limiter: anyio.CapacityLimiter, most_s: float, call: Callable[[], T]) -> T:
        borrower = object()
        try:
            with anyio.fail_after(min(most_s, patience_s())):
                await limiter.acquire_on_behalf_of(borrower)
        except TimeoutError:
            raise Unavailable("the farm's API has too many calls at once") from None
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._unlimited)
        finally:
            limiter.release_on_behalf_of(borrower)


def _bounded(call: Callable[[], Any]) -> Any:
    with within(patience_s()):
        return call()


def desk_of(connection: HTTPConnection) -> Desk:
    """The desk of the app that the call came to."""
    return cast("Desk", connection.app.state.desk)
