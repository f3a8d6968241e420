"""Who tells the endpoints of `farm webhook` what has ended, and when again where one does not listen?

One API process at a time. It follows the ledger's event stream, notes what each endpoint is to get together with how
far it has read, and only then sends: what ended while no API ran is told by the next one. A message may arrive twice,
with the same id; none is lost while its endpoint is not disabled.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio
import structlog

from farm.api.courier import Courier, Patience
from farm.api.messages import Message, of_dataset, of_job, of_run
from farm.api.outbox import Outbox
from farm.api.posting import open_client
from farm.api.threads import in_thread
from farm.errors import FarmError, NotFound
from farm.ledger import Ledger
from farm.records import ENDED, place_of
from farm.webhooks import Endpoint, Health, Webhooks

HOLD_S = 5.0
"""How long the seat of a deliverer that has died stays taken, seconds."""
LOOK_S = 1.0
"""Pause between two looks for endpoints, seconds."""
CHUNK = 50
"""Jobs that are read and noted in one go."""
BLOCK_MS = 1000
"""How long one look for further events blocks, milliseconds; shorter than the ledger's socket timeout."""
MANY = 1000
"""Events that one look brings at most: with so many, some may be gone unseen."""
GATHER_S = 0.2
"""Pause between two looks for events, seconds: what happens meanwhile is told together."""
_log = structlog.get_logger(__name__)


class Deliverer:
    """Follows the ledger for the webhooks, as long as it has the seat."""

    def __init__(self, ledger: Ledger, webhooks: Webhooks, outbox: Outbox, patience: Patience) -> None:
        self._ledger, self._webhooks, self._outbox, self._patience = ledger, webhooks, outbox, patience
        self._couriers: dict[str, Courier] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Waits for the seat and delivers, until it is cancelled; then somebody else may have the seat at once."""
        try:
            while True:
                if await self._has_seat(False):
                    await self._lead()
                await anyio.sleep(LOOK_S)
        finally:
            with anyio.CancelScope(shield=True), suppress(FarmError):
                await in_thread(self._outbox.lead, 0)

    async def _lead(self) -> None:
        """Delivers until another has the seat."""
        async with open_client() as client, anyio.create_task_group() as tasks:

            async def run(courier: Courier) -> None:
                with courier.scope:
                    await self._forever(lambda: courier.turn(client))

            tasks.start_soon(self._forever, lambda: self._follow(lambda courier: tasks.start_soon(run, courier)))
            while await self._has_seat(True):
                await anyio.sleep(HOLD_S / 3)
            tasks.cancel_scope.cancel()
        self._couriers.clear()

    async def _has_seat(self, had: bool) -> bool:
        """Whether this process leads; while nobody can say, as before: who notes something is asked once more."""
        try:
            return await in_thread(self._outbox.lead, HOLD_S)
        except FarmError:
            return had

    async def _forever(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Turns, whatever they meet; an outage is told once."""
        while True:
            try:
                await turn()
                self._trouble = ""
            except Exception as error:  # noqa: BLE001 — without this task nobody would hear of anything any more
                found = _name_of(error)
                if found != self._trouble:
                    _log.warning("webhooks", error=found)
                self._trouble = found
                await anyio.sleep(LOOK_S)

    async def _follow(self, start: Callable[[Courier], object]) -> None:
        """One look at the endpoints, at what has ended since the last one, and at runs."""
        # Before the endpoints: one that is made in between has its own beginning after this place.
        newest = await in_thread(self._ledger.last_event)
        endpoints, health = await in_thread(self._webhooks.all), await in_thread(self._webhooks.health)
        active = [one for one in endpoints if not health.get(one.id, Health()).disabled_ms]
        self._open_couriers(active, health, start)
        if not active:
            await in_thread(self._outbox.spread, position=newest)
            await self._look_at_datasets(active)
            await anyio.sleep(LOOK_S)
            return
        position = await in_thread(self._outbox.position) or f"{min(one.created_ms for one in active)}-0"
        rows = await in_thread(self._ledger.events, None, position, BLOCK_MS)
        if len(rows) >= MANY and not await in_thread(self._ledger.keeps, position):
            await self._recover(active, position)
        else:
            ends = [(row.job, row.state, row.code, row.t) for row in rows if row.type in ENDED]
            for start_at in range(0, len(ends), CHUNK):
                await self._tell(active, ends[start_at : start_at + CHUNK])
            if rows:
                await in_thread(self._outbox.spread, position=rows[-1].id)
        await self._look_at_runs(active)
        await self._look_at_datasets(active)
        await anyio.sleep(GATHER_S)

    async def _recover(self, active: Sequence[Endpoint], position: str) -> None:
        """Tells of what has ended since `position`, where the stream does not reach back so far."""
        newest = await in_thread(self._ledger.last_event)
        ended = await in_thread(self._ledger.ended, place_of(position)[0])
        for start_at in range(0, len(ended), CHUNK):
            await self._tell(active, [(job, "", "", 0) for job in ended[start_at : start_at + CHUNK]])
        await in_thread(self._outbox.spread, position=newest)

    async def _tell(self, active: Sequence[Endpoint], ends: Sequence[tuple[str, str, str, int]]) -> None:
        """Notes messages about jobs that have ended: job, state, code and time, those of its record where it is ""."""
        topics = {topic for endpoint in active for topic in endpoint.events}
        asked = [end for end in ends if not end[1] or f"job.{end[1]}" in topics or "run.done" in topics]
        records = {record.job: record for record in await in_thread(self._ledger.read, [job for job, *_ in asked])}
        messages, runs = [], dict[str, None]()
        for job, state, code, at_ms in asked:
            if (record := records.get(job)) is None or (not state and record.state not in ENDED):
                continue
            if record.collected:
                continue  # a sample: its dataset is told of as a whole
            end = (state, code, at_ms) if state else (record.state, record.code, record.ended_ms)
            messages.append(of_job(record, *end))
            if record.run:
                runs[record.run] = None
        await self._note(active, messages, list(runs) if "run.done" in topics else [])

    async def _look_at_runs(self, active: Sequence[Endpoint]) -> None:
        """Tells of runs whose jobs have all ended."""
        for run in await in_thread(self._outbox.runs):
            messages = []
            with suppress(NotFound):  # all of its jobs have been deleted
                record = await in_thread(self._ledger.run, run)
                messages = [of_run(record)] if record.ended_ms else []
            await self._note(active, messages, seen=[run])

    async def _look_at_datasets(self, active: Sequence[Endpoint]) -> None:
        """Tells of datasets of which every sample was tried."""
        found = await in_thread(self._outbox.datasets)
        # Who leads no more has noted nothing: the word is the next one's.
        if found and await self._note(active, [of_dataset(json.loads(text)) for text in found.values()]):
            await in_thread(self._outbox.forget_datasets, list(found))

    async def _note(
        self,
        active: Sequence[Endpoint],
        messages: Sequence[Message],
        runs: Sequence[str] = (),
        seen: Sequence[str] = (),
    ) -> bool:
        """Whether this process leads, and the messages are noted for the endpoints that want them; wakes couriers."""
        deliveries = [
            (endpoint.id, message.id, message.body)
            for message in messages
            for endpoint in active
            if endpoint.wants(message.topic, message.owner, message.at_ms)
        ]
        if not await in_thread(self._outbox.spread, deliveries, runs=runs, seen=seen):
            return False
        for name in {endpoint for endpoint, *_ in deliveries}:
            self._couriers[name].wake()
        return True

    def _open_couriers(
        self, active: Sequence[Endpoint], health: dict[str, Health], start: Callable[[Courier], object]
    ) -> None:
        """A courier for each of the endpoints, and none for others."""
        for name in self._couriers.keys() - {one.id for one in active}:
            self._couriers.pop(name).scope.cancel()
        for endpoint in active:
            known = self._couriers.get(endpoint.id)
            if known is not None and not known.scope.cancel_called:
                known.endpoint = endpoint  # its secrets may be others now
                continue
            fares = health.get(endpoint.id, Health())
            courier = Courier(endpoint, fares, self._webhooks, self._outbox, self._patience)
            self._couriers[endpoint.id] = courier
            start(courier)


def _name_of(error: Exception) -> str:
    """What the log says of an error; of several at once, the first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error.code if isinstance(error, FarmError) else type(error).__name__
