"""How are datasets made on a farm elsewhere?

`RemoteDatasets` has the words of `farm.dataset.desk.Datasets` that HTTP can carry, and `fetch`. The API plans nothing
itself: whoever feeds that farm's datasets does, and is waited for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.dataset.status import Status
from farm.errors import BadBlob, Conflict, FieldError, InvalidJob, NotFound
from farm.protocol import ChainSource
from farm.remote.asks import OWN, chain_ask, named, sweep_ask
from farm.remote.sync import RemoteFarm
from farm.remote.wire import Call, Steps, ask, asked, get, part

LOOK_S = 1.0
"""Pause between two looks at a dataset that is being planned, or left by its feeder, seconds."""
UPLOAD_S = 3600.0
"""How long a file may take to go up, seconds."""
MARK = ".dataset.json"
"""The file that says whose shards a folder holds; loaders pass over hidden files."""
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
        after = None
        while True:
            page = self._farm.play(get(path, **{following: after}))
            yield from page[field]
            if (after := page["next"]) is None:
                return

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

    def fetch(self, name: str, folder: Path) -> Iterator[tuple[str, int]]:
        """Downloads its shards that are there, each with its table; gives each file's name and bytes, 0 if it was here.

        A file appears whole, its SHA-256 checked. What lies in `folder` from an earlier call stays if it is the same;
        a folder is for one dataset, and has nothing else in it.

        Raises:
            NotFound: there is no such dataset.
            Conflict: it has no plan yet; or the folder has another dataset in it, or something else.
            BadBlob: the bytes of a file are other ones than were written.
            InvalidJob: (`bad_file`) the folder cannot be written.
        """
        plan = self._farm.play(get(f"datasets/{part(name)}"))["plan"]
        if plan is None:
            raise Conflict(f"{name} is not planned, so there is nothing of it")
        try:
            _claim(folder, {"name": name, "identity": plan["identity"]})
            for shard in self._pages(f"datasets/{part(name)}/shards", "shards", "after"):
                for end in ("tar", "parquet"):
                    target, wanted = folder / f"{shard['shard']:05d}.{end}", shard[end]
                    if target.exists() and target.stat().st_size == wanted["size_bytes"]:
                        with target.open("rb") as file:
                            if hashlib.file_digest(file, "sha256").hexdigest() == wanted["sha256"]:
                                yield target.name, 0
                                continue
                    self._download(wanted, target)
                    yield target.name, wanted["size_bytes"]
        except OSError as error:
            raise InvalidJob(f"{folder} cannot be written: {error.strerror}", code="bad_file") from None

    def _download(self, wanted: Mapping[str, Any], target: Path) -> None:
        leads = self._farm.play(ask(Call("GET", wanted["url"], again=True), 307))
        fresh = target.with_name(f".{target.name}.part")
        try:
            # Without the token: who stores the shards has no business with it.
            sha256 = self._farm.save_to(fresh, Call("GET", leads.headers["location"], known=False))
            if sha256 != wanted["sha256"]:
                raise BadBlob(f"the bytes of {target.name} are not those that were written; try again")
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)


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
    return InvalidJob(refused["message"], code=refused["code"], errors=(*rows, *wrong))
