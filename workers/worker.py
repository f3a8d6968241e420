"""What does a worker's child do between two doorbells: claim, make (`Maker`), deliver (`Delivery`)?

A child owns one device and the pipelines of its queues. It loads them before it claims anything, then listens for
doorbells as a Celery worker of pool solo. One doorbell, one claim. Its supervisor starts it, watches its progress
marks and starts it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import platform
import signal
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from celery.platforms import SecurityWarning
from celery.signals import worker_ready, worker_shutting_down

from farm.bell import Connection
from farm.broker import RING, Broker, make_app
from farm.catalog import Catalog
from farm.errors import BadBlob, Failure, FarmError, StageFailed, StaleToken, Unavailable
from farm.ledger import Ledger
from farm.log import log_to_stderr
from farm.parent import EX_TEMPFAIL, die_with_parent
from farm.records import Claim
from farm.settings import Settings
from farm.store import Store
from workers.delivery import Delivery
from workers.judge import Judge
from workers.lease import Cancelled, Drain, Drained, Lease, Lost, Mark
from workers.loaded import Loaded
from workers.making import Maker, Work, recipes_of
from workers.spool import Spool

_log = structlog.get_logger(__name__)
PATIENT = 3
"""A deaf child has so many times `deaf_s` for connecting anew: Celery first waits for what hangs on the old link."""


class Worker:
    """Claims and runs the stages of `queues` on one device."""

    def __init__(self, settings: Settings, name: str, queues: Sequence[str], mark: Mark) -> None:
        self.settings, self.name, self.queues, self.mark = settings, name, list(queues), mark
        self.boot = uuid.uuid4().hex
        self.catalog, self.ledger, self.store = Catalog.load(settings), Ledger(settings), Store(settings)
        self.broker, self.drain = Broker(settings), Drain(settings.drain_grace_s)
        self.spool = Spool(settings, self.boot, self.ledger, self.store, self.drain, self.broker.ring)
        self.loaded = Loaded(settings, name, self.catalog, mark)
        self.judge = Judge(settings, self.catalog, self.loaded)
        self.maker = Maker(settings, self.catalog, self.ledger, self.store, self.loaded, self.judge)
        self.delivery = Delivery(settings, self.ledger, self.store, self.spool)
        self._consumer: Any = None
        self.running: Lease | None = None
        self.heard = time.monotonic()
        self._lock = threading.Lock()

    def load(self) -> None:
        """Loads the pipeline of every queue, and the safety checker. Raises what `Stage.load` raises."""
        self.loaded.load(self.queues)
        self.judge.load()

    # ---------------------------------------------------------------------------------------- one doorbell

    def answer(self) -> None:
        """One doorbell: claims what there is and runs it. Never raises for what a job did."""
        self.heard = time.monotonic()
        # Without room for another result nothing is claimed; the reconciler rings again.
        if self.drain.asked or self.spool.state:
            return
        try:
            claims, more = self.ledger.claim(self.queues, self.name, self.boot, limit=1, spooled=self.spool.tokens())
        except Unavailable as error:
            _log.warning("claim_failed", error=error.code)
            return
        self.broker.ring(more)
        if claims:
            try:
                self.broker.ring(self._run(claims))
            finally:
                with self._lock:
                    self.running = None
                    self.heard = time.monotonic()
                    self.mark("idle", self.settings.limits.idle_s)
            if self.loaded.leave:
                self.broker.close()
                os._exit(EX_TEMPFAIL)

    def _run(self, claims: Sequence[Claim]) -> set[str]:
        """Runs `claims` in one pipeline call and settles them; the queues that have work now."""
        began = time.monotonic()
        for claim in claims:
            _log.info("claimed", queue=claim.queue, stage=claim.stage, jobs=claim.waiters[:3], attempt=claim.attempt)
        try:
            with self._lock:
                lease = self.running = Lease(self.ledger, claims, self.settings, self.drain, self.mark)
            try:
                if claims[0].publish:
                    for claim in claims:
                        # It may be the middle of another chain, which nobody has judged.
                        self.judge.check_policy(recipes_of(claim)[-1])
                    ready = self.delivery.publish(claims, lease)
                else:
                    ready = self.delivery.deliver(self.maker.make([Work.of(claim) for claim in claims], lease), lease)
            except BadBlob as error:
                _log.warning("input_lost", exec=claims[0].exec, error=error.message)
                return (
                    self.ledger.rewind(claims[0])
                    if len(claims) == 1
                    else self.ledger.fail(claims, Failure.TRANSIENT, error.code, error.message)
                )
            _log.info("finished", queue=claims[0].queue, seconds=round(time.monotonic() - began, 3))
            return ready
        except (Cancelled, Drained) as stop:
            _log.info("stopped", queue=claims[0].queue, why=type(stop).__name__.lower())
            return self._settle(lambda: self.ledger.release(claims))
        except (Lost, StaleToken):
            _log.warning("lease_lost", queue=claims[0].queue)
            return set()
        except Exception as error:  # noqa: BLE001 — every failure is classified and charged, none is swallowed
            return self._failed(claims, error)

    # ---------------------------------------------------------------------------------------- when it fails

    def _failed(self, claims: Sequence[Claim], error: Exception) -> set[str]:
        """Classifies `error` and charges it; the queues that have work now."""
        if isinstance(error, StageFailed):
            failure, code, message = error.failure, error.code, error.message
        elif isinstance(error, Unavailable):
            failure, code, message = Failure.TRANSIENT, "transient", error.message
        else:
            failure, code, message = Failure.CRASH, "internal", f"{type(error).__name__}: {str(error)[:300]}"
        _log.error(
            "stage_failed", queue=claims[0].queue, failure=failure.value, code=code, exc_info=failure is Failure.CRASH
        )
        log = "" if isinstance(error, FarmError) else "".join(traceback.format_exception(error))
        ready = self._settle(lambda: self.ledger.fail(claims, failure, code, message, log))
        # After a CUDA error the context is lost for good, whatever makes everything fail may be, and a pipeline that
        # went to the host's memory and back may lie in both: only a new process heals it.
        self.loaded.blame(message)
        lost = failure is Failure.OOM and any(claim.oom for claim in claims)
        self.loaded.leave = self.loaded.leave or lost or self._is_isolated()
        return ready

    def _is_isolated(self) -> bool:
        try:
            return self.ledger.isolated(self.name) > 0
        except Unavailable:
            return False

    def _settle(self, call: Any) -> set[str]:
        """`call`, which settles claims; if the ledger is away or gave them to another, they are not ours to settle."""
        try:
            ready: set[str] = call()
        except (StaleToken, Unavailable) as error:
            _log.warning("not_settled", error=error.code)
            return set()
        return ready

    # ---------------------------------------------------------------------------------------- the pulse

    def pulse(self, stop: threading.Event) -> None:
        """Renews the lease and the registry entry, shows the supervisor a sign of life, and cures deafness.

        Deaf is an idle child whose doorbells lie unheard for `deaf_s`: what counts is that they arrive, not that the
        consumer polls, which a half-open connection lets it do for ever. A healthy one hears within a second, so 5 s
        are enough, where the design's 30 s were for a look at the polling. It first connects anew, which keeps the
        loaded pipelines; one that is still deaf after that leaves, to be started again.
        """
        period = min(self.settings.beat_s, 1.0)
        registered, shown, silent_since, hung_up = 0.0, "", None, False
        while not stop.is_set():
            now, lease = time.monotonic(), self.running
            try:
                if lease is not None:
                    lease.renew()
                else:
                    with self._lock:
                        if self.running is None:
                            self.mark("idle", self.settings.limits.idle_s)
                state = self.spool.state or ("busy" if lease is not None else "idle")
                state = "draining" if self.drain.asked else state
                if state != shown or now - registered >= self.settings.beat_s:
                    self._register(state)
                    registered, shown = now, state
                # All are looked at, for that is what mends a list's key that is none.
                unheard = any([self.broker.outstanding(queue) for queue in self.queues])  # noqa: C419
                if not unheard or lease is not None or self.drain.asked:
                    silent_since, hung_up = None, False
                    continue
                silent_since = max(silent_since or now, self.heard)
                if now - silent_since > self.settings.deaf_s * (PATIENT if hung_up else 1):
                    _log.error("deaf", queues=self.queues, reconnects=not hung_up)
                    if hung_up:
                        os._exit(EX_TEMPFAIL)
                    self.heard, hung_up = time.monotonic(), True
                    with suppress(AttributeError):  # it has no connection now: it is making one
                        self._consumer.connection.transport.hang_up()
            except Exception as error:  # noqa: BLE001 — a server is away; the pulse goes on
                _log.debug("pulse", error=type(error).__name__)
                silent_since = None
            finally:
                stop.wait(period)

    def _register(self, state: str) -> None:
        info = {"host": platform.node(), "pid": str(os.getpid()), **self.loaded.told()}
        self.ledger.register(self.name, self.boot, self.queues, state, info)

    def _listens(self, sender: Any, **_: Any) -> None:
        self._consumer = sender

    def serve(self) -> None:
        """Registers, then answers doorbells until SIGTERM."""
        app = make_app(self.settings, self.queues)
        app.amqp.Connection = Connection
        app.task(name=RING, ignore_result=True)(self.answer)
        worker_shutting_down.connect(lambda **_: self.drain.start(), weak=False)
        worker_ready.connect(self._listens, weak=False)
        stop = threading.Event()
        thread = threading.Thread(target=self.pulse, args=(stop,), name="pulse", daemon=True)
        thread.start()
        # What was ready before this child was there has no doorbell yet, perhaps.
        self.broker.ring(self.queues)
        options = [
            "--quiet",
            "worker",
            "--pool=solo",
            "--concurrency=1",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
        app.worker_main([*options, "--loglevel=WARNING", f"--hostname={self.name}@%h"])
        self.spool.close()
        stop.set()
        with suppress(Unavailable):
            self.ledger.unregister(self.name, self.boot)
        self.broker.close()


def main(argv: Sequence[str] | None = None) -> None:
    """The child's process. Started by the supervisor; not a command for people."""
    parser = argparse.ArgumentParser(prog="workers.worker", description=main.__doc__)
    parser.add_argument("--name", required=True, help="the worker's name in the registry")
    parser.add_argument("--queues", required=True, help="queues it serves, separated by commas")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor")
    parser.add_argument("--marks", type=int, required=True, help="file descriptor for progress marks")
    given = parser.parse_args(argv)
    die_with_parent(given.parent, signal.SIGKILL)
    # The stage runs in this thread alone; the others would push what matters out of the last lines.
    faulthandler.enable(all_threads=False)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of Celery, to whoever is root in a container
    settings = Settings.load()
    log_to_stderr(settings.log_level)
    os.set_blocking(given.marks, False)
    worker = Worker(
        settings, given.name, given.queues.split(","), lambda phase, limit_s: _tell(given.marks, phase, limit_s)
    )
    _tell(given.marks, "boot", worker.boot)
    # Before the pipelines: what the child's last life finished should not lapse while they load.
    worker.spool.start()
    worker.load()
    worker.serve()


def _tell(marks: int, word: str, value: object) -> None:
    """One line to the supervisor. A full pipe means that it is frozen: the mark is dropped, the stage goes on."""
    with suppress(BlockingIOError):
        os.write(marks, f"{word} {value}\n".encode())


if __name__ == "__main__":
    main()
