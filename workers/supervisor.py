"""Who keeps the workers alive?

A supervisor starts one child per slot, kills one that makes no progress within the limit of its phase, reports each
death to the ledger (so that its stage runs elsewhere at once) and starts the child again. It runs the reconciler,
forwards SIGTERM as a drain, and never imports torch. Its children die with it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import queue
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

import structlog

from farm.broker import Broker
from farm.errors import FarmError
from farm.ledger import Ledger
from farm.log import log_to_stderr
from farm.parent import die_with_parent
from farm.reconcile import reconciling
from farm.settings import Settings

_log = structlog.get_logger(__name__)
EX_CONFIG = 78
"""The exit status where a setting is wrong. Source: sysexits.h."""
RESTART_MAX_S = 30.0
"""Longest pause before a child that dies before it is ready is started again, seconds."""
KILLED_S = 5.0
"""How long the end of a killed child is waited for, seconds."""
LAST_LINES, SAID_BYTES = 50, 1 << 16
"""Lines of a child's output, and bytes of it, that are kept for the report of its death."""
PAUSED_S = 2.0
"""A supervisor whose turn took longer was paused itself, and its children with it, seconds."""
PIPE_BYTES = 1 << 20
"""What a child may write while its supervisor is frozen, before its own writes wait. Source: pipe(7), pipe-max-size."""


@dataclass
class Slot:
    """One child and what is known of it."""

    name: str
    queues: str
    process: subprocess.Popen[bytes] | None = None
    marks: int = -1
    tail: bytes = b""
    output: int = -1
    said: bytes = b""
    boot: str = ""
    ready: bool = False
    phase: str = "start"
    deadline: float = float("inf")
    started: float = 0.0
    deaths: int = 0
    start_at: float = 0.0
    killed_for: str = field(default="")


class Supervisor:
    """Runs one child per slot until it is told to stop. A slot is a comma-separated list of queues."""

    def __init__(self, settings: Settings, name: str, slots: Sequence[str]) -> None:
        self.settings, self.name = settings, name
        self.slots = [Slot(f"{name}-{index}", queues) for index, queues in enumerate(slots)]
        self.ledger, self.broker = Ledger(settings), Broker(settings)
        self.stopping = threading.Event()
        self._words: queue.Queue[bytes] = queue.Queue(1000)
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._selector.register(self._wake, selectors.EVENT_READ, partial(os.read, self._wake, 1024))

    def run(self) -> None:
        """Starts the children and watches them; returns after `stop` when all are gone."""
        with reconciling(self.settings, self.ledger, self.broker, self.name):
            self._run()
        self.broker.close()

    def _run(self) -> None:
        speaker = threading.Thread(target=self._pass_on, daemon=True)
        speaker.start()
        turn = time.monotonic()
        while not self.stopping.is_set():
            paused_s, turn = time.monotonic() - turn, time.monotonic()
            for slot in self.slots:
                if paused_s > PAUSED_S:
                    slot.deadline += paused_s
                self._watch(slot)
            self._listen(0.2)
        self._drain()
        with suppress(queue.Full):
            self._words.put_nowait(b"")
            speaker.join(2)

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Begins to drain; may be called from a signal handler."""
        self.stopping.set()
        os.write(self._waker, b".")

    def _pass_on(self) -> None:
        """Writes to stderr what the children wrote, from a thread: a reader that stops must not stop the watching."""
        while data := self._words.get():
            with suppress(OSError):  # nobody reads it any more
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()

    def _watch(self, slot: Slot) -> None:
        now = time.monotonic()
        if slot.process is None:
            if now >= slot.start_at:
                self._start(slot)
        elif slot.process.poll() is not None:
            self._bury(slot)
        elif now > slot.deadline:
            # Where it was this process that got no turn, what the child reported still waits in its pipe.
            self._listen(0)
            if now <= slot.deadline:
                return
            slot.killed_for = f"no progress in phase {slot.phase}"
            _log.error("child_stuck", worker=slot.name, phase=slot.phase)
            # Not waited for: one that the kernel cannot end must not keep the others from being watched.
            slot.deadline = float("inf")
            slot.process.kill()

    def _start(self, slot: Slot) -> None:
        (read, write), (output, out) = os.pipe(), os.pipe()
        with suppress(OSError, AttributeError):  # a comfort, which a user may have had enough of, or the system lacks
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        threads = str(self.settings.torch_threads)
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1")
        command = [sys.executable, "-m", "workers.worker", "--name", slot.name, "--queues", slot.queues]
        slot.process = subprocess.Popen(
            [*command, "--parent", str(os.getpid()), "--marks", str(write)],
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # A group of its own: Ctrl+C reaches the supervisor alone, which drains.
            process_group=0,
            env={**os.environ, **offline, "OMP_NUM_THREADS": threads},
        )
        for end in (write, out):
            os.close(end)
        for end in (read, output):
            os.set_blocking(end, False)
        slot.marks, slot.tail, slot.boot, slot.ready, slot.phase, slot.killed_for = read, b"", "", False, "start", ""
        slot.output = output
        slot.said = b""
        slot.started = time.monotonic()
        slot.deadline = slot.started + self.settings.limits.load_s
        self._selector.register(read, selectors.EVENT_READ, partial(self._hear_marks, slot))
        self._selector.register(output, selectors.EVENT_READ, partial(self._hear_output, slot))
        _log.info("child_started", worker=slot.name, queues=slot.queues, pid=slot.process.pid)

    def _listen(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if not key.data():
                self._selector.unregister(key.fd)

    def _hear_marks(self, slot: Slot) -> bool:
        """Reads a child's marks; False at their end."""
        data = os.read(slot.marks, 65536)
        *lines, slot.tail = (slot.tail + data).split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "boot":
                slot.boot = value
            else:
                slot.phase, slot.deadline = word, time.monotonic() + float(value)
                slot.ready = slot.ready or word == "idle"
        return bool(data)

    def _hear_output(self, slot: Slot) -> bool:
        """Passes on what a child writes and keeps its last lines; False at the end."""
        data = os.read(slot.output, 65536)
        if data:
            with suppress(queue.Full):  # whoever reads it has stopped: the children must not
                self._words.put_nowait(data)
        slot.said = (slot.said + data)[-SAID_BYTES:]
        return bool(data)

    def _bury(self, slot: Slot) -> None:
        """Reports a dead child and plans its next start."""
        assert slot.process is not None  # noqa: S101
        status, now = slot.process.returncode, time.monotonic()
        self._forget(slot)
        cause = slot.killed_for or (
            f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
        )
        _log.warning("child_died", worker=slot.name, cause=cause, phase=slot.phase)
        # A child that was ready once is started again at once; one that never gets ready would only burn the machine.
        slot.deaths = 0 if slot.ready else slot.deaths + 1
        slot.start_at = max(now, slot.started + 1) if slot.ready else now + min(RESTART_MAX_S, 2.0**slot.deaths)
        slot.process = None
        self._report(slot, cause, charge=True)

    def _forget(self, slot: Slot) -> None:
        for end, hear in ((slot.marks, self._hear_marks), (slot.output, self._hear_output)):
            with suppress(BlockingIOError):
                while hear(slot):
                    pass
            if end in self._selector.get_map():
                self._selector.unregister(end)
            os.close(end)

    def _report(self, slot: Slot, cause: str, charge: bool) -> None:
        if not slot.boot:
            return
        try:
            log = "\n".join(slot.said.decode("utf-8", "replace").splitlines()[-LAST_LINES:])
            said = f"the worker died: {cause}"
            self.broker.ring(self.ledger.worker_died(slot.name, slot.boot, "crashed", said, charge, log))
        except FarmError as error:
            _log.warning("death_not_reported", worker=slot.name, error=error.code)

    def _drain(self) -> None:
        """Forwards SIGTERM, waits for the grace, kills what is left and gives back what it held."""
        living = [(slot, slot.process) for slot in self.slots if slot.process is not None]
        for _, process in living:
            process.terminate()
        until = time.monotonic() + self.settings.drain_grace_s
        while any(process.poll() is None for _, process in living) and time.monotonic() < until:
            self._listen(0.1)
        for slot, process in living:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILLED_S)
            self._forget(slot)
            self._report(slot, "drained", charge=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Workers on this machine: one child process per --slot."""
    parser = argparse.ArgumentParser(prog="workers.supervisor", description=main.__doc__)
    parser.add_argument(
        "--slot", action="append", required=True, help="queues of one child, separated by commas: text2img.tiny"
    )
    # Two containers may share a host's name and a pid.
    name = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"
    parser.add_argument("--name", default=name, help="unique among supervisors")
    parser.add_argument("--parent", type=int, help="pid of a process to end with, as by SIGTERM")
    given = parser.parse_args(argv)
    if given.parent is not None:
        die_with_parent(given.parent, signal.SIGTERM)
    try:
        settings = Settings.load()
    except FarmError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(EX_CONFIG)
    log_to_stderr(settings.log_level)
    supervisor = Supervisor(settings, given.name, given.slot)
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    supervisor.run()


if __name__ == "__main__":
    main()
