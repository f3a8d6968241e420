"""What can be asked of a farm's datasets, and how far is each?

`Datasets` is what the command line and the API have of this room. Planning takes everything that is needed out of files
and into the store; after that the dataset's name is enough, on any machine that reaches the store.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import structlog
from pydantic import ValidationError

from farm.chain import Chain
from farm.client import Farm
from farm.dataset.card import About, Figures, Licensed, card
from farm.dataset.choosing import ExportSpec
from farm.dataset.exporting import Exported, export
from farm.dataset.feeding import RESTED
from farm.dataset.folder import Folder, Plan, State, datasets, read_sample
from farm.dataset.forms import Layout, Tars
from farm.dataset.images import Images
from farm.dataset.moulds import Moulds, run_of
from farm.dataset.planning import Planner, plan_rows
from farm.dataset.reading import header, rows
from farm.dataset.seats import ANY, Seats
from farm.dataset.sharding import schema
from farm.dataset.shelves import TargetBucket, TargetFolder
from farm.dataset.sources import Source, digest
from farm.dataset.spec import DatasetSpec, RowError, Sample
from farm.dataset.verifying import Meant, Report, verify
from farm.dataset.wildcards import Wildcards
from farm.errors import BadBlob, Conflict, FarmError, FieldError, InvalidJob, NotFound, Unavailable
from farm.estimate import Estimate, estimate_many
from farm.inputs import PATIENCE_S
from farm.protocol import ChainSource
from farm.scripts import within
from farm.stage import STORED
from farm.whose import Owns, check_images

TEXTUAL = ("csv", "tsv", "txt")
"""Formats whose cells are text, so that numbers have to be read from it."""
FIRST = 20
"""So many samples are shown of a plan."""
_log = structlog.get_logger(__name__)
LOOK_S = 0.2
"""Pause between two looks at a seat that is waited for, seconds."""
SILENT_S = 30.0
"""A feeder that tells nothing for so long says nothing of its speed."""


@dataclass(frozen=True)
class Planned:
    """What a file came to. `rejected`: the first rows that were left out. `fresh`: it was not planned before."""

    plan: Plan
    rejected: list[RowError]
    estimate: Estimate
    first: list[Sample]
    fresh: bool

    @property
    def size_bytes_most(self) -> int:
        """What the pictures take at most, in bytes: three a pixel, as no compression would leave them."""
        return self.plan.samples * max((3 * width * height for width, height in self.plan.sizes), default=0)


@dataclass(frozen=True)
class Status:
    """How far a dataset is. `rate`: samples a second over the last minute; `eta_s`: seconds until the last is done."""

    name: str
    state: State | Literal["planning", "refused"]
    """`planning`: it was asked for, and whoever feeds the farm's datasets reads its rows; `refused`: they are wrong."""
    samples: int
    done: int
    failed: int
    shards: int
    shards_done: int
    size_bytes: int
    rows: int
    rejected: int
    priority: int
    fed: bool
    """Whether a process feeds it now."""
    open: dict[str, int]
    """The jobs of the shards in work, by state."""
    rate: float | None
    eta_s: float | None
    owner: str = ""
    refused: dict[str, Any] | None = None
    """Why what was asked for is not possible: `code`, `message`, and the first `rows` or `errors`."""
    trouble: dict[str, Any] | None = None
    """Why it does not go on, though it is to run: `code`, `message` and `errors`."""


class Datasets:
    """The datasets of one farm. Every call may raise Unavailable."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm

    # ------------------------------------------------------------------------------------------------ plan

    def plan(
        self,
        source: Source,
        name: str,
        chain: ChainSource = "txt",
        *,
        chain_fields: Mapping[str, Any] | None = None,
        wildcards: Wildcards | None = None,
        folder: Path | None = None,
        owner: str = "",
        file_name: str = "",
        partial: bool = False,
        store: bool = True,
        owns: Owns | None = None,
        progress: Callable[[int], None] | None = None,
        wanted: Callable[[], object] | None = None,
        **asked: Any,
    ) -> Planned:
        """Reads a file and writes the plan of its dataset; the same file and words, given again, are the same dataset.

        `chain_fields` are what `Farm.chain` takes beside the chain, `asked` fields of DatasetSpec. Images that rows
        name lie in `folder`; without one only stored images can be named. Without `store` nothing is written.
        `file_name` is what the file is called where its source has another name. With `owns`, which says which stored
        images may be named, no files can. `wanted`: see `Folder.write_plan`.

        Raises:
            Refused: rows are wrong, and not `partial`; nothing was planned.
            InvalidJob: the file or what is asked for is wrong; nothing was planned.
            Conflict: there is another dataset of this name.
        """
        asked_chain = self._farm.chain(chain, **(chain_fields or {}))
        if owns is not None:
            check_images(asked_chain, owns)
        with TemporaryDirectory(prefix="plan-") as temporary:
            target = Path(temporary)
            spec = _spec(name, self._told(asked_chain, None if store else target), asked)
            planner = self._planner(spec, source, folder, wildcards, owns, store)
            sha256, size_bytes = digest(source)
            facts = {"name": file_name or source.name, "sha256": sha256, "size_bytes": size_bytes}
            how: dict[str, Any] = {"owner": owner, "partial": partial, "progress": progress}
            plan, rejected = plan_rows(planner, spec, rows(source), target, facts, **how)
            plan = plan.model_copy(update={"safety": self._farm.settings.safety})
            fresh = Folder(self._farm.store, name).write_plan(plan, target, wanted) if store else True
            first = self._first(target)
            estimate = self._estimate(spec, first[0], plan.samples)
        return Planned(plan, rejected, estimate, first, fresh)

    def _planner(
        self,
        spec: DatasetSpec,
        source: Source,
        folder: Path | None,
        wildcards: Wildcards | None,
        owns: Owns | None,
        store: bool,
    ) -> Planner:
        """What plans the rows of a file. Raises InvalidJob."""
        images = Images(self._farm, spec, folder, store=store, owns=owns)
        planner = Planner(
            self._farm, spec, wildcards or Wildcards(), images.input, text=source.format in TEXTUAL, owns=owns,
            store=store,
        )  # fmt: skip
        if source.format in ("csv", "tsv", "parquet"):
            planner.check_header(header(source))
        return planner

    def _told(self, chain: Chain, folder: Path | None) -> dict[str, Any]:
        """A chain as the plan has it: images that its stages name are stored, for the plan is all that is left.

        With a `folder` nothing is stored: what was given as bytes lies there, as long as the plan is looked at.
        """

        def named_so(value: str) -> str:
            data = chain.given_files.get(value)
            if folder is None:
                return self._farm.upload(data or value)
            if data is None:
                return value
            path = folder / hashlib.sha256(data).hexdigest()
            path.write_bytes(data)
            return str(path)

        stages = []
        for stage in chain.stages:
            named = {
                loc: named_so(value) for loc, (value, _) in stage.uploads().items() if not value.startswith(STORED)
            }
            stages.append(stage.with_uploads(named) if named else stage)
        return chain.model_copy(update={"stages": tuple(stages)}).model_dump(mode="json", exclude_unset=True)

    def _first(self, folder: Path) -> list[Sample]:
        """The first samples of a plan that lies in `folder`."""
        with gzip.open(folder / "plan" / "00000.jsonl.gz") as file:
            return [read_sample(line) for line in islice(file, FIRST)]

    def planned(self, name: str) -> Planned:
        """What a dataset was planned to be. Raises NotFound where it was not."""
        folder = self.folder(name)
        plan = folder.plan()
        with gzip.open(BytesIO(folder.read(plan.path_of(0)) or gzip.compress(b""))) as file:
            first = [read_sample(line) for line in islice(file, FIRST)]
        rejected = [RowError(**row) for row in json.loads(folder.read("rejects.json") or b"[]")]
        estimate = self._estimate(plan.spec, first[0], plan.samples) if first else Estimate()
        return Planned(plan, rejected, estimate, first, fresh=False)

    def _estimate(self, spec: DatasetSpec, sample: Sample, samples: int) -> Estimate:
        """What all samples would take if all were like this one."""
        # What was planned holds without workers, and after the catalog has changed.
        with suppress(Unavailable, InvalidJob), within(PATIENCE_S):
            job = Moulds(self._farm, spec, store=False).job(sample, 0, 50, 1.0)
            return estimate_many(job, samples, self._farm.ledger)
        return Estimate()

    # ------------------------------------------------------------------------------------------------ look

    def ls(self) -> list[Status]:
        """All datasets, by name."""
        found = []
        for name in datasets(self._farm.store):
            try:
                found.append(self.status(name))
            except NotFound:  # its planning broke off, or it is being deleted
                continue
            except BadBlob as error:
                _log.warning("dataset_unreadable", dataset=name, error=error.message)
        return found

    def owner(self, name: str) -> str:
        """Whose a dataset is; "" for nobody's in particular. Raises NotFound."""
        folder = Folder(self._farm.store, name)
        if folder.planned() is None and (asked := folder.read("asked.json")) is not None:
            return str(json.loads(asked)["owner"])
        return folder.plan().owner

    def status(self, name: str) -> Status:
        """How far a dataset is. Raises NotFound."""
        folder = Folder(self._farm.store, name)
        told = json.loads(folder.read("progress.json") or b"{}")
        if (plan := folder.planned()) is None:
            return self._unplanned(folder, told)
        control = folder.control()
        fed = self._is_fed(name)
        done, failed, open_ = told.get("done", 0), told.get("failed", 0), told.get("open", {})
        awake = fed and control.state == "running" and time.time() - told.get("updated", 0) < SILENT_S
        rate = told.get("rate") if awake else None
        left = plan.samples - done - failed - sum(open_.get(each, 0) for each in ("done", "failed"))
        return Status(
            name=name, state=control.state, samples=plan.samples, done=done, failed=failed, shards=plan.shards,
            shards_done=told.get("shards", 0), size_bytes=told.get("size_bytes", 0), rows=plan.rows,
            rejected=plan.rejected, priority=control.priority, fed=fed, open=open_, rate=rate,
            eta_s=round(max(0, left) / rate, 1) if rate else None, owner=plan.owner,
            trouble=json.loads(folder.read("trouble.json") or b"null") if control.state == "running" else None,
        )  # fmt: skip

    def _unplanned(self, folder: Folder, told: dict[str, Any]) -> Status:
        """A dataset that was asked for. Raises NotFound where none was."""
        asked, refused = folder.read("asked.json"), folder.read("refused.json")
        if asked is None:
            folder.plan()
        return Status(
            name=folder.name, state="planning" if refused is None else "refused", samples=0, done=0, failed=0, shards=0,
            shards_done=0, size_bytes=0, rows=told.get("planning", 0), rejected=0, priority=50,
            fed=refused is None and self._is_fed(folder.name), open={},
            rate=None, eta_s=None, owner=json.loads(asked or b"{}").get("owner", ""),
            refused=json.loads(refused) if refused else None,
        )  # fmt: skip

    def folder(self, name: str) -> Folder:
        """Where it lies. Raises NotFound."""
        folder = Folder(self._farm.store, name)
        folder.plan()
        return folder

    def failures(self, name: str, limit: int = 100) -> list[dict[str, Any]]:
        """The first samples that could not be made, with what their jobs said. Raises NotFound."""
        folder, found = self.folder(name), list[dict[str, Any]]()
        for number in folder.numbers():
            found += folder.stats(number)["failures"]
            if len(found) >= limit:
                break
        return found[:limit]

    # ------------------------------------------------------------------------------------------------ collect

    def export(
        self, name: str, out: str, spec: ExportSpec, work: Path | None = None, *, partial: bool = False
    ) -> Exported:
        """Writes a dataset to a folder or `s3://bucket/prefix` (see `farm.dataset.exporting`).

        Raises:
            Conflict: shards are not there yet, or lost, and not `partial`; or as `exporting.export`.
            InvalidJob, NotFound, BadBlob: as `exporting.export`.
            FarmError: (`bad_file`) the folder cannot be written.
        """
        folder = self.folder(name)
        there, shards = len(folder.numbers()), folder.plan().shards
        if there < shards and not partial:
            hint = f"`farm dataset run {name}` makes the others; --partial exports what is there"
            raise Conflict(f"{there} of {shards} shards of {name} are there", hint=hint)
        target = TargetBucket(self._farm.store, out) if out.startswith("s3://") else TargetFolder(Path(out))
        try:
            return export(folder, target, spec, self._about(folder), work=work)
        except OSError as error:
            raise FarmError(f"{out} cannot be written: {error.strerror}", code="bad_file") from None

    def mend(self, name: str, report: Report) -> list[int]:
        """Takes damaged shards for lost, so that `start` has them made again; their numbers. Raises NotFound."""
        folder = self.folder(name)
        numbers = sorted({one.shard for one in report.problems} & set(folder.numbers()))
        folder.delete(f"shards/{number:05d}_stats.json" for number in numbers)
        return numbers

    def has_feeder(self) -> bool:
        """Whether a process feeds all datasets that are to run, as far as Redis answers."""
        return self._is_fed(ANY)

    def verify(self, name: str) -> Report:
        """What is wrong with its shards, held against its plan: all of them are read. Raises NotFound."""
        folder = Folder(self._farm.store, name)
        plan = folder.plan()
        meant = Meant(name, plan.shards, folder.samples, folder.control().state == "done")
        return verify(folder, meant)

    def card(self, name: str) -> str:
        """What an export of all of it would say of itself. Raises NotFound."""
        folder = self.folder(name)
        plan, stats = folder.plan(), [folder.stats(number) for number in folder.numbers()]
        made = sum(int(one["successes"]) for one in stats)
        size = sum(int(file["bytes"]) for one in stats for file in one["files"].values())
        beside = tuple(sorted({name for one in stats for name in one["kept"]}))
        columns = Tars.columns(Layout(schema(plan.columns, plan.parameters), beside))
        figures = Figures({"train": made}, made, sum(int(one["failed"]) for one in stats), {}, size, columns)
        return card(self._about(folder), ExportSpec(), figures)

    def _about(self, folder: Folder) -> About:
        """What the card says beside the shards."""
        plan, stats = folder.plan(), [folder.stats(number) for number in folder.numbers()]
        weights = tuple(
            Licensed(
                name=one["name"],
                source=one.get("repo") or ("built by " + one["build"] if "build" in one else "files of its operator"),
                revision=one.get("revision") or f"files of the SHA-256 {one['manifest'][:16]}",
                licence=one["licence"],
            )
            for one in plan.checkpoints
        )
        took = {}
        if stats and (span := max(one["ended"] for one in stats) - min(one["began"] for one in stats)) > 0:
            made = sum(int(one["successes"]) for one in stats)
            took = {"samples a second, from the first submit to the last shard": f"{made / span:.2f}"}
        return About(plan.spec, plan.source["name"], plan.rows, weights, took, plan.safety)

    # ------------------------------------------------------------------------------------------------ steer

    def start(self, name: str, priority: int | None = None) -> Status:
        """Has it run, or go on, also where shards are lost: whoever feeds the farm's datasets does so within seconds.

        Raises NotFound.
        """
        status = self.status(name)
        if (state := status.state) == "done" and len(Folder(self._farm.store, name).numbers()) >= status.shards:
            return self.status(name) if priority is None else self._steer(name, state=state, priority=priority)
        more = {} if priority is None else {"priority": priority}
        return self._steer(name, state="running", held=False, **more)

    def pause(self, name: str) -> Status:
        """Holds it: stages that run may still commit, nothing new begins. Raises Conflict, NotFound."""
        if (state := self.status(name).state) not in ("running", "paused"):
            raise Conflict(f"{name} is {state}; only what runs can be paused")
        return self._steer(name, state="paused", held=False)

    def retry(self, name: str) -> Status:
        """Has what failed tried again; shards without failures stay as they are. Raises Conflict, NotFound."""
        folder = self.folder(name)
        status = self.status(name)
        if status.state != "done":
            raise Conflict(f"{name} is {status.state}; retry it when every sample was tried")
        if not any(folder.stats(number)["failed"] for number in folder.numbers()):
            raise Conflict(f"nothing of {name} has failed")
        return self._steer(name, state="running", held=False, round=folder.control().round + 1)

    def prioritise(self, name: str, priority: int) -> Status:
        """Puts its samples before or behind other bulk jobs: 0 to 100, higher runs first. Raises NotFound."""
        return self._steer(name, priority=priority)

    def _steer(self, name: str, **changes: Any) -> Status:
        try:
            Folder(self._farm.store, name).steer(**changes)
        except ValidationError:
            raise InvalidJob(errors=(FieldError("priority", "a whole number from 0 to 100"),)) from None
        return self.status(name)

    def rm(self, name: str, wait_s: float = 0.0) -> None:
        """Deletes it: plan, shards, and its jobs in the ledger. What was exported stays.

        Also what a deletion that broke off has left. `wait_s`: so long its feeder may take to leave it.

        Raises:
            NotFound: there is nothing of this name.
            Conflict: it is running, or its feeder has not left it yet.
        """
        folder = Folder(self._farm.store, name)
        if not folder.names(""):
            folder.plan()
        plan, control = folder.planned(), folder.control()
        if plan and control.state == "running":
            raise Conflict(f"{name} is running; pause it first")
        seats, until = Seats(self._farm.settings), time.monotonic() + wait_s
        with seats.held():
            # Nobody else writes to it from now on.
            while not seats.take(name):
                if time.monotonic() >= until:
                    raise Conflict(f"{name} is being left by its feeder; try again in a few seconds")
                time.sleep(LOOK_S)
            if plan:
                self._drop_jobs(folder, plan, control.round)
            # First what makes it one: what is left of a deletion that breaks off is no dataset.
            folder.delete(["plan.json", "asked.json", "control.json"])
            folder.delete(folder.names(""))

    def _drop_jobs(self, folder: Folder, plan: Plan, round: int) -> None:
        """Cancels and forgets the jobs of the shards that may be in work."""
        numbers = list(range(plan.shards))
        if not round:
            there = set(folder.numbers())
            most = RESTED * max(2, self._farm.settings.dataset_open // plan.spec.shard_samples)
            numbers = [number for number in numbers if number not in there][:most]
        for number in numbers:
            run = run_of(plan.identity, number, round)
            with suppress(NotFound):
                self._farm.ledger.cancel_run(run)
                self._farm.ledger.forget(self._farm.ledger.run_jobs(run))

    def _is_fed(self, name: str) -> bool:
        """Whether a process has its seat, as far as Redis answers."""
        with suppress(Unavailable), within(PATIENCE_S):
            return bool(self._seats(lambda seats: seats.holder(name)))
        return False

    def _seats(self, call: Callable[[Seats], str]) -> str:
        seats = Seats(self._farm.settings)
        try:
            return call(seats)
        finally:
            seats.close()


def _spec(name: str, chain: dict[str, Any], asked: Mapping[str, Any]) -> DatasetSpec:
    """What a dataset is asked to be. Raises InvalidJob."""
    try:
        return DatasetSpec.model_validate({"name": name, "chain": chain, **asked})
    except ValidationError as error:
        found = [FieldError(".".join(map(str, one["loc"])) or "dataset", one["msg"]) for one in error.errors()[:50]]
        raise InvalidJob(errors=tuple(found)) from None


def as_data(one: Planned | Status) -> dict[str, Any]:
    """The same for programs."""
    if isinstance(one, Status):
        return asdict(one)
    plan = one.plan
    return {
        "name": plan.spec.name,
        "fresh": one.fresh,
        "rows": plan.rows,
        "rejected": plan.rejected,
        "samples": plan.samples,
        "shards": plan.shards,
        "columns": list(plan.columns),
        "sizes": [list(size) for size in plan.sizes],
        "cost_s": one.estimate.cost_s,
        "eta_s": one.estimate.eta_s,
        "size_bytes_most": one.size_bytes_most,
        "digest": plan.digest,
        "rejects": [asdict(row) for row in one.rejected],
        "first": [_sample(sample) for sample in one.first],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "key": sample.key,
        "row": sample.row,
        "variant": sample.variant,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": sample.seed,
        "changes": dict(sample.changes),
        "columns": dict(sample.columns),
    }
