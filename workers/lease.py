"""Is the running stage still ours, does it still move, and should it go on?

A lease is renewed only while the stage moves: the last progress mark must be younger than the limit of the current
phase. Progress alone would give up a healthy forty-second decode, a renewing thread alone would keep a hung kernel
for ever. Cancel, drain and a lost lease are read at every step and every change of phase, and leave the stage by an
exception: both upscalers know no other way to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from farm.errors import Unavailable
from farm.ledger import Ledger
from farm.records import Beat, Claim
from farm.settings import PhaseLimits, Settings
from workers.preview import Screen

Mark = Callable[[str, float], None]
"""Tells the supervisor that a phase goes on, and for how many seconds it may stay silent."""
LEAVE_S = 5.0
"""What a worker keeps of its grace for the step that runs, for giving back and for the exit, seconds; at most half."""


class StageStop(Exception):
    """The stage is left before its end; not a failure."""


class Cancelled(StageStop):
    """Nobody waits for the output any more."""


class Drained(StageStop):
    """The worker must go; the stage is given back uncharged."""


class Lost(StageStop):
    """Another worker may hold the stage; nothing may be written for it any more."""


class Drain:
    """Set by SIGTERM: no new claims, and a running stage has the grace left, less what its worker needs to leave."""

    def __init__(self, grace_s: float) -> None:
        self._stage_s, self._until = max(grace_s - LEAVE_S, grace_s / 2), float("inf")

    def start(self) -> None:
        """Begins the grace; a second call ends it."""
        began = self.asked
        self._until = time.monotonic() + (0 if began else self._stage_s)

    @property
    def asked(self) -> bool:
        """Whether the worker should claim nothing more."""
        return self._until != float("inf")

    @property
    def over(self) -> bool:
        """Whether a running stage must be given back now."""
        return time.monotonic() >= self._until


class Lease:
    """The hold on the claims of one pipeline call; also the `Report` that the stage writes to."""

    def __init__(self, ledger: Ledger, claims: Sequence[Claim], settings: Settings, drain: Drain, mark: Mark) -> None:
        self._ledger, self._claims, self._drain, self._mark = ledger, claims, drain, mark
        self.limits: PhaseLimits = settings.limits
        self._lock = threading.Lock()
        self._verdict: type[StageStop] | None = None
        self._reachable, self._over = True, False
        self.screen: Screen | None = None
        self._progress = ("fetch", 0, 0)
        self.phase("fetch")

    def phase(self, name: str) -> None:
        """A phase begins. Raises a `StageStop` when the stage should not go on."""
        _, step, steps = self._progress
        self._move(name, step, steps)
        self._obey()

    def step(self, step: int, steps: int) -> None:
        """Step `step` of `steps` is done; cancel is read from the ledger. Raises as `phase`."""
        self._move("step", step, steps)
        if self._reachable:
            self.renew()
        self._obey()

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        """Hands latents to the screen, where there is one."""
        if self.screen is not None:
            self.screen.show(seen, row)

    def renew(self) -> None:
        """Renews the lease if the stage moves; remembers what the ledger says of it."""
        with self._lock:
            phase, step, steps = self._progress
            if self._over or time.monotonic() - self._moved > self.limits.of(phase):
                return
            try:
                answers = self._ledger.beat(self._claims, phase, step, steps)
            except Unavailable:
                # The step goes on; the pulse thread tries again, so that steps don't each wait for a dead server.
                self._reachable = False
                return
        self._reachable = True
        if self.screen is not None:
            self.screen.watched = Beat.WATCHED in answers
        # A call stops early only when no member lives.
        if not {Beat.OK, Beat.WATCHED}.intersection(answers):
            self._verdict = Cancelled if Beat.CANCELLED in answers else Lost

    def hand_over(self) -> None:
        """Renews the lease no more: from here on the spool does."""
        with self._lock:
            self._over = True

    def _move(self, phase: str, step: int, steps: int) -> None:
        self._progress, self._moved = (phase, step, steps), time.monotonic()
        self._mark(phase, self.limits.of(phase))

    def _obey(self) -> None:
        if self._verdict is not None:
            raise self._verdict
        if self._drain.over:
            raise Drained
