"""Where is a reader of an event stream, what has it been told, and when does it give up?"""

from __future__ import annotations

from typing import Any

import httpx2

from farm.errors import Unavailable
from farm.handle import AWAY_S
from farm.remote.wire import QUIET_S, TIMEOUT_S, Answer, check, part
from farm.snapshot import BASE, Snapshot


class Stream:
    """One stream, across as many connections as it takes: each goes on after the last event that came."""

    def __init__(self, path: str) -> None:
        self._path, self._last = path, ""
        self._away_since: float | None = None
        self.over = False

    @classmethod
    def of_job(cls, job: str) -> Stream:
        """That of a job, which ends with it."""
        return cls(f"{BASE}/jobs/{part(job)}/events")

    @classmethod
    def of_run(cls, run: str) -> Stream:
        """That of a run's jobs."""
        return cls(f"{BASE}/runs/{part(run)}/events")

    @classmethod
    def of_farm(cls) -> Stream:
        """That of all jobs that the caller may see."""
        return cls(f"{BASE}/events")

    def request(self, base: str, token: dict[str, str]) -> dict[str, Any]:
        """What is asked for next, in the words of the client's `sse`."""
        last = {"Last-Event-ID": self._last} if self._last else {}
        timeout = httpx2.Timeout(TIMEOUT_S, read=QUIET_S)
        return {"url": base + self._path, "headers": {**token, **last}, "timeout": timeout}

    def take(self, id_: str | None, event: str, data: str) -> Snapshot | None:
        """The snapshot that an event tells, if it tells one."""
        self._last, self._away_since = id_ or self._last, None
        self.over = event == "end"
        return Snapshot.model_validate_json(data) if event == "job" else None

    def refused(self, answer: Answer) -> None:
        """What another status than 200 means: 204 that all has been told. Raises FarmError for any other."""
        check(answer)
        self.over = True

    def broke(self, error: Exception, now: float) -> None:
        """Notes that the connection broke or was not made; `now` is a clock, seconds.

        Raises:
            Unavailable: the API has been away for too long.
        """
        self._away_since = now if self._away_since is None else self._away_since
        if now - self._away_since > AWAY_S:
            raise Unavailable("the farm's API does not answer") from error
