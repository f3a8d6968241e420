"""Where are the jobs that somebody waits for, and what came of them?

Progress goes to stderr: on a terminal live bars, a bar per stage where the jobs are few; elsewhere a line per change.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.cli.outcome import Outcome, is_plain, say
from farm.errors import Conflict, FarmError, StageFailed
from farm.records import ENDED

if TYPE_CHECKING:
    from farm.protocol import AnyJob
    from farm.records import JobRecord, StageRecord

SHOWN = 8
"""Unfinished jobs that are looked at in each round."""


def wait(handles: Sequence[AnyJob], out: Path | None, round_s: float) -> Outcome:
    """What came of the jobs, once all have ended, with the results written to `out` if it is given.

    `round_s` is the pause between two looks at them, seconds. Ctrl+C detaches or cancels, as the user answers; a second
    one detaches. Whatever ends the wait, the ids are told.
    """
    once = list({handle.id: handle for handle in handles}.values())
    try:
        return collect(once, follow(once, round_s), out)
    except KeyboardInterrupt:
        return _interrupted(once)
    except FarmError as error:
        ids = [handle.id for handle in once]
        return Outcome({"jobs": [{"id": job} for job in ids]}, ids, error)


def follow(handles: Sequence[AnyJob], round_s: float) -> list[JobRecord]:
    """The jobs' last records, once all have ended; shows until then where they are.

    Raises:
        Unavailable: the ledger was away for too long.
    """
    from farm.handle import patient

    def look() -> list[JobRecord]:
        """The open jobs' records, as they are shown."""
        records = [handle.record for handle in open_jobs.values()]
        for record in records:
            display.show(record, record.waits_for)
        return records

    waiting, open_jobs = deque(handles), dict[str, "AnyJob"]()
    ended: dict[str, JobRecord] = {}
    display = Lines() if is_plain(sys.stderr) else Bars(len(handles))
    with display.live():
        while waiting or open_jobs:
            while waiting and len(open_jobs) < SHOWN:
                handle = waiting.popleft()
                open_jobs[handle.id] = handle
            over = {record.job: record for record in patient(look) if _is_over(record)}
            ended |= over
            for job in over:
                del open_jobs[job]
            if open_jobs and not over:
                time.sleep(round_s)
    return [ended[handle.id] for handle in handles]


def collect(handles: Sequence[AnyJob], records: Sequence[JobRecord], out: Path | None) -> Outcome:
    """The results of ended jobs, written to `out` if it is given; the error if one did not end done.

    Raises:
        BadBlob: a result is gone.
        Unavailable: the store does not answer.
    """
    data: list[dict[str, Any]] = []
    lines: list[str] = []
    for handle, record in zip(handles, records, strict=True):
        found = handle.results
        paths = [str(path) for path in handle.download(out)] if out is not None else [None] * len(found)
        results = [
            {"uri": result.uri, "sha256": result.sha256, "size": list(result.size), "path": path}
            for result, path in zip(found, paths, strict=True)
        ]
        data.append(
            {
                "id": record.job,
                "state": record.state,
                "seed": json.loads(record.spec)["chain"]["seed"],
                "code": record.code,
                "message": record.message,
                "results": results,
            }
        )
        lines += [str(result[key]) for result in results for key in ("uri", "path") if result[key]]
    return Outcome({"jobs": data}, lines, failure_of(records))


def failure_of(records: Sequence[JobRecord]) -> FarmError | None:
    """The error of jobs of which not all ended done."""
    bad = [record for record in records if record.state != "done"]
    if not bad:
        return None
    told = [f"the job {record.job} is {record.state}{': ' if record.message else ''}{record.message}" for record in bad]
    for line in told[:-1]:
        say(f"error: {line}")
    hint = f"`farm jobs show {bad[-1].job}` shows its stages; `farm jobs retry` queues it again"
    return StageFailed(told[-1], code="job_failed", hint=hint)


def where(record: JobRecord, reason: str) -> str:
    """Where a job is, in a few words: `running  stage 2/4 img2img.tiny`, and the reason if it waits."""
    if _is_over(record) or record.at >= len(record.stages):
        return f"{record.state}{': ' if record.message else ''}{record.message}"
    stage = record.stages[record.at]
    state = "waiting" if reason and record.state == "running" else record.state
    words = f"{state}  stage {record.at + 1}/{len(record.stages)} {stage.queue}"
    return f"{words}  ({reason})" if reason else words


def progress(record: JobRecord) -> str:
    """How far the running stage is: `step 7/25`, or the phase that has no steps."""
    stage = record.stages[record.at] if record.at < len(record.stages) else None
    if stage is None or _is_over(record) or stage.state != "running":
        return ""
    return f"step {stage.step}/{stage.steps}" if stage.phase == "step" else stage.phase


def _is_over(record: JobRecord) -> bool:
    return record.state in ENDED


class Lines:
    """A line per change, for logs."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._told: set[tuple[str, int]] = set()

    def live(self) -> AbstractContextManager[object]:
        """Nothing moves."""
        return nullcontext()

    def show(self, record: JobRecord, reason: str) -> None:
        """Prints where the job is, unless only a number has changed since."""
        line = where(record, reason)
        # A line for every job that goes ahead would flood a log.
        gist = re.sub(r"\d+ ahead", "", line)
        for stage in record.stages[: record.at + 1]:
            if stage.state == "committed" and (record.job, stage.index) not in self._told:
                self._told.add((record.job, stage.index))
                steps = f", {stage.steps} steps" if stage.steps else ""
                say(f"{record.job}  committed  stage {stage.index + 1}/{len(record.stages)} {stage.queue}{steps}")
        if self._said.get(record.job) != gist:
            self._said[record.job] = gist
            say(f"{record.job}  {line}")


class Bars:
    """A live bar for each stage of one or two jobs, for each of more jobs, and one for all."""

    def __init__(self, count: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        words = TextColumn("{task.description}", markup=False)
        told = TextColumn("{task.fields[where]}", markup=False)
        self._progress = Progress(words, BarColumn(20), TimeElapsedColumn(), told, console=Console(stderr=True))
        self._tasks: dict[tuple[str, int], Any] = {}
        self._many, self._by_stage = count > SHOWN, count <= 2
        self._all = self._progress.add_task("all jobs", total=count, where="", visible=not self._by_stage)

    def live(self) -> AbstractContextManager[object]:
        """The bars, on the screen until the end."""
        return self._progress

    def show(self, record: JobRecord, reason: str) -> None:
        """Moves the job's bars; takes them away when the job is done and many others go on."""
        if self._by_stage:
            for stage in record.stages:
                here = stage.index == record.at
                told = f"{stage.steps} steps" if stage.state == "committed" and stage.steps else ""
                if here:
                    told = progress(record) or reason or record.state
                self._move(record, stage.index, f"{stage.index + 1} {stage.queue}", _stage_share(stage), told)
        else:
            told = f"{where(record, reason)}  {progress(record)}"
            self._move(record, 0, "", record.progress, told)
        if _is_over(record):
            self._progress.advance(self._all)

    def _move(self, record: JobRecord, index: int, name: str, done: float, told: str) -> None:
        key = record.job, index
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(f"…{record.job[-8:]} {name}".rstrip(), total=1.0, where="")
        visible = not (self._many and record.state == "done")
        self._progress.update(self._tasks[key], completed=done, where=told, visible=visible)


def _stage_share(stage: StageRecord) -> float:
    """How far one stage is, from 0 to 1."""
    if stage.state in ("committed", "done"):
        return 1.0
    return stage.step / stage.steps if stage.state == "running" and stage.steps else 0.0


def _interrupted(handles: Sequence[AnyJob]) -> Outcome:
    """What Ctrl+C leads to: on a terminal the user says whether the jobs are cancelled, elsewhere they go on."""
    ids, cancelled = [handle.id for handle in handles], False
    with suppress(KeyboardInterrupt):  # a second Ctrl+C detaches
        if sys.stdin.isatty() and sys.stderr.isatty() and _wants_cancel():
            for handle in handles:
                with suppress(Conflict):  # it has ended meanwhile
                    handle.cancel()
            cancelled = True
    hint = "" if cancelled else "the jobs go on; `farm jobs wait ID` waits for them again"
    data = {"jobs": [{"id": job} for job in ids], "cancelled": cancelled}
    return Outcome(data, ids, FarmError(code="interrupted", hint=hint))


def _wants_cancel() -> bool:
    """The user's answer to a question on stderr."""
    print("\nd: detach, the jobs go on   c: cancel them   [d] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower().startswith("c")
