"""What happened, in which process, and when?

A history is a folder of JSON lines, one file per process, so that nobody waits for anybody and a killed process loses
at most the line it was writing. Every event has `t`, milliseconds of this machine's real-time clock: it is the clock
that the Redis here answers to TIME with, and it goes on while the Redis is dead. A process whose `time.time` is skewed
still reads it, because it comes from `clock_gettime`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def now_ms() -> float:
    """This machine's real-time clock in milliseconds, which is Redis's own, whatever `time.time` says."""
    return time.clock_gettime(time.CLOCK_REALTIME) * 1000


class Writer:
    """Appends events of this process to its own file in `folder`."""

    def __init__(self, folder: Path, who: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{who or 'pid'}-{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, call: str, **fields: Any) -> None:
        """Writes one event; `t` is now unless given."""
        event = {"t": now_ms(), "pid": os.getpid(), "call": call, **fields}
        # One write: a kill comes before or after it.
        os.write(self._file, json.dumps(event).encode() + b"\n")


def read(folder: Path) -> list[Event]:
    """All events of a history, by time; the events of one process keep their order."""
    found = [event for path in sorted(folder.glob("*.jsonl")) for event in _lines(path)]
    return sorted(found, key=lambda event: event["t"])


def _lines(path: Path) -> Iterator[Event]:
    for line in path.read_text().splitlines(keepends=True):
        # A line without its end was cut off by a kill.
        if line.endswith("\n"):
            yield json.loads(line)
