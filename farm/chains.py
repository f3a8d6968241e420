"""Which chains have a name, and what does a name mean?

The catalog's are its operator's. Others people save: one object each, `<prefix>chains/<name>.json` in the store, so
that they outlive Redis. Each write but a deletion is conditional: of two at a time the first wins, and the other is
told. Everybody sees and uses them; who saved one, or an admin, replaces and deletes it. A name of the catalog's is
never a saved one's.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from copy import deepcopy
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.catalog import Catalog
from farm.errors import BadBlob, Conflict, FieldError, Forbidden, InvalidJob, NotFound, Unavailable
from farm.named import NAME, RULE
from farm.plan import wrong
from farm.records import instant
from farm.s3 import reaching
from farm.stage import Prompt
from farm.store import Store

_log = structlog.get_logger(__name__)
FILES = (".json", ".yaml", ".yml")
"""What ends so is a chain file's path, and no name."""
MAX_BYTES = 1 << 16
"""Largest saved chain, as JSON in UTF-8: eight stages with the longest prompts, in English, take 35 KiB."""
MAX_SAVED, MAX_OWNED = 200, 50
"""Saved chains of a farm, and of one owner: all are in every list and in one menu, which has 13 MB at most. They are
counted before a write: of those who write at the same time each may be one past it."""
READERS = 8
"""Objects that are read at the same time: each read waits for the store."""
MAX_NEAR = 20
"""So many names of saved chains are told where none of a name is there."""


class NamedChain(BaseModel):
    """A chain that has a name: the catalog's, or a saved one, as it lies in the store.

    `chain` is as in a chain file. `saved_ms`: when it was saved, milliseconds since 1970; 0 for the catalog's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    name: str
    description: Prompt = Field("", description="what it gives; as long as a prompt may be")
    chain: dict[str, Any]
    owner: str = Field("", description="who saved it; nobody in particular where it was past the API")
    saved_ms: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """The same as a farm tells it; `fields` are the chain's own, such as its prompt."""
        fields = deepcopy(self.chain)  # whoever is told may change it
        stages = fields.pop("stages")
        return {
            "name": self.name, "description": self.description, "stages": stages, "fields": fields,
            "owner": self.owner, "saved": instant(self.saved_ms),
        }  # fmt: skip


class NamedChains:
    """The chains of one farm that have a name. Every call may raise Unavailable, but for a name of the catalog's."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog, self._store = catalog, store
        # What an object of this ETag holds never changes: a list reads only those that are new.
        self._read: dict[str, tuple[str, NamedChain]] = {}

    # ------------------------------------------------------------------------------------------------ look

    def find(self, name: str) -> NamedChain:
        """The chain that `name` means.

        Raises:
            InvalidJob: (`unknown_preset`) none does; tells near names, and which there are.
            BadBlob: it is a saved one, and cannot be read.
        """
        try:
            return self.show(name)
        except NotFound:
            names = sorted(self._catalog.presets)
            with suppress(Unavailable):
                names += sorted(set(self._names()) - {*names})
        near = difflib.get_close_matches(name, names, 1)
        told = f"; did you mean {near[0]}?" if near else ""
        most = len(self._catalog.presets) + MAX_NEAR
        more = f" and {len(names) - most} more" if len(names) > most else ""
        msg = f"no chain of this name{told}; choose one of {', '.join(names[:most])}{more}"
        raise InvalidJob(errors=(FieldError("chain", msg, "unknown_preset"),))

    def show(self, name: str) -> NamedChain:
        """The same. Raises BadBlob; NotFound where no chain has this name."""
        if name in self._catalog.presets:
            return self._of_catalog(name)
        if (found := self._stored(name)) is None:
            raise NotFound("there is no chain of this name", hint="`farm chain ls` lists them")
        return found[0]

    def ls(self, *, saved: bool = True) -> list[NamedChain]:
        """The catalog's in its order, then the saved ones by name; without `saved` the catalog's alone."""
        ours = [self._of_catalog(name) for name in self._catalog.presets]
        return [*ours, *(one for one in self._saved() if one.name not in self._catalog.presets)] if saved else ours

    def _of_catalog(self, name: str) -> NamedChain:
        preset = self._catalog.presets[name]
        # Unchecked: what the operator says of a chain has no limit.
        return NamedChain.model_construct(
            name=name, description=preset.description, chain={"stages": preset.stages}, owner="", saved_ms=0
        )

    def _saved(self) -> list[NamedChain]:
        there, known = self._names(), self._read

        def now(name: str) -> tuple[str, NamedChain] | None:
            if name in known and known[name][0] == there[name]:
                return known[name]
            try:
                stored = self._stored(name)
            except BadBlob as error:  # the others are told all the same
                _log.warning("chain_unreadable", chain=name, error=error.message)
                return None
            return stored and (stored[1], stored[0])

        with ThreadPoolExecutor(READERS) as readers:
            found = [one for one in readers.map(now, sorted(there)) if one is not None]
        # In one step: others look at the same time.
        self._read = {one.name: (etag, one) for etag, one in found}
        return [one for _, one in found]

    # ------------------------------------------------------------------------------------------------ change

    def save(
        self,
        name: str,
        chain: Mapping[str, Any],
        description: str = "",
        *,
        replace: bool = False,
        owner: str = "",
        admin: bool = True,
    ) -> tuple[NamedChain, bool]:
        """Keeps a chain that was checked, as in a chain file: it, and whether there was none of this name.

        The same once more is the same. A chain that is replaced stays its owner's. An `admin` may replace everybody's.

        Raises:
            InvalidJob: the name or description is not possible, or the chain is too large; nothing was saved.
            Conflict: the catalog, or another chain, has this name and `replace` is not said; somebody else has changed
                it at the same time; or there are as many as there may be.
            Forbidden: it is somebody else's.
        """
        check_name(name)
        if name in self._catalog.presets:
            raise Conflict("the farm's catalog has a chain of this name", hint="choose another name")
        there = self._stored_or_broken(name)
        before = there[0] if there else None
        fresh = self._made(name, chain, description, before.owner if before else owner)
        if before and (before.owner == owner or admin) and _is_same(before, fresh):
            return before, False
        if there and not replace:
            raise _taken()
        if there and not admin and (before is None or before.owner != owner):
            raise _foreign()
        if not there:
            self._check_room(owner, admin)
        data = fresh.model_dump_json().encode()
        if len(data) > MAX_BYTES:
            raise wrong("chain", f"{len(data)} bytes as JSON, and a saved chain has at most {MAX_BYTES}")
        told = {
            "Bucket": self._store.bucket, "Key": self._key(name), "Body": data, "ContentType": "application/json"
        }  # fmt: skip
        with reaching("save a chain"):
            if self._store.put_over(told, there[1]) if there else self._store.put_first(told):
                return fresh, not there
        # Somebody was quicker, or a reply of ours was lost.
        now = self._stored(name)
        if now and now[0].owner == fresh.owner and _is_same(now[0], fresh):
            return now[0], not there
        if there:
            raise Conflict("somebody else has changed this chain just now", hint="look at it, then save it again")
        raise _taken()

    def delete(self, name: str, *, owner: str = "", admin: bool = True) -> None:
        """Deletes a saved chain; jobs and datasets that were asked for with it are as they were.

        Raises:
            NotFound: there is none.
            Conflict: it is the catalog's.
            Forbidden: it is somebody else's, and not an `admin` asks.
        """
        there = self._stored_or_broken(name)
        if not there:
            if name in self._catalog.presets:
                raise Conflict("this chain is of the farm's catalog", hint="its operator removes it there")
            raise NotFound("there is no chain of this name", hint="`farm chain ls` lists them")
        if not admin and (there[0] is None or there[0].owner != owner):
            raise _foreign()
        with reaching("delete a chain"):
            self._store.client.delete_object(Bucket=self._store.bucket, Key=self._key(name))

    def _made(self, name: str, chain: Mapping[str, Any], description: str, owner: str) -> NamedChain:
        try:
            return NamedChain(
                name=name, description=description, chain=dict(chain), owner=owner, saved_ms=int(time.time() * 1000)
            )
        except ValidationError:
            told = "a text of at most 2000 characters, without control characters but tab and newline"
            raise wrong("description", told) from None

    def _check_room(self, owner: str, admin: bool) -> None:
        hint = "delete one that is not needed: `farm chain rm`"
        if len(names := self._names()) >= MAX_SAVED:
            raise Conflict(f"{len(names)} chains are saved, and a farm keeps at most {MAX_SAVED}", hint=hint)
        if not admin and sum(one.owner == owner for one in self._saved()) >= MAX_OWNED:
            raise Conflict(f"{MAX_OWNED} chains are yours, and an owner has at most so many", hint=hint)

    # ------------------------------------------------------------------------------------------------ objects

    def _key(self, name: str) -> str:
        return f"{self._store.prefix}chains/{name}.json"

    def _names(self) -> dict[str, str]:
        """The names of all saved chains, each with the ETag of what it is now."""
        if not self._store.is_named:
            return {}
        start, ends = f"{self._store.prefix}chains/", ".json"
        with reaching("list the saved chains"):
            pages = self._store.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._store.bucket, Prefix=start
            )
            found = {one["Key"][len(start) :]: one["ETag"] for page in pages for one in page.get("Contents", [])}
        return {key[: -len(ends)]: etag for key, etag in found.items() if key.endswith(ends)}

    def _stored_or_broken(self, name: str) -> tuple[NamedChain | None, str] | None:
        """The same as `_stored`; None in place of a chain that cannot be read, so that it can be replaced."""
        try:
            return self._stored(name)
        except BadBlob:
            return None, self._names().get(name, "")

    def _stored(self, name: str) -> tuple[NamedChain, str] | None:
        """A saved chain, and the ETag of what it is now; None where there is none. Raises BadBlob."""
        if not is_name(name) or not self._store.is_named:
            return None
        try:
            with reaching("read a saved chain"):
                found = self._store.client.get_object(Bucket=self._store.bucket, Key=self._key(name))
                with closing(found["Body"]) as body:
                    data = body.read(MAX_BYTES + 1)
        except NotFound:
            return None
        try:
            one = NamedChain.model_validate_json(data)
        except ValidationError:
            one = None
        if one is None or not _has_stages(one.chain):
            raise BadBlob(f"the saved chain {name} cannot be read by this build")
        return one.model_copy(update={"name": name}), found["ETag"]


def is_name(name: str) -> bool:
    """Whether a saved chain may be called so."""
    return re.fullmatch(NAME, name) is not None and not name.endswith(FILES)


def check_name(name: str) -> None:
    """Raises InvalidJob where no saved chain may be called so."""
    if not isinstance(name, str) or not is_name(name):
        raise wrong("name", f"{RULE}, and not the end of a file's name ({', '.join(FILES)})")


def _has_stages(chain: Mapping[str, Any]) -> bool:
    """Whether it is what a list of chains shows: stages, each of a kind; which there are is for a submit to say."""
    stages = chain.get("stages")
    return isinstance(stages, list) and all(
        isinstance(one, dict) and isinstance(one.get("kind"), str) for one in stages
    )


def _is_same(one: NamedChain, other: NamedChain) -> bool:
    return (one.chain, one.description) == (other.chain, other.description)


def _taken() -> Conflict:
    hint = "choose another name, or say that it is to be replaced"
    return Conflict("there is another chain of this name already", hint=hint)


def _foreign() -> Forbidden:
    return Forbidden("only who saved this chain, or an admin, changes it", hint="save it under another name")
