"""How does what goes on beside the calls reach the synchronous farm?"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio.to_thread

from farm.client import PATIENCE_S
from farm.scripts import within

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` gives, from a thread that is left alone when the API stops.

    Raises:
        Unavailable: what `call` asks does not answer.
    """

    def bounded() -> T:
        with within(PATIENCE_S):
            return call(*args, **kwargs)

    return await anyio.to_thread.run_sync(bounded, abandon_on_cancel=True)
