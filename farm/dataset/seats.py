"""Which process feeds which dataset?

One at a time: who holds `dataset:<name>:feeder` in Redis, which runs out `LEASE_S` after its holder last said so. Two
at once do no harm (see `farm.dataset.feeding`), they only do the work twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from farm.errors import Unavailable
from farm.scripts import Server
from farm.settings import Settings

ANY = "*"
"""In this seat sits who feeds all datasets that are to run."""
LEASE_S = 15.0
"""A feeder that was not heard of for so long is taken for dead."""


class Seats:
    """Who feeds which dataset. What this process holds is renewed by a thread, as long as `held` is open."""

    def __init__(self, settings: Settings) -> None:
        self._server, self._me = Server(settings), secrets.token_hex(16)
        self._mine: set[str] = set()
        self._renewed: dict[str, float] = {}
        self._leaving = threading.Lock()
        """Whoever has it is alone in leaving, or in taking again what was not left."""

    def take(self, name: str) -> bool:
        """Whether this process feeds the dataset, for `LEASE_S` from now on. Raises Unavailable."""
        taken = self._server.call("seat", _key(name), self._me, round(LEASE_S * 1000)) == 1
        (self._mine.add if taken else self._mine.discard)(name)
        self._renewed[name] = time.monotonic()
        return taken

    def holder(self, name: str) -> str:
        """Who feeds the dataset; "" for nobody. Raises Unavailable."""
        return str(self._server.run("GET", _key(name)) or "")

    def close(self) -> None:
        """Closes the connection."""
        self._server.close()

    def leave(self, name: str) -> None:
        """Lets another process feed it."""
        with self._leaving:
            self._mine.discard(name)
            self._server.call("seat", _key(name), self._me, 0)

    def keeps(self, name: str) -> bool:
        """Whether this process still feeds the dataset; who was held up for long asks. Raises Unavailable."""
        if time.monotonic() - self._renewed.get(name, 0.0) > LEASE_S / 2:
            return self.take(name)
        return name in self._mine

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renews what is held meanwhile, and gives it back at the end."""
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(stop,), name="seats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(LEASE_S)
            for name in list(self._mine):
                try:
                    self.leave(name)
                except Unavailable:
                    break
            self.close()

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(LEASE_S / 3):
            for name in list(self._mine):
                try:
                    with self._leaving:
                        if name in self._mine:
                            self.take(name)
                except Unavailable:
                    break


def _key(name: str) -> str:
    return f"dataset:{name}:feeder"
