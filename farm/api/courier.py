"""How does what waits for one endpoint get there, and when again where the receiver does not take it?

Each endpoint has a courier of its own, so that a slow one holds up nobody else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import httpx2
import structlog

from farm.api.outbox import Delivery, Outbox
from farm.api.posting import GONE, TIMEOUT_S, post
from farm.api.threads import in_thread
from farm.webhooks import Endpoint, Health, Webhooks, now_ms

LOOK_S = 1.0
"""Longest pause between two looks for what is due, seconds."""
AT_ONCE = 4
"""Messages on their way to one endpoint at the same time."""
MAX_WAITING = 50_000
"""Messages that may wait for one endpoint: some 40 MB of Redis. One that has more is disabled."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a receiver is waited for. A message is given up after the last pause, an endpoint is disabled when it
    has taken nothing for `disable_s`; all in seconds. Source: Standard Webhooks, its schedule of retries."""

    pauses_s: Sequence[float] = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    timeout_s: float = TIMEOUT_S
    disable_s: float = 3 * 86400


class Courier:
    """Delivers to one endpoint, until its `scope` is cancelled."""

    def __init__(
        self, endpoint: Endpoint, health: Health, webhooks: Webhooks, outbox: Outbox, patience: Patience
    ) -> None:
        self.endpoint, self.scope = endpoint, anyio.CancelScope()
        self._health, self._webhooks, self._outbox, self._patience = health, webhooks, outbox, patience
        self._awake = anyio.Event()

    def wake(self) -> None:
        """Lets the courier look for what is due."""
        self._awake.set()

    async def turn(self, client: httpx2.AsyncClient) -> None:
        """Sends what is due, several at once, until something goes wrong; a slow message holds up no other."""
        under_way = set[str]()

        async def deliver(message: str, delivery: Delivery) -> None:
            await self._deliver(client, message, delivery)
            under_way.discard(message)
            self.wake()

        async with anyio.create_task_group() as tasks:
            while True:
                self._awake = anyio.Event()
                found = await in_thread(self._outbox.due, self.endpoint.id, AT_ONCE + len(under_way))
                if found.waiting > MAX_WAITING:
                    await self._disable(f"more than {MAX_WAITING} messages waited")
                fresh = [message for message in found.deliveries if message not in under_way]
                for message in fresh[: AT_ONCE - len(under_way)]:
                    under_way.add(message)
                    tasks.start_soon(deliver, message, found.deliveries[message])
                # What is due already is under way, or is when this courier is woken.
                with anyio.move_on_after(min(LOOK_S, found.next_s or LOOK_S)):
                    await self._awake.wait()

    async def _deliver(self, client: httpx2.AsyncClient, message: str, delivery: Delivery) -> None:
        name, pauses = self.endpoint.id, self._patience.pauses_s
        attempt = await post(client, self.endpoint, message, delivery.body, self._patience.timeout_s)
        now, over = now_ms(), attempt.arrived or delivery.attempts >= len(pauses)
        failing_since = 0 if attempt.arrived else self._health.failing_since_ms or now
        given_up = self._health.given_up + (over and not attempt.arrived)
        changed = {"last_ms": now, "said": attempt.said, "failing_since_ms": failing_since, "given_up": given_up}
        self._health = self._health.model_copy(update=changed)
        if over:
            if not attempt.arrived:
                _log.warning("webhook_given_up", endpoint=name, message=message, said=attempt.said)
            await in_thread(self._outbox.done, name, message)
        else:
            # A little apart, so that what failed together does not come again together.
            pause_s = pauses[delivery.attempts] * random.uniform(1, 1.1)  # noqa: S311
            later = delivery.model_copy(update={"attempts": delivery.attempts + 1})
            await in_thread(self._outbox.later, name, message, later, pause_s)
        await in_thread(self._webhooks.note, name, self._health)
        if attempt.status == GONE:
            await self._disable("it answered 410: gone")
        elif failing_since and now - failing_since > self._patience.disable_s * 1000:
            await self._disable("it took nothing for days")

    async def _disable(self, why: str) -> None:
        """Sends no more to the endpoint, and forgets what waits for it."""
        _log.warning("webhook_disabled", endpoint=self.endpoint.id, why=why)
        self._health = self._health.model_copy(update={"disabled_ms": now_ms(), "why": why})
        await in_thread(self._webhooks.note, self.endpoint.id, self._health)
        await in_thread(self._webhooks.drop, self.endpoint.id)
        self.scope.cancel()
