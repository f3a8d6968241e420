"""What becomes of a dataset's shards, wherever they are read from: exported, verified, told of?

Shards and their plan lie in the farm's own store (`farm.dataset.folder`), are given out by the API of a farm elsewhere
(`farm.remote.shelves`), or lie in a folder that `fetch` filled (`farm.dataset.fetched`). An export and a look at all of
it are the same program over each of them, and run where their result is wanted: so the bytes and the words are the
same, no call of the API lasts for hours, and all that the API gives for it are files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from farm.dataset.card import About, Figures, Licensed, card, promise
from farm.dataset.choosing import ExportSpec
from farm.dataset.exporting import Exported, export
from farm.dataset.forms import Layout, Tars
from farm.dataset.plans import Plan
from farm.dataset.sharding import schema
from farm.dataset.shelves import Shards, Target, TargetBucket, TargetFolder
from farm.dataset.spec import Sample
from farm.dataset.verifying import Meant, Report, verify
from farm.errors import Conflict, FarmError
from farm.store import Store


class Made(Shards, Protocol):
    """The shards of one dataset, and what they were planned to be."""

    name: str

    def plan(self) -> Plan:
        """What the dataset is."""

    def samples(self, number: int) -> Sequence[Sample]:
        """The samples of one shard, as planned. Raises NotFound where they are gone, BadBlob."""


def exported(
    made: Made, out: str, spec: ExportSpec, store: Store, work: Path | None = None, *, partial: bool = False
) -> Exported:
    """Writes a dataset to a folder or `s3://bucket/prefix` (see `farm.dataset.exporting`), S3 reached as `store` is.

    Raises:
        Conflict: shards are not there yet, or lost, and not `partial`; or as `exporting.export`.
        InvalidJob, NotFound, BadBlob: as `exporting.export`.
        FarmError: (`bad_file`) the folder cannot be written.
        Unavailable: S3 does not answer, or refuses.
    """
    there, shards = len(made.numbers()), made.plan().shards
    if there < shards and not partial:
        hint = f"`farm dataset run {made.name}` makes them, `fetch` brings them to a folder; --partial goes without"
        raise Conflict(f"{there} of {shards} shards of {made.name} are there", hint=hint)
    target: Target = TargetBucket(store, out) if out.startswith("s3://") else TargetFolder(Path(out))
    try:
        # What cannot be reached is told before all tables are read.
        target.names()
        return export(made, target, spec, about(made), work=work)
    except OSError as error:
        raise FarmError(f"{out} cannot be written: {error.strerror}", code="bad_file") from None


def verified(made: Made, *, whole: bool) -> Report:
    """What is wrong with its shards, held against its plan: all are read. `whole`: all have been written."""
    return verify(made, Meant(made.name, made.plan().shards, made.samples, whole))


def card_of(made: Made) -> str:
    """What an export of all of it would say of itself; while nothing is made, what it is to be."""
    plan, stats = made.plan(), [made.stats(number) for number in made.numbers()]
    if not stats:
        return promise(about(made), plan.samples, plan.shards, plan.sizes)
    good = sum(int(one["successes"]) for one in stats)
    size = sum(int(file["bytes"]) for one in stats for file in one["files"].values())
    beside = tuple(sorted({name for one in stats for name in one["kept"]}))
    columns = Tars.columns(Layout(schema(plan.columns, plan.parameters), beside))
    figures = Figures({"train": good}, good, sum(int(one["failed"]) for one in stats), {}, size, columns)
    return card(about(made), ExportSpec(), figures)


def about(made: Made) -> About:
    """What its card says beside the shards."""
    plan, stats = made.plan(), [made.stats(number) for number in made.numbers()]
    weights = tuple(
        Licensed(
            name=one["name"],
            source=one.get("repo") or ("built by " + one["build"] if "build" in one else "files of its operator"),
            revision=one.get("revision") or f"files of the SHA-256 {one['manifest'][:16]}",
            licence=one["licence"],
        )
        for one in (*plan.checkpoints, *plan.adapters)
    )
    took, seconds, until = {}, 0.0, 0.0
    # Of a shard that was tried again nobody knows any more how long its first try took.
    first = sorted((one["began"], one["ended"], int(one["successes"])) for one in stats if not one.get("round"))
    for began, ended, _ in first:
        seconds += max(0.0, ended - max(began, until))
        until = max(until, ended)
    if seconds:
        good = sum(successes for _, _, successes in first)
        took = {"samples a second, as long as shards were in work": f"{good / seconds:.2f}"}
    return About(plan.spec, plan.source["name"], plan.rows, weights, took, plan.safety)
