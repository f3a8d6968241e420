"""How does a test follow an event stream?"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any, Self

import httpx2

from tests.e2e.rig import until


@dataclass(frozen=True)
class Heard:
    """One event."""

    id: str
    event: str
    data: dict[str, Any]


class Listener:
    """Hears a stream in a thread, from `with` to its end."""

    def __init__(self, client: httpx2.Client, path: str, last: str = "") -> None:
        self._client, self._path, self._headers = client, path, {"Last-Event-ID": last} if last else {}
        self.heard: list[Heard] = []
        self.status, self.comments, self.over = 0, 0, threading.Event()
        self._leaving = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.status or self.over.is_set(), 30, "an answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True  # the next heartbeat ends it
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _listen(self) -> None:
        try:
            with self._client.stream("GET", self._path, headers=self._headers) as answer:
                self.status = answer.status_code
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    if self._leaving:
                        return
                    name, _, value = line.partition(": ")
                    if line.startswith(":"):
                        self.comments += 1
                    elif line:
                        fields[name] = value
                    else:
                        if "data" in fields:
                            data = json.loads(fields["data"])
                            self._hear(Heard(fields.get("id", ""), fields["event"], data))
                        fields = {}
        finally:
            self.over.set()

    def _hear(self, heard: Heard) -> None:
        self.heard.append(heard)

    def states(self, job: str) -> list[str]:
        """The states in which a job was seen, each once in a row."""
        told = [one.data["state"] for one in self.heard if one.event == "job" and one.data["id"] == job]
        return [state for index, state in enumerate(told) if index == 0 or told[index - 1] != state]

    def hears(self, job: str, state: str) -> None:
        """Waits until the job is in the state."""
        until(lambda: self.states(job)[-1:] == [state], 30, f"{job} {state}; heard {self.states(job)}")
