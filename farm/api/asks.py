"""Which jobs does a request ask for?

A chain (a name, the catalog's or a saved one's, or a mapping as in a chain file), parameters over it, and how many:
`count` pictures with rising seeds, and `sweep`, a list of axes (see `farm.sweep`)::

    {"chain": "txt", "sweep": [{"prompt": ["a pear", "a plum"]}, {"0.guidance_scale": [3, 7], "seed": [1, 2]}]}

is four jobs. Images are named as `sha256:HEX`, as an upload answers. Nothing here opens a file or an address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from farm import whose
from farm.api.callers import Caller
from farm.api.kept import Kept
from farm.chain import Chain, Keep, override, parse_chain
from farm.chains import NamedChain
from farm.client import Farm
from farm.errors import BadBlob, InvalidJob
from farm.image import Fit, Stored
from farm.job import Job, canonical
from farm.plan import wrong
from farm.records import Lane
from farm.stage import MAX_SEED, STORED
from farm.sweep import MAX_AXES, Listed
from farm.tags import MOST, RULE

_OWN = ("prompt", "negative_prompt", "seed", "fit", "exact", "reuse", "keep")
"""Fields of the chain itself; every other name of a sweep or of `parameters` is a stage's."""


class Ask(BaseModel):
    """What a caller sends: strict, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class JobAsk(Ask):
    """Jobs to submit."""

    chain: str | dict[str, Any] = Field("hires", description="a chain's name, or a chain as in a chain file")
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="of the first picture; default: drawn")
    fit: Fit | None = None
    exact: bool | None = None
    reuse: bool | None = None
    keep: Keep | None = Field(None, description="of each stage before the last: its picture, a preview, or nothing")
    parameters: dict[str, Any] = Field({}, description="NAME sets every stage that has it, I.NAME that of stage I")
    image: str | None = Field(None, max_length=71, description="what the chain begins with: sha256:HEX of an upload")
    count: int = Field(1, ge=1, description="pictures of each variant, with seed, seed + 1, …")
    sweep: Listed = Field(
        [],
        max_length=MAX_AXES,
        description="axes; the lists of one axis go side by side, axes multiply; A..B: whole numbers from A to B",
    )
    lane: Lane = "interactive"
    priority: int = Field(50, ge=0, le=100)
    deadline_s: float | None = Field(None, gt=0, description="seconds until the jobs expire")
    tags: list[str] = Field([], max_length=MOST, description=f"words by which the jobs are found again, each of {RULE}")


class Place(Ask):
    """Another place in the line."""

    priority: int = Field(ge=0, le=100, description="higher runs first")
    lane: Lane | None = None


def body_sha256(ask: JobAsk) -> str:
    """What tells one request from another under the same idempotency key."""
    told = ask.model_dump(mode="json")
    if not ask.tags:  # a request that was sent before there were tags is the same one
        del told["tags"]
    return hashlib.sha256(canonical(told).encode()).hexdigest()


def jobs_of(farm: Farm, kept: Kept, caller: Caller, ask: JobAsk, key: str, *, upload: bool) -> list[Job]:
    """The jobs of a request, every rule checked; without `upload` nothing is stored.

    Raises:
        InvalidJob: something does not fit; names each wrong field.
        Unavailable: the store or the ledger does not answer.
    """
    image = _image(farm, kept, caller, ask.image)
    options: dict[str, Any] = {
        "lane": ask.lane, "priority": ask.priority, "deadline_s": ask.deadline_s, "tags": ask.tags
    }  # fmt: skip

    # Once: all variants are of the same chain, whoever saves another one meanwhile.
    data = written(farm, kept, caller, ask.chain)

    def variant_of(changes: Mapping[str, Any]) -> Chain:
        chain = _chain(data, ask, changes)
        check_images(chain, kept, caller)
        return chain

    full = caller.key(key)
    return farm.swept(variant_of, ask.sweep, image, ask.count, idempotency_key=full, upload=upload, **options)


def written(farm: Farm, kept: Kept, caller: Caller, chain: str | Mapping[str, Any]) -> dict[str, Any]:
    """A chain as in a chain file; the images that a saved one names are the caller's to name from then on.

    Raises:
        InvalidJob: (`unknown_preset`) no chain has this name; tells which are near.
        Unavailable: the store or the ledger does not answer.
    """
    if not isinstance(chain, str):
        return dict(chain)
    found = farm.chains.find(chain)
    grant(found, kept, caller)
    return dict(found.chain)


def grant(found: NamedChain, kept: Kept, caller: Caller) -> None:
    """Notes that the caller may name the images that a saved chain does: who saved it gave them to all."""
    if not found.saved_ms:
        return
    with suppress(InvalidJob):  # one that is not possible any more is used by nobody
        for stage in parse_chain(found.chain).stages:
            for value, _ in stage.uploads().values():
                kept.own_image(caller.owner, value.removeprefix(STORED))


def _chain(written: Mapping[str, Any], ask: JobAsk, changes: Mapping[str, Any]) -> Chain:
    """The chain of one variant."""
    data = dict(written)
    given = {name: getattr(ask, name) for name in _OWN}
    data |= {name: value for name, value in given.items() if value is not None}
    data |= {name: value for name, value in changes.items() if name in _OWN}
    parameters = {**ask.parameters, **{name: value for name, value in changes.items() if name not in _OWN}}
    if parameters and isinstance(data.get("stages"), list):
        data["stages"] = override(data["stages"], parameters)
    return parse_chain(data)


def check_images(chain: Chain, kept: Kept, caller: Caller, first: int = 0) -> None:
    """Refuses images that stages, from `first` on, name otherwise than as the caller's uploads: no path, no address."""
    whose.check_images(chain, partial(kept.owns_image, caller.owner), first)


def _image(farm: Farm, kept: Kept, caller: Caller, name: str | None) -> bytes | None:
    """The bytes of the image that the chain begins with."""
    if name is None:
        return None
    whose.check_own(name, "image", partial(kept.owns_image, caller.owner))
    try:
        return Stored(farm.inbox.get_blob(name.removeprefix(STORED), farm.settings.max_area * 4))
    except BadBlob:
        raise wrong("image", "no such image is stored; upload it", "bad_image") from None
