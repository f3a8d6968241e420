"""How is a dataset asked for from afar, and who plans it?

A million rows take a minute to plan, which is no work for a server of calls. So what was asked for is written into the
dataset's folder (`asked.json`), with the file in the store, and the process that feeds the farm's datasets plans it:
then there is a plan, or `refused.json` with the rows that are wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from farm.client import Farm
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.planning import Refused
from farm.dataset.sources import source_of
from farm.dataset.spec import DatasetSpec
from farm.dataset.wildcards import Wildcards
from farm.errors import Conflict, FarmError, InvalidJob, Unavailable
from farm.scripts import Server
from farm.whose import owns_image

_log = structlog.get_logger(__name__)
TELL_ROWS = 20_000
"""So often it is told how many rows were read."""


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
        Conflict: there is another dataset of this name, or another one was asked for.
    """
    folder, data = Folder(farm.store, asked.spec.name), asked.model_dump_json().encode()
    there = folder.read("asked.json")
    if there is None:
        if folder.planned() is None and folder.write_first("asked.json", data, "application/json"):
            return True
        there = folder.read("asked.json")  # somebody else's, who was quicker
    before = None if there is None else Asked.model_validate_json(there)
    refused = folder.read("refused.json") is not None
    if before == asked and not refused:
        return False
    if before is None or before.owner != asked.owner or not refused:
        raise Conflict(f"there is another dataset {asked.spec.name!r} already", hint="choose another name")
    folder.write("asked.json", data, "application/json")
    folder.delete(["refused.json"])
    return True


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
        told: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, Refused):
            told |= {"count": error.count, "rows": [asdict(row) for row in error.rows]}
        elif isinstance(error, InvalidJob):
            told |= {"errors": [asdict(one) for one in error.errors]}
        wanted()
        folder.write("refused.json", json.dumps(told).encode(), "application/json")
        folder.delete(["progress.json"])
        _log.warning("dataset_refused", dataset=name, error=error.code)


class Stopped(Exception):
    """The process is to end, or the dataset was deleted; where a plan is still asked for, the next one makes it."""
