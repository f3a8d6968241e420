"""Who settles what time alone makes due, and rings where work is ready and nobody looks?

The reconciler: lapsed leases, back-offs, deadlines, lost doorbells. Every supervisor runs one and every API process, so
that a farm whose workers are all away still ends what is overdue. A short leader key keeps it to one at a time; two at
once do no harm.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from farm.broker import Broker
from farm.errors import FarmError
from farm.ledger import Ledger
from farm.settings import Settings

JOIN_S = 5.0
"""How long the end of a round is waited for, seconds: a server that does not answer is given up after two tries."""
_log = structlog.get_logger(__name__)


def reconcile(settings: Settings, ledger: Ledger, broker: Broker, name: str, stop: threading.Event) -> None:
    """Rounds of the reconciler until `stop`. `name` is its own among those that may lead."""
    trouble = ""
    while not stop.wait(settings.tick_s):
        try:
            for state in ledger.reap(name) or ():
                if state.ready and state.live:
                    broker.ring_up_to(state.queue, min(state.ready, state.live))
            found = ""
        except Exception as error:  # noqa: BLE001 — without this thread no lease would ever lapse
            found = error.code if isinstance(error, FarmError) else type(error).__name__
        # Once when it begins and once when it is over: an outage has a round every second.
        if found and found != trouble:
            _log.warning("reconciler", error=found)
        elif trouble and not found:
            _log.info("reconciler_goes_on")
        trouble = found


@contextmanager
def reconciling(settings: Settings, ledger: Ledger, broker: Broker, name: str) -> Iterator[None]:
    """Runs the reconciler in a thread meanwhile."""
    stop = threading.Event()
    thread = threading.Thread(
        target=reconcile, args=(settings, ledger, broker, name, stop), name="reconciler", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(JOIN_S)
