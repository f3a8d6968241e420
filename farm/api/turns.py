"""Whose call has its turn next?

So much is done at the same time. Where more is asked for, the next turn is the caller's who has the least under way, so
that nobody waits for all that another has asked for; and one caller has no more than a share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import anyio


@dataclass(eq=False)
class Waiting:
    """A call that waits for its turn."""

    caller: str
    cost: int
    turn: anyio.Event = field(default_factory=anyio.Event)


class Turns:
    """Turns that cost at most `most` together, and those of one caller `each`; one alone may always cost more."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._held = Counter[str]()
        self._waiting = list[Waiting]()

    async def take(self, caller: str, cost: int = 1) -> None:
        """Waits for a turn of the caller's, which `give` ends; at most `most` is its cost."""
        one = Waiting(caller, cost)
        self._waiting.append(one)
        self._go_on()
        if one.turn.is_set():
            return
        try:
            await one.turn.wait()
        except BaseException:  # cancelled, perhaps when it had just been given
            if one.turn.is_set():
                self.give(caller, cost)
            else:
                self._waiting.remove(one)
                self._go_on()
            raise

    def give(self, caller: str, cost: int = 1) -> None:
        """Ends a turn."""
        self._held[caller] -= cost
        if not self._held[caller]:
            del self._held[caller]
        self._go_on()

    def _go_on(self) -> None:
        """Gives turns as long as there are any to give."""
        while self._held.total() < self._most:
            one = min(filter(self._may, self._waiting), key=lambda one: self._held[one.caller], default=None)
            # Nobody passes one that is too large for what is left: it would wait for ever.
            if one is None or self._held.total() + one.cost > self._most:
                return
            self._waiting.remove(one)
            self._held[one.caller] += one.cost
            one.turn.set()

    def _may(self, one: Waiting) -> bool:
        held = self._held[one.caller]
        return not held or held + one.cost <= self._each
