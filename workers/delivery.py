"""How does a result get to the farm, or to the disk where the servers are away?

Uploaded, then committed. A commit that was answered is the end of it; until then the child brings the result, and after
`PATIENCE_S` the spool.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

import stamina
import structlog

from farm.errors import Unavailable
from farm.ledger import Ledger
from farm.records import Claim, Commit
from farm.settings import Settings
from farm.store import Store
from workers.lease import Lease
from workers.result import Result, commit, publish, upload
from workers.spool import Full, Spool

_log = structlog.get_logger(__name__)
T = TypeVar("T")
PATIENCE_S = 10.0
"""How long a child waits for one upload before it lets the spool go on with it, seconds: it costs the device's time."""


class Delivery:
    """Brings what one child made to the store and the ledger."""

    def __init__(self, settings: Settings, ledger: Ledger, store: Store, spool: Spool) -> None:
        self._settings, self._ledger, self._store, self._spool = settings, ledger, store, spool

    def deliver(self, results: Sequence[Result], lease: Lease) -> set[str]:
        """Uploads and commits `results`, or leaves them to the spool; the queues that have work now.

        Where neither the servers nor the disk take them, it tries one after the other until one does.
        """
        try:
            for attempt in stamina.retry_context(on=Full, attempts=None, timeout=None, wait_max=0.5):
                with attempt:
                    if attempt.num > 1 or not self._spool.away:
                        try:
                            return self._commit(results, lease)
                        except Unavailable as error:
                            _log.warning("not_delivered", error=error.message)
                    # Told before the file is there: a child that dies now is no crash of the stage.
                    lease.phase("spool")
                    lease.renew()
                    self._spool.put(results)
                    lease.hand_over()
                    return set()
            raise AssertionError("the last try returns or raises")
        finally:
            self._spool.refused = ""

    def _commit(self, results: Sequence[Result], lease: Lease) -> set[str]:
        """Uploads and commits `results`; the queues made ready.

        Raises:
            Unavailable: the store or the ledger is away, or the upload took too long.
        """
        uploaded: Future[list[Commit]] = Future()
        threading.Thread(target=_upload_all, args=(self._store, results, uploaded), daemon=True).start()
        until = time.monotonic() + min(PATIENCE_S, self._settings.limits.upload_s)
        while not uploaded.done():
            lease.phase("upload")
            if time.monotonic() > until:
                # The thread goes on: what it still writes is what the spool writes too.
                raise Unavailable("the store takes too long")
            wait([uploaded], timeout=0.5)
        taken, ready = commit(self._ledger, self._store, uploaded.result())
        if not all(taken):
            _log.warning("not_taken", queue=results[0].claim.queue, outputs=taken.count(False))
        return ready

    def publish(self, claims: Sequence[Claim], lease: Lease) -> set[str]:
        """Writes and commits the readable results of outputs that are in the store already; the queues made ready.

        Raises:
            BadBlob: an output is gone or corrupt.
            Unavailable: a server is away for as long as an upload may take.
        """
        commits = [_again(lease, partial(self._published, claim)) for claim in claims]
        return _again(lease, lambda: commit(self._ledger, self._store, commits))[1]

    def _published(self, claim: Claim) -> Commit:
        output = json.loads(claim.input)
        return publish(self._store, claim, output, self._store.get_blob(output["blob"], max_bytes=output["bytes"]))


def _upload_all(store: Store, results: Sequence[Result], uploaded: Future[list[Commit]]) -> None:
    """Settles `uploaded` with the commits that name what the store has now, or with what went wrong."""
    try:
        uploaded.set_result([upload(store, result) for result in results])
    except Exception as error:  # noqa: BLE001 — whoever waits for it raises it
        uploaded.set_exception(error)


def _again(lease: Lease, call: Callable[[], T]) -> T:
    """`call`, again while a server is away. Each try is a sign of life, and heeds a cancel or drain.

    Raises:
        Unavailable: the server was away for as long as an upload may take; the stage is tried again later.
    """
    for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=lease.limits.upload_s, wait_max=2):
        with attempt:
            lease.phase("upload")
            return call()
    raise AssertionError("the last try returns or raises")
