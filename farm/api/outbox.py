"""What is still to be delivered, and who delivers it?

In the ledger's Redis, so that a restart loses nothing: how far the event stream was read (`webhooks:position`), runs
that may have ended (`webhooks:runs`, by when to look), and for each endpoint what is due when (`webhook:<id>:due`) and
what it says (`webhook:<id>:waiting`). One API process at a time has the seat (`webhooks:leader`) to read and deliver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from farm.scripts import Server
from farm.webhooks import DATASETS

QUIET_MS = 2000
"""A run is looked at when none of its jobs has ended for so long, milliseconds: most end close together, and a run of
thousands of jobs is written in several parts."""


class Delivery(BaseModel):
    """One message on its way to one endpoint: its body, the same at each attempt, and how many attempts failed."""

    model_config = ConfigDict(frozen=True)

    body: str
    attempts: int = 0


@dataclass(frozen=True)
class Due:
    """What an endpoint is to get now, by message id; `waiting` in all; the next is due in `next_s` seconds, if any."""

    waiting: int
    next_s: float | None
    deliveries: Mapping[str, Delivery]


class Outbox:
    """What is to be delivered. Every call may raise Unavailable."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name

    def lead(self, hold_s: float) -> bool:
        """Whether this process has the seat, for `hold_s` seconds from now; 0 gives it back."""
        return bool(self._server.call("hook_seat", self._name, round(hold_s * 1000)))

    def position(self) -> str:
        """How far the event stream was read: the id of an event; "" where nothing ever was."""
        return str(self._server.run("GET", "webhooks:position") or "")

    def spread(
        self,
        deliveries: Sequence[tuple[str, str, str]] = (),
        position: str = "",
        runs: Sequence[str] = (),
        seen: Sequence[str] = (),
    ) -> bool:
        """Whether this process leads still, and all of this is noted: deliveries (endpoint, message, body), runs to
        look at soon, runs that were looked at, and how far the events were read."""
        args: list[str | int] = [self._name, position, QUIET_MS, len(deliveries)]
        for endpoint, message, body in deliveries:
            args += [endpoint, message, Delivery(body=body).model_dump_json()]
        return bool(self._server.call("hook_spread", *args, len(runs), *runs, len(seen), *seen))

    def due(self, endpoint: str, most: int) -> Due:
        """What the endpoint is to get now."""
        waiting, next_ms, *rows = self._server.call("hook_due", endpoint, most)
        pairs = zip(rows[::2], rows[1::2], strict=True)
        deliveries = {message: Delivery.model_validate_json(text) for message, text in pairs}
        return Due(waiting, None if next_ms < 0 else next_ms / 1000, deliveries)

    def done(self, endpoint: str, message: str) -> None:
        """Forgets a delivery: it has arrived, or is given up."""
        self._server.run("HDEL", f"webhook:{endpoint}:waiting", message)
        self._server.run("ZREM", f"webhook:{endpoint}:due", message)

    def later(self, endpoint: str, message: str, delivery: Delivery, pause_s: float) -> None:
        """Puts a delivery off."""
        self._server.call("hook_later", endpoint, message, delivery.model_dump_json(), round(pause_s * 1000))

    def datasets(self) -> dict[str, str]:
        """Word of datasets that are done, by name and try, as JSON."""
        return dict(self._server.run("HGETALL", DATASETS))

    def forget_datasets(self, names: Sequence[str]) -> None:
        """Forgets that word: it is among what is to be delivered."""
        self._server.run("HDEL", DATASETS, *names)

    def runs(self) -> list[str]:
        """Runs to look at now."""
        seconds, _ = self._server.run("TIME")
        return list(self._server.run("ZRANGEBYSCORE", "webhooks:runs", "-inf", f"{seconds}000"))
