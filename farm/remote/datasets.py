"""How are datasets made on a farm elsewhere?

`RemoteDatasets` has the words of `farm.dataset.desk.Datasets`, and `fetch`. The API plans nothing itself: whoever feeds
that farm's datasets does, and is waited for. Nor does it export or verify: that is done here, with the shards that it
gives out (`farm.remote.shelves`), and may take hours, which no call has. `export` keeps no shard; `fetch` keeps all of
them, so that an export with other wishes, or without any farm, downloads nothing (`farm dataset export --from`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.dataset.fetched import MARK, NOTES
from farm.dataset.shelves import installed
from farm.dataset.status import Status
from farm.errors import BadBlob, Conflict, FieldError, InvalidJob, NotFound
from farm.protocol import ChainSource
from farm.remote.asks import OWN, chain_ask, named, sweep_ask
from farm.remote.shelves import RemoteShards, listed
from farm.remote.sync import RemoteFarm
from farm.remote.wire import Call, Steps, ask, asked, get, part
from farm.store import Store

if TYPE_CHECKING:
    from farm.dataset.choosing import ExportSpec
    from farm.dataset.exporting import Exported
    from farm.dataset.verifying import Report

LOOK_S = 1.0
"""Pause between two looks at a dataset that is being planned, or left by its feeder, seconds."""
UPLOAD_S = 3600.0
"""How long a file may take to go up, seconds."""
TYPE = {"Content-Type": "application/octet-stream"}


class RemoteDatasets:
    """The datasets of a farm elsewhere that are the token's owner's. Every call may raise Unavailable."""

    def __init__(self, farm: RemoteFarm) -> None:
        self._farm = farm

    def plan(
        self,
        file: str | Path,
        name: str,
        chain: ChainSource = "txt",
        *,
        chain_fields: Mapping[str, Any] | None = None,
        wildcards: Mapping[str, Sequence[str]] | None = None,
        format: str | None = None,
        partial: bool = False,
        progress: Callable[[Status], None] | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        """Sends a file, asks for its dataset, and waits until that is planned: what it was planned to be.

        `chain_fields` are what `Farm.chain` takes beside the chain, `given` fields of DatasetSpec; `format` says what
        the file is where its name does not. Rows name images as stored ones alone. The same file and words, given
        again, are the same dataset. `progress` is told now and then how far the planning is.

        Raises:
            InvalidJob: the file, what is asked for, or rows are wrong, and not `partial`; nothing was planned.
            Conflict: there is another dataset of this name.
        """
        path, fields = Path(file), dict(chain_fields or {})
        texts: dict[str, Any] = {one: fields.pop(one) for one in ("prompt", "negative_prompt") if one in fields}
        body = {**texts, **given, "name": name, "partial": partial}
        body |= self._farm.play(_chain_fields(chain, fields))
        if given.get("sweep"):
            body["sweep"] = self._farm.play(sweep_ask(given["sweep"], body["chain"]))
        if wildcards:
            body["wildcards"] = {word: list(lines) for word, lines in wildcards.items()}
        try:
            fresh = self.status(name).state == "refused"
        except NotFound:
            fresh = True
        body["file"] = self._sent(path, format)
        self._farm.play(asked(Call("POST", "datasets", json=body, again=True)))
        while (status := self.status(name)).state == "planning":
            if progress:
                progress(status)
            time.sleep(LOOK_S)
        if status.refused is not None:
            raise _refusal(status.refused)
        return {**self._planned(name), "fresh": fresh}

    def _sent(self, path: Path, format: str | None) -> str:
        """The id of a file of rows that is there now; the same file has the same one."""
        name = path.name
        if format:
            name = f"{path.name.split('.')[0]}.{format}{'.gz' if path.suffix == '.gz' else ''}"
        # Twice it is the same file, whose name is its hash.
        call = Call(
            "POST", "datasets/files", {"name": name}, content=path, headers=TYPE, again=True, timeout_s=UPLOAD_S
        )
        try:
            return str(self._farm.play(asked(call))["id"])
        except OSError as error:
            raise InvalidJob(f"{path}: {error.strerror}", code="bad_file") from None

    def _planned(self, name: str) -> dict[str, Any]:
        found = self._farm.play(get(f"datasets/{part(name)}"))
        told = {one: found[one] for one in ("name", "rows", "rejected", "samples", "shards")}
        plan = ("columns", "parameters", "sizes", "cost_s", "eta_s", "size_bytes_most", "rejects", "first")
        return {**told, **{one: found["plan"][one] for one in plan}}

    # ------------------------------------------------------------------------------------------------ look

    def ls(self) -> list[Status]:
        """All of them, by name."""
        return [_status(one) for one in self._pages("datasets", "datasets", "cursor")]

    def status(self, name: str) -> Status:
        """How far a dataset is. Raises NotFound."""
        return _status(self._farm.play(get(f"datasets/{part(name)}")))

    def failures(self, name: str, limit: int = 100) -> list[dict[str, Any]]:
        """The first samples that could not be made, with what their jobs said. Raises NotFound."""
        found = list[dict[str, Any]]()
        for one in self._pages(f"datasets/{part(name)}/failures", "failures", "after"):
            found.append(one)
            if len(found) == limit:
                break
        return found

    def card(self, name: str) -> str:
        """What an export of all of it would say of itself. Raises NotFound."""
        return self._farm.play(ask(Call("GET", f"datasets/{part(name)}/card", again=True))).content.decode()

    def _pages(self, path: str, field: str, following: str) -> Iterator[Any]:
        """What a list has, page by page."""
        for page in listed(self._farm, path, following):
            yield from page[field]

    # ------------------------------------------------------------------------------------------------ steer

    def start(self, name: str, priority: int | None = None) -> Status:
        """Has it run, or go on, also where shards are lost. Raises InvalidJob, NotFound."""
        if priority is not None:
            self.prioritise(name, priority)
        return self._told("start", name)

    def pause(self, name: str) -> Status:
        """Holds it: stages that run may still commit, nothing new begins. Raises Conflict, NotFound."""
        return self._told("pause", name)

    def retry(self, name: str) -> Status:
        """Has what failed tried again. Raises Conflict, NotFound."""
        return self._told("retry", name)

    def prioritise(self, name: str, priority: int) -> Status:
        """Puts its samples before or behind other bulk jobs: 0 to 100. Raises InvalidJob, NotFound."""
        return _status(
            self._farm.play(asked(Call("PATCH", f"datasets/{part(name)}", json={"priority": priority}, again=True)))
        )

    def rm(self, name: str, wait_s: float = 0.0) -> None:
        """Deletes it; `wait_s`: so long its feeder may take to leave it. Raises Conflict, NotFound."""
        until = time.monotonic() + wait_s
        while True:
            try:
                self._farm.play(ask(Call("DELETE", f"datasets/{part(name)}", again=True)))
                return
            except Conflict:
                if time.monotonic() >= until or self.status(name).state == "running":
                    raise
            time.sleep(LOOK_S)

    def _told(self, verb: str, name: str) -> Status:
        return _status(self._farm.play(asked(Call("POST", f"datasets/{part(name)}/{verb}", again=True))))

    # ------------------------------------------------------------------------------------------------ collect

    def export(
        self, name: str, out: str, spec: ExportSpec, work: Path | None = None, *, partial: bool = False
    ) -> Exported:
        """Writes a dataset to a folder or `s3://bucket/prefix`, as that farm itself would: shard by shard, from here.

        S3 is reached as AWS's own variables say. For a dataset that is exported often, `fetch` it once.

        Raises:
            BadBlob: a shard is not the one that was written.
            Conflict, InvalidJob, NotFound: as `farm.dataset.collecting.exported`.
        """
        with installed():
            from farm.dataset.collecting import exported
        shards, store = RemoteShards(self._farm, name), Store(self._farm.settings)
        return exported(shards, out, spec, store, work, partial=partial)

    def verify(self, name: str) -> Report:
        """What is wrong with its shards, held against its plan: all of them are read, from here. Raises NotFound."""
        with installed():
            from farm.dataset.collecting import verified
        whole = self.status(name).state == "done"
        return verified(RemoteShards(self._farm, name), whole=whole)

    def mend(self, name: str, report: Report) -> list[int]:
        """Takes damaged shards for lost, so that `start` has them made again; their numbers. Raises NotFound.

        What was written again since `report` is left alone.
        """
        with installed():
            from farm.dataset.verifying import still_wrong
        found = list[int]()
        for number in still_wrong(RemoteShards(self._farm, name), report):
            with suppress(NotFound, BadBlob):  # it is lost already, or could not be made again
                self._farm.play(ask(Call("DELETE", f"datasets/{part(name)}/shards/{number}", again=True)))
                found.append(number)
        return found

    def fetch(self, name: str, folder: Path) -> Iterator[tuple[str, int]]:
        """Downloads its shards that are there, each with its table; gives each file's name and bytes, 0 if it was here.

        A file appears whole, its SHA-256 checked. What lies in `folder` from an earlier call stays if it is the same;
        a folder is for one dataset, and has nothing else in it. What an export needs besides comes along, hidden from
        loaders (`farm.dataset.fetched`).

        Raises:
            NotFound: there is no such dataset.
            Conflict: it has no plan yet; or the folder has another dataset in it, or something else.
            BadBlob: the bytes of a file are other ones than were written; or shards are damaged, all others are here.
            InvalidJob: (`bad_file`) the folder cannot be written.
        """
        at = f"datasets/{part(name)}"
        plan = self._farm.play(get(at))["plan"]
        if plan is None:
            raise Conflict(f"{name} is not planned, so there is nothing of it")
        shards, damaged = RemoteShards(self._farm, name), list[int]()
        try:
            _claim(folder, {"name": name, "identity": plan["identity"]})
            notes = folder / NOTES
            notes.mkdir(exist_ok=True)
            # As it is: a plan of a later build can be kept, if not read.
            whole = self._farm.play(ask(Call("GET", f"{at}/plan", again=True))).content
            _write(notes / "plan.json", whole)
            for page in listed(self._farm, f"{at}/shards", "after"):
                damaged += page["damaged"]
                for one in page["shards"]:
                    for end in ("tar", "parquet"):
                        target = folder / f"{one['shard']:05d}.{end}"
                        yield target.name, self._brought(shards, one["shard"], end, target, one[end])
                    self._note(shards, one, notes)
        except OSError as error:
            raise InvalidJob(f"{folder} cannot be written: {error.strerror}", code="bad_file") from None
        if damaged:
            hint = f"`farm dataset verify {name} --repair` has them made again"
            raise BadBlob(f"shards {', '.join(map(str, damaged))} are damaged; all others are here", hint=hint)

    def _brought(self, shards: RemoteShards, number: int, end: str, target: Path, wanted: Mapping[str, Any]) -> int:
        """The bytes of a file that had to be downloaded; 0 where it was here. Raises BadBlob."""
        if target.exists() and target.stat().st_size == wanted["size_bytes"]:
            with target.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == wanted["sha256"]:
                    return 0
        # Until all of it is here it is no shard: what says that it is whole goes first.
        (target.parent / NOTES / f"{number:05d}_stats.json").unlink(missing_ok=True)
        try:
            if shards.bring(number, end, target, wanted["sha256"]):
                return int(wanted["size_bytes"])
        except NotFound:
            raise BadBlob(f"{target.name} is missing") from None
        target.unlink()
        raise BadBlob(f"the bytes of {target.name} are not those that were written; try again")

    def _note(self, shards: RemoteShards, shard: Mapping[str, Any], notes: Path) -> None:
        """Brings what belongs to a shard beside its files; its stats last, which say that all is here."""
        number = shard["shard"]
        samples, stats = notes / f"{number:05d}_samples.jsonl.gz", shards.stats(number)
        if not samples.exists():  # a dataset's plan never changes
            with suppress(NotFound):
                shards.bring(number, "samples", samples)
        with suppress(NotFound):
            shards.bring(number, "scores", notes / f"{number:05d}_scores.parquet")
        if any(stats["files"][f"{number:05d}.{end}"]["sha256"] != shard[end]["sha256"] for end in ("tar", "parquet")):
            raise BadBlob(f"shard {number} was just made again; try again")
        told = json.dumps(stats, sort_keys=True, indent=1, ensure_ascii=False)
        _write(notes / f"{number:05d}_stats.json", told.encode())


def _write(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all. Raises OSError."""
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(data)
    fresh.replace(path)


def _claim(folder: Path, own: dict[str, str]) -> None:
    """Makes the folder one dataset's. Raises Conflict where it has something else in it, InvalidJob, OSError."""
    if folder.exists() and not folder.is_dir():
        raise InvalidJob(f"{folder} is a file; give a folder", code="bad_file")
    folder.mkdir(parents=True, exist_ok=True)
    mark, hint = folder / MARK, "give a new folder"
    if mark.exists():
        try:
            there = json.loads(mark.read_text())
        except ValueError:
            there = None
        if there != own:
            raise Conflict(f"{folder} holds another dataset, or an earlier one of this name", hint=hint)
    elif any(folder.iterdir()):
        raise Conflict(f"{folder} holds something else", hint=hint)
    else:
        mark.write_text(json.dumps(own))


def _chain_fields(chain: ChainSource, fields: Mapping[str, Any]) -> Steps[dict[str, Any]]:
    """The fields `chain` and `parameters` of what is asked for; what is the chain's own is put into it."""
    own = {name: value for name, value in fields.items() if name in OWN}
    written, parameters = yield from chain_ask(chain, {key: value for key, value in fields.items() if key not in OWN})
    if own and isinstance(written, str):
        written = (yield from named(written)) or written  # one that nobody knows the API refuses, with what is near
    return {"chain": {**written, **own} if own and isinstance(written, Mapping) else written, "parameters": parameters}


def _status(found: Mapping[str, Any]) -> Status:
    return Status(**{name: found[name] for name in Status.__dataclass_fields__})


def _refusal(refused: Mapping[str, Any]) -> InvalidJob:
    """Why what was asked for was not planned, as planning here would say it."""
    rows = [
        FieldError(f"rows.{one['row']}" + (f".{one['column']}" if one["column"] else ""), one["message"], one["code"])
        for one in refused["rows"]
    ]
    wrong = [FieldError(one["loc"], one["msg"], one["code"]) for one in refused["errors"]]
    return InvalidJob(refused["message"], code=refused["code"], hint=refused["hint"], errors=(*rows, *wrong))
