"""How does what goes on in the event loop reach the synchronous farm, and how long does it wait for it?

A call has to be answered within 3 s where a server is in trouble, however often it asks: what it may wait is counted
from its last byte on, over all that it asks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import anyio.to_thread

from farm.client import PATIENCE_S
from farm.scripts import within

P = ParamSpec("P")
T = TypeVar("T")
ANSWER_S = 2.6
"""How long a call waits for servers and threads, all together, seconds. Source: design, trouble is told within 3 s."""
SERVER_S = 1.0
"""What of it is left to the servers: a call waits for its turn no longer than that some of it is left, seconds."""
_until: ContextVar[float] = ContextVar("until", default=math.inf)
"""When the call has to be answered, on the monotonic clock."""
_most_s: ContextVar[float] = ContextVar("most_s", default=PATIENCE_S)
"""How long one question may take, seconds."""
_turn_s: ContextVar[float | None] = ContextVar("turn_s", default=None)
"""How long a call waits for each of its turns where that time does not count, seconds."""
_caller: ContextVar[str] = ContextVar("caller", default="")
"""For whom this call has its turns."""


def call_for(caller: str) -> None:
    """Lets this call have its turns among the caller's from now on."""
    _caller.set(caller)


def caller_now() -> str:
    """For whom this call has its turns."""
    return _caller.get()


def queue_for(seconds: float) -> None:
    """Lets this call wait so long for each of its turns from now on, and the time in which servers answer stand still
    meanwhile."""
    _turn_s.set(seconds)


@contextmanager
def queueing() -> Iterator[float]:
    """How long the call may wait for its turn inside, seconds."""
    patient_s, since = _turn_s.get(), time.monotonic()
    yield max(0.0, patience_s() - SERVER_S) if patient_s is None else patient_s
    if patient_s is not None:
        _until.set(_until.get() + time.monotonic() - since)


def answer_within(seconds: float) -> None:
    """Lets all that this call asks from now on take so long together."""
    _until.set(time.monotonic() + seconds)


def patience_s() -> float:
    """How long the next question of this call may take, seconds."""
    return max(0.0, min(_most_s.get(), _until.get() - time.monotonic()))


def thinking(call: Callable[[], T]) -> T:
    """What `call` gives; while it thinks, the time that it may wait for servers does not run."""
    _most_s.set(patience_s())
    _until.set(math.inf)
    return call()


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` gives, from a thread that is left alone when the API stops.

    Raises:
        Unavailable: what `call` asks does not answer.
    """

    def bounded() -> T:
        with within(patience_s()):
            return call(*args, **kwargs)

    return await anyio.to_thread.run_sync(bounded, abandon_on_cancel=True)
