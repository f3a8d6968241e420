"""How is a dataset asked for from afar, and who plans it?

A million rows take a minute to plan, which is no work for a server of calls. So what was asked for is written into the
dataset's folder (`asked.json`), with the file in the store, and whoever feeds the farm's datasets has it planned: then
there is a plan, or `refused.json` with the rows that are wrong. A stranger's file is read by a process of its own, with
a bound on its memory: whatever is wrong with it, no more than that process ends of it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from farm.client import Farm
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.peeking import MEMORY_BYTES
from farm.dataset.planning import Refused
from farm.dataset.plans import unlike
from farm.dataset.sources import bad_file, source_of
from farm.dataset.spec import DatasetSpec
from farm.dataset.wildcards import Wildcards
from farm.errors import Conflict, FarmError, InvalidJob, Unavailable
from farm.log import log_to_stderr
from farm.parent import EX_TEMPFAIL, die_with_parent
from farm.records import instant
from farm.scripts import Server
from farm.servers import environment
from farm.settings import Settings
from farm.whose import owns_image

_log = structlog.get_logger(__name__)
TELL_ROWS = 20_000
"""So often it is told how many rows were read."""
TRIES = 3
"""A file at which so many processes ended is refused: the first ones may have ended of something else."""
REFUSED_S = 7 * 86_400.0
"""So long it stands there why a wish was refused, seconds: its owner mends the file and asks again, or forgets it."""
FORGOTTEN = "forgotten"
"""Stands in a refusal that is being deleted."""
STALLED_S = 300.0
"""A planner that takes so much of the processor for one row is ended, seconds. Source: 10,000 samples, each of
a shape of its own, take 10."""
LOOK_S = 1.0
"""How often it is looked whether the plan is still wanted, seconds."""


class Asked(BaseModel):
    """One wish for a dataset. `file` is the key of its file in the store, and `file_name` what it was called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    spec: DatasetSpec
    file: str
    file_name: str
    format: str
    owner: str = ""
    partial: bool = False
    wildcards: dict[str, list[str]] = Field(default_factory=dict)


def ask(farm: Farm, asked: Asked) -> bool:
    """Writes a wish, to be planned by whoever feeds the farm's datasets; False where it was written before.

    Raises:
        Conflict: there is another dataset of this name, or another one was asked for, or it is being forgotten.
    """
    folder, data = Folder(farm.store, asked.spec.name), asked.model_dump_json().encode()
    there = folder.read("asked.json")
    if there is None:
        if folder.planned() is None and folder.write_first("asked.json", data, "application/json"):
            folder.delete(["refused.json", "tries.json"])  # of a wish that was taken back while it was being planned
            return True
        there = folder.read("asked.json")  # somebody else's, who was quicker
    before = None if there is None else Asked.model_validate_json(there)
    refused = folder.tagged("refused.json")
    if before == asked and refused is None:
        return False
    if before is None or before.owner != asked.owner:
        raise folder.taken()
    if refused is None:
        files = ({"name": one.file_name, "file": one.file} for one in (before, asked))
        raise folder.taken(unlike(before.spec, asked.spec, *files) or "asked for otherwise")
    if FORGOTTEN in json.loads(refused[0]):
        raise Conflict("it was refused long ago and is being deleted", hint="ask again in a moment")
    # Whoever writes over the refusal first has the wish: this, or who forgets it for its age (see `leftovers`).
    if not folder.write_over("refused.json", refused[0] + b" ", "application/json", refused[1]):
        return ask(farm, asked)
    folder.write("asked.json", data, "application/json")
    folder.delete(["refused.json", "tries.json"])
    return True


def withdraw(farm: Farm, asked: Asked) -> None:
    """Takes a wish back, unless another one was asked for since then."""
    folder = Folder(farm.store, asked.spec.name)
    if folder.read("asked.json") == asked.model_dump_json().encode():
        folder.delete(["asked.json", "refused.json", "tries.json", "progress.json"])


def is_asked(folder: Folder) -> bool:
    """Whether the dataset is to be planned."""
    paths = set(folder.names(""))
    return "asked.json" in paths and not paths & {"plan.json", "refused.json"}


def carry_out(farm: Farm, name: str, stop: Callable[[], bool]) -> None:
    """Plans what was asked for; what is wrong with it is written, and nothing else is.

    Raises:
        Unavailable: a server is away; it is to be tried again.
        Stopped: `stop` said so, or it is not asked for any more.
    """
    folder = Folder(farm.store, name)
    if (data := folder.read("asked.json")) is None:
        return  # deleted since
    asked, store = Asked.model_validate_json(data), farm.store

    def wanted() -> None:
        if stop() or folder.read("asked.json") != data:
            raise Stopped

    def progress(rows: int) -> None:
        if stop():
            raise Stopped
        if rows % TELL_ROWS == 0:
            wanted()
            folder.write("progress.json", json.dumps({"planning": rows}).encode(), "application/json")

    try:
        source = source_of(f"s3://{store.bucket}/{asked.file}", store=store, format=asked.format)
        spec = asked.spec.model_dump(exclude={"name", "chain"}, exclude_unset=True)
        wildcards = Wildcards({name: tuple(lines) for name, lines in asked.wildcards.items()})
        with closing(Server(farm.settings)) as server:
            found = Datasets(farm).plan(
                source, name, asked.spec.chain, wildcards=wildcards, partial=asked.partial, progress=progress,
                wanted=wanted, owner=asked.owner, file_name=asked.file_name,
                owns=partial(owns_image, server, asked.owner), **spec,
            )  # fmt: skip
        rejects = json.dumps([asdict(row) for row in found.rejected]).encode()
        folder.write("rejects.json", rejects, "application/json")
        folder.delete(["progress.json"])
        if found.fresh and folder.read("asked.json") != data:  # deleted while the last objects were written
            left = ["plan.json", "rejects.json", *(found.plan.path_of(number) for number in range(found.plan.shards))]
            folder.delete(left)
            raise Stopped
        _log.info("dataset_planned", dataset=name, samples=found.plan.samples)
    except Unavailable:
        raise
    except FarmError as error:
        wanted()
        _refuse(folder, error)


def _refuse(folder: Folder, error: FarmError) -> None:
    """Says why what was asked for is not possible, unless it was planned: what went wrong then came after that."""
    if folder.read("plan.json") is not None:
        folder.delete(["progress.json"])
        _log.warning("dataset_planned_with_error", dataset=folder.name, error=error.code, message=error.message)
        return
    until = instant((time.time() + REFUSED_S) * 1000)
    told: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint, "until": until}
    if isinstance(error, Refused):
        told |= {"count": error.count, "rows": [asdict(row) for row in error.rows]}
    elif isinstance(error, InvalidJob):
        told |= {"errors": [asdict(one) for one in error.errors]}
    folder.write("refused.json", json.dumps(told).encode(), "application/json")
    folder.delete(["progress.json"])
    _log.warning("dataset_refused", dataset=folder.name, error=error.code)


def carry_out_apart(farm: Farm, name: str, stop: Callable[[], bool]) -> None:
    """The same by a process of its own, which ends when `stop` says so and when nobody asks for it any more.

    The tries are counted in the folder before each begins, for one of them may take this process with it. Those that
    end in order do not count: a server was away, or this process is to end.

    Raises:
        Unavailable: the store is away; it is to be tried again.
    """
    folder = Folder(farm.store, name)
    if (data := folder.read("asked.json")) is None:
        return  # deleted since
    tries = json.loads(folder.read("tries.json") or b"0")
    if tries < TRIES:
        folder.write("tries.json", json.dumps(tries + 1).encode(), "application/json")
        status = _run(farm.settings, name, lambda: stop() or not _is_asked_so(folder, data))
        if status in (0, None, EX_TEMPFAIL):
            folder.write("tries.json", json.dumps(tries).encode(), "application/json")
            if status == 0 or not _is_asked_so(folder, data):
                folder.delete(["tries.json", "progress.json"])
            return
        _log.error("planner_ended", dataset=name, status=status, tries=tries + 1)
        if status == -signal.SIGPROF:  # no other try would come further
            why = f"planning it was given up: one of its rows takes more than {STALLED_S:.0f} s of the processor"
            hint = "make the row's template, the lines of its wildcards or the axes shorter; then ask again"
            if _is_asked_so(folder, data):
                _refuse(folder, bad_file(Asked.model_validate_json(data).file_name, why, hint))
            return
    if tries + 1 >= TRIES and _is_asked_so(folder, data):
        gib = MEMORY_BYTES >> 30
        why = f"planning it broke off {TRIES} times: reading its rows takes more than {gib} GiB of memory, or fails"
        hint = "make its cells and, in Parquet, its row groups smaller, or save it as CSV; then ask again"
        _refuse(folder, bad_file(Asked.model_validate_json(data).file_name, why, hint))


def _is_asked_so(folder: Folder, data: bytes) -> bool:
    """Whether the wish is still the same, as far as the store answers."""
    with suppress(Unavailable):
        return folder.read("asked.json") == data
    return True


def _run(settings: Settings, name: str, stop: Callable[[], bool]) -> int | None:
    """The status with which the planning process ended; None where it was stopped."""
    words = [sys.executable, "-m", "farm.dataset.asking", name, "--parent", str(os.getpid())]
    # Threads and their heaps would take of what it may have, more the more processors there are.
    bounds = {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    # Its files lie in a folder of ours: it may end without having deleted them.
    with TemporaryDirectory(prefix="planning-") as temporary:
        env = {**os.environ, **environment(settings), **bounds, "TMPDIR": temporary}
        with subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL) as process:
            try:
                while True:
                    with suppress(subprocess.TimeoutExpired):
                        return process.wait(LOOK_S)
                    if stop():
                        return None
            finally:
                process.kill()


def _lives_on() -> bool:
    """False; and unless it is asked again before `STALLED_S` of the processor are gone, the process ends of SIGPROF."""
    signal.setitimer(signal.ITIMER_PROF, STALLED_S)
    return False


class Stopped(Exception):
    """The process is to end, or the dataset was deleted; where a plan is still asked for, the next one makes it."""


def main(words: Sequence[str] | None = None) -> None:
    """The process that plans one dataset; `carry_out_apart` starts it."""
    import resource

    parser = argparse.ArgumentParser(prog="farm.dataset.asking", description=main.__doc__)
    parser.add_argument("name", help="of the dataset")
    parser.add_argument("--parent", type=int, required=True, help="pid of the process that it ends with")
    given = parser.parse_args(words)
    die_with_parent(given.parent, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    settings = Settings.load()
    log_to_stderr(settings.log_level)
    _lives_on()
    with closing(Farm(settings)) as farm:
        try:
            carry_out(farm, given.name, _lives_on)
        except Stopped:
            pass
        except Unavailable as error:
            _log.warning("not_planned", dataset=given.name, error=error.code, message=error.message)
            sys.exit(EX_TEMPFAIL)


if __name__ == "__main__":
    main()
