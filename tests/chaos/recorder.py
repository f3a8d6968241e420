"""What does a process of the farm see of its calls, and where does the nemesis meet it?

Loaded by `sitecustomize` into every farm process under test. It wraps the calls of the ledger, the store and the drain
so that each leaves an event in the history, and it springs **traps**: files that the nemesis lays at points which no
signal from outside can hit (in the middle of a step, just before or just after a commit). A trap is sprung once, by
whoever takes its file first; what the ledger charges hits one execution at most twice.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from tests.chaos.history import Writer, now_ms

FOLDER = "CHAOS_FOLDER"
SKEW = "CHAOS_SKEW_S"
CHARGED = frozenset({"kill", "segfault", "exit", "bug", "cuda", "hang", "freeze"})
"""Traps after which the ledger may charge a crash."""
MOST_CHARGES = 2
"""Charged faults that one execution meets: a third crash is poison, which has a test of its own."""


class Traps:
    """The traps of one farm under test, as files `<point>.<fault>.<number>` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.laid, self.taken, self._hits = folder / "traps", folder / "taken", folder / "hits"
        for each in (self.laid, self.taken, self._hits):
            each.mkdir(parents=True, exist_ok=True)

    def lay(self, point: str, fault: str, number: int) -> str:
        """Lays a trap for whoever comes to `point` first; its name."""
        name = f"{point}.{fault}.{number}"
        (self.laid / name).touch()
        return name

    def lift(self, name: str) -> bool:
        """Takes a trap away again; whether nobody had sprung it."""
        try:
            (self.laid / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def take(self, point: str, exec_: str) -> tuple[str, str]:
        """The name and fault of a trap at `point` that is now this process's own to suffer, or empty."""
        for name in os.listdir(self.laid):
            where, fault, _ = name.split(".")
            if where != point or not self.may_hit(exec_, fault):
                continue
            mine = self.taken / f"{name}.{os.getpid()}"
            try:
                (self.laid / name).rename(mine)
            except FileNotFoundError:
                continue
            self.hit(exec_, fault)
            mine.write_text(exec_)
            return name, fault
        return "", ""

    def may_hit(self, exec_: str, fault: str = "kill") -> bool:
        """Whether the execution may suffer `fault` without the ledger ending it."""
        if fault == "oom":
            return self._count(exec_ + ".oom") < 1
        return fault not in CHARGED or self._count(exec_) < MOST_CHARGES

    def hit(self, exec_: str, fault: str = "kill") -> None:
        """Counts a fault against the execution."""
        if fault in CHARGED or fault == "oom":
            with (self._hits / (exec_ + (".oom" if fault == "oom" else ""))).open("ab") as file:
                file.write(b".")

    def _count(self, name: str) -> int:
        try:
            return (self._hits / name).stat().st_size
        except FileNotFoundError:
            return 0


class Recorder:
    """The history and the traps of this process."""

    def __init__(self, folder: Path) -> None:
        self.write, self.traps = Writer(folder / "history"), Traps(folder)
        self.worker, self.exec = "", ""

    def spring(self, point: str) -> None:
        """Suffers a trap at `point`, if one is laid. Raises what the fault raises."""
        name, fault = self.traps.take(point, self.exec)
        if name:
            self.write("trap", name=name, fault=fault, point=point, exec=self.exec, worker=self.worker)
            FAULTS[fault]()


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    threading.Event().wait()


def _bug() -> None:
    raise ZeroDivisionError("an injected bug")


def _cuda() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")


def _oom() -> None:
    from farm.errors import Failure, StageFailed

    raise StageFailed(failure=Failure.OOM, code="gpu_oom")


FAULTS: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": _freeze,
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: sys.exit(3),
    "hang": _hang,
    "bug": _bug,
    "cuda": _cuda,
    "oom": _oom,
}

here: Recorder | None = None
"""The recorder of this process; None outside a farm under test."""


def wrap() -> None:
    """Wraps the calls of this process, where the environment names a history."""
    global here
    if FOLDER not in os.environ:
        return
    here = Recorder(Path(os.environ[FOLDER]))
    if skew := float(os.environ.get(SKEW, "0")):
        honest = time.time
        time.time = lambda: honest() + skew
    from farm.ledger import Ledger
    from farm.store import Store
    from workers.lease import Drain

    _wrap_ledger(Ledger, here)
    for name in ("put_blob", "put_result"):
        _record(Store, name, here, lambda given, answer: {"answer": answer})
    _record(Drain, "start", here, lambda given, answer: {})


def _record(owner: Any, name: str, recorder: Recorder, told: Callable[[tuple[Any, ...], Any], dict[str, Any]]) -> None:
    """Makes `owner.name` write an event with what `told` says of its arguments and answer, or with its error."""
    honest = getattr(owner, name)

    @wraps(honest)
    def recorded(self: Any, *given: Any, **named: Any) -> Any:
        began = now_ms()
        try:
            answer = honest(self, *given, **named)
        except Exception as error:
            recorder.write(name, t0=began, worker=recorder.worker, error=type(error).__name__)
            raise
        recorder.write(name, t0=began, worker=recorder.worker, **told(given, answer))
        return answer

    setattr(owner, name, recorded)


def _tokens(claims: Any) -> dict[str, Any]:
    return {"execs": [one.exec for one in claims], "tokens": [one.token for one in claims]}


def _wrap_ledger(ledger: Any, recorder: Recorder) -> None:
    """Wraps what workers, supervisors and reconcilers call. A claim and a commit also say that they were begun."""
    _record(ledger, "beat", recorder, lambda given, answer: {**_tokens(given[0]), "answer": [*map(str, answer)]})
    for name in ("fail", "release"):
        _record(ledger, name, recorder, lambda given, answer: _tokens(given[0]))
    _record(ledger, "rewind", recorder, lambda given, answer: _tokens(given[:1]))
    _record(ledger, "worker_died", recorder, lambda given, answer: {"dead": given[0], "boot": given[1]})
    _record(
        ledger,
        "commit",
        recorder,
        lambda given, answer: {
            **_tokens([one.claim for one in given[0]]),
            "outputs": [one.output for one in given[0]],
            "answer": answer[0],
        },
    )
    _record(
        ledger,
        "claim",
        recorder,
        lambda given, answer: {
            **_tokens(answer[0]),
            "boot": given[2],
            "stages": [one.stage for one in answer[0]],
            "epochs": [one.epoch for one in answer[0]],
            "inputs": [one.input for one in answer[0]],
            "waiters": [one.waiters for one in answer[0]],
        },
    )
    claim, commit = ledger.claim, ledger.commit

    def trapped_claim(self: Any, queues: Any, worker: str, boot: str, *given: Any, **named: Any) -> Any:
        recorder.worker = worker
        recorder.write("claim_begun", worker=worker, boot=boot)
        answer = claim(self, queues, worker, boot, *given, **named)
        if answer[0]:
            recorder.exec = answer[0][0].exec
            recorder.spring("claimed")
        return answer

    def trapped_commit(self: Any, commits: Any) -> Any:
        recorder.write("commit_begun", worker=recorder.worker, **_tokens([one.claim for one in commits]))
        recorder.spring("commit")
        answer = commit(self, commits)
        recorder.spring("committed")
        return answer

    ledger.claim, ledger.commit = trapped_claim, trapped_commit
