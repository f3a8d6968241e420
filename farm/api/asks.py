"""Which jobs does a request ask for?

A chain (a preset's name or a mapping as in a chain file), parameters over it, and how many: `count` pictures with
rising seeds, and `sweep`, a list of axes. Within an axis lists go side by side (zip), axes multiply (product)::

    {"chain": "txt", "sweep": [{"prompt": ["a pear", "a plum"]}, {"0.guidance_scale": [3, 7], "seed": [1, 2]}]}

is four jobs. Images are named as `sha256:HEX`, as an upload answers. Nothing here opens a file or an address.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic import BaseModel, ConfigDict, Field

from farm.api.callers import Caller
from farm.api.kept import Kept
from farm.chain import Chain, Keep, override, parse_chain
from farm.client import Farm
from farm.errors import BadBlob, FieldError, InvalidJob
from farm.image import Fit
from farm.job import Job, canonical
from farm.records import Lane
from farm.stage import MAX_SEED, STORED

MAX_AXES = 8
"""Axes of a sweep; with two values each they are 256 variants."""
_STORED = re.compile(f"{STORED}[0-9a-f]{{64}}")
_OWN = ("prompt", "negative_prompt", "seed", "fit", "exact", "reuse", "keep")
"""Fields of the chain itself; every other name of a sweep or of `parameters` is a stage's."""


class Ask(BaseModel):
    """What a caller sends: strict, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class JobAsk(Ask):
    """Jobs to submit."""

    chain: str | dict[str, Any] = Field("hires", description="a preset's name, or a chain as in a chain file")
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
    sweep: list[dict[str, list[Any]]] = Field(
        [], max_length=MAX_AXES, description="axes; the lists of one axis go side by side, axes multiply"
    )
    lane: Lane = "interactive"
    priority: int = Field(50, ge=0, le=100)
    deadline_s: float | None = Field(None, gt=0, description="seconds until the jobs expire")


class Place(Ask):
    """Another place in the line."""

    priority: int = Field(ge=0, le=100, description="higher runs first")
    lane: Lane | None = None


def body_sha256(ask: JobAsk) -> str:
    """What tells one request from another under the same idempotency key."""
    return hashlib.sha256(canonical(ask.model_dump(mode="json")).encode()).hexdigest()


def jobs_of(farm: Farm, kept: Kept, caller: Caller, ask: JobAsk, key: str, *, upload: bool) -> list[Job]:
    """The jobs of a request, every rule checked; without `upload` nothing is stored.

    Raises:
        InvalidJob: something does not fit; names each wrong field.
        Unavailable: the store or the ledger does not answer.
    """
    variants = prod(_length(index, axis) for index, axis in enumerate(ask.sweep))
    most = farm.settings.max_count
    if variants * ask.count > most:
        raise _wrong("count", f"{variants * ask.count} jobs, and a run has at most {most}")
    image = _image(farm, kept, caller, ask.image)
    options: dict[str, Any] = {"lane": ask.lane, "priority": ask.priority, "deadline_s": ask.deadline_s}
    full = caller.key(key)
    if not ask.sweep:
        chain = _chain(farm, ask, {})
        check_images(chain, kept, caller)
        return farm.jobs_of(chain, image, ask.count, idempotency_key=full, upload=upload, **options)
    # One seed for all variants, so that nothing differs but what is swept; drawn from the key, as a single job's is.
    seed = int.from_bytes(hashlib.sha256(full.encode()).digest()[:4]) if ask.seed is None else ask.seed
    run, jobs, stored = str(uuid5(NAMESPACE_OID, repr(full))), list[Job](), set[str]()
    for number, changes in enumerate(_variants(ask.sweep)):
        try:
            chain = _chain(farm, ask, {"seed": seed, **changes})
            check_images(chain, kept, caller)
            options["idempotency_key"] = f"{full}~{number}"
            made = farm.jobs_of(chain, image, ask.count, upload=False, **options)
            # Most sweeps change no size, so that all variants begin with the same stored image.
            if upload and not (images := images_of(made[0])) <= stored:
                made = farm.jobs_of(chain, image, ask.count, **options)
                stored |= images
        except InvalidJob as error:
            told = tuple(FieldError(one.loc, f"{one.msg} (variant {number})", one.code) for one in error.errors)
            raise InvalidJob(error.message, code=error.code, errors=told) from None
        jobs += [replace(job, run=run) for job in made]
    return jobs


def _chain(farm: Farm, ask: JobAsk, changes: Mapping[str, Any]) -> Chain:
    """The chain of one variant."""
    data = dict(ask.chain) if isinstance(ask.chain, dict) else {"stages": farm.catalog.preset(ask.chain).stages}
    given = {name: getattr(ask, name) for name in _OWN}
    data |= {name: value for name, value in given.items() if value is not None}
    data |= {name: value for name, value in changes.items() if name in _OWN}
    parameters = {**ask.parameters, **{name: value for name, value in changes.items() if name not in _OWN}}
    if parameters and isinstance(data.get("stages"), list):
        data["stages"] = override(data["stages"], parameters)
    return parse_chain(data)


def images_of(job: Job) -> set[str]:
    """Hashes of the stored images that a job names."""
    named = {value.removeprefix(STORED) for stage in job.chain.stages for value, _ in stage.uploads().values()}
    return named | ({job.image.sha256} if job.image else set())


def check_images(chain: Chain, kept: Kept, caller: Caller, first: int = 0) -> None:
    """Refuses images that stages, from `first` on, name otherwise than as the caller's uploads: no path, no address."""
    for index, stage in enumerate(chain.stages[first:], first):
        for loc, (value, _) in stage.uploads().items():
            _check_own(kept, caller, value, f"stages.{index}.{loc}")


def _image(farm: Farm, kept: Kept, caller: Caller, name: str | None) -> bytes | None:
    """The bytes of the image that the chain begins with."""
    if name is None:
        return None
    _check_own(kept, caller, name, "image")
    try:
        return farm.inbox.get_blob(name.removeprefix(STORED), farm.settings.max_area * 4)
    except BadBlob:
        raise _wrong("image", "no such image is stored; upload it", "bad_image") from None


def _check_own(kept: Kept, caller: Caller, name: str, loc: str) -> None:
    if not _STORED.fullmatch(name):
        raise _wrong(loc, "sha256:HEX, as an upload answers; files and addresses are not read", "bad_image")
    # Somebody else's is told as if there were none: a hash must not tell who has a picture.
    if not kept.owns_image(caller.owner, name.removeprefix(STORED)):
        raise _wrong(loc, "no such image is stored; upload it", "bad_image")


def _length(index: int, axis: Mapping[str, list[Any]]) -> int:
    """How many values an axis has."""
    lengths = {len(values) for values in axis.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise _wrong(f"sweep.{index}", "an axis has one or more names, each with a list, all of one length")
    return lengths.pop()


def _variants(sweep: list[dict[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    """What each variant changes: one place of every axis, the last axis turning fastest."""
    lengths = [_length(index, axis) for index, axis in enumerate(sweep)]
    for places in product(*map(range, lengths)):
        yield {name: axis[name][place] for axis, place in zip(sweep, places, strict=True) for name in axis}


def _wrong(loc: str, msg: str, code: str = "invalid_field") -> InvalidJob:
    return InvalidJob(errors=(FieldError(loc, msg, code),))
