"""How is a dataset asked for over HTTP?

Planning a million rows takes a minute, which is no work for a server of calls: what is asked for is checked as far as
no row is needed, and written; whoever feeds the farm's datasets plans it (see `farm.dataset.asking`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError

from farm.api.asks import Ask, check_images, written
from farm.api.callers import Caller
from farm.api.dataset_views import DatasetView, PreviewView
from farm.api.desk import UNKNOWN, Desk, desk_of
from farm.api.door import Door, Submitter
from farm.chain import override, parse_chain
from farm.dataset.asking import Asked, ask, withdraw
from farm.dataset.desk import Datasets
from farm.dataset.drafts import HEADED, TEXTUAL
from farm.dataset.files import ID, Files
from farm.dataset.peeking import Head
from farm.dataset.previewing import check, preview
from farm.dataset.samples import Planner
from farm.dataset.sources import format_of
from farm.dataset.spec import (
    MAX_PER_ROW,
    MAX_SHARD_SAMPLES,
    SHARD_SAMPLES,
    DatasetSpec,
    ImageFormat,
    Kept,
    Templates,
)
from farm.dataset.wildcards import Wildcards
from farm.errors import FieldError, InvalidJob, NotFound
from farm.named import Name
from farm.plan import wrong
from farm.sweep import MAX_AXES, Listed

router = APIRouter(route_class=Door, prefix="/datasets", tags=["datasets"])


def _says(name: str) -> str:
    """What the spec says of a field."""
    return DatasetSpec.model_fields[name].description or ""


class RowsAsk(Ask):
    """A file of rows, and what is to be made of each."""

    file: str = Field(pattern=ID, description="as an upload of rows answers: its `id`")
    chain: str | dict[str, Any] = Field("txt", description="a chain's name, or a chain as in a chain file")
    prompt: str | None = Field(None, description="of rows that have none; a template where templates are read")
    negative_prompt: str | None = Field(None, description="of rows that have none")
    parameters: dict[str, Any] = Field({}, description="NAME sets every stage that has it, I.NAME that of stage I")
    columns: dict[str, str] = Field({}, description=_says("columns"))
    automatic: bool = Field(True, description=_says("automatic"))
    left_out: list[str] = Field([], description=_says("left_out"))
    kept_columns: bool = Field(True, description=_says("kept_columns"))
    sweep: Listed = Field(
        [],
        max_length=MAX_AXES,
        description="axes of every row; the lists of one go side by side, axes multiply; A..B: whole numbers A to B",
    )
    templates: Templates = Field("off", description=_says("templates"))
    wildcards: dict[str, list[str]] = Field({}, description="lines that __NAME__ stands for, by name")
    variants: int = Field(1, ge=1, le=MAX_PER_ROW, description=_says("variants"))
    per_row: int = Field(1000, ge=1, le=MAX_PER_ROW, description=_says("per_row"))
    seed: int = Field(0, ge=0, le=2**32 - 1, description=_says("seed"))
    shard_samples: int = Field(SHARD_SAMPLES, ge=1, le=MAX_SHARD_SAMPLES, description="samples of a shard")
    image_format: ImageFormat = Field("png", description="of the pictures in the shards")
    image_quality: int = Field(90, ge=1, le=100, description="of WebP and JPEG")
    keep: list[Kept] = Field([], max_length=2, description=_says("keep"))


class PreviewAsk(RowsAsk):
    """Rows that are to be looked at."""

    name: Name | None = Field(None, description="what the dataset will be called: its seeds follow from that")


class DatasetAsk(RowsAsk):
    """A dataset that is to be planned."""

    name: Name
    partial: bool = Field(False, description="leave wrong rows out instead of refusing all")


@router.post("/preview", response_model=PreviewView)
async def look(request: Request, ask: PreviewAsk, caller: Submitter) -> Response:
    """What a file's first rows would become: samples, and what is wrong; stores nothing."""
    desk = desk_of(request)

    def call() -> Response:
        spec, head, planner, _ = _checked(desk, caller, ask, ask.name or "preview")
        told = PreviewView.of(preview(desk.farm, spec, head, planner))
        return Response(told.model_dump_json(), media_type="application/json")

    # Rows may name images; even without, few at a time: it takes the processor.
    return await desk.decode(UNKNOWN, call)


@router.post("", status_code=202)
async def create(request: Request, ask: DatasetAsk, caller: Submitter) -> DatasetView:
    """Asks for a dataset: it is planned by whoever feeds the farm's datasets, then waits to be started.

    The same once more is the same dataset.
    """
    desk = desk_of(request)
    # As above: the chain and its axes may name images.
    return await desk.decode(UNKNOWN, _ask, desk, caller, ask)


def _ask(desk: Desk, caller: Caller, given: DatasetAsk) -> DatasetView:
    spec, _, _, format = _checked(desk, caller, given, given.name)
    files = Files(desk.farm.inbox, caller.owner)
    asked = Asked(
        spec=spec, file=files.key(given.file), file_name=given.file.partition("/")[2], format=format,
        owner=caller.owner, partial=given.partial, wildcards=given.wildcards,
    )  # fmt: skip
    if ask(desk.farm, asked) and not files.is_there(given.file):
        # It was old, and was deleted just now: who deletes looks for wishes after it cannot be named any more.
        withdraw(desk.farm, asked)
        raise _no_file()
    return DatasetView.of(Datasets(desk.farm).status(given.name))


def _checked(desk: Desk, caller: Caller, given: RowsAsk, name: str) -> tuple[DatasetSpec, Head, Planner, str]:
    """What is asked for, what its file begins with, what plans it, and the file's format.

    Raises:
        InvalidJob: something is wrong whatever stands in the rows; names each wrong field.
    """
    try:
        head = Files(desk.farm.inbox, caller.owner).head(given.file)
    except NotFound:
        raise _no_file() from None
    format, _ = format_of(given.file, None)
    spec = _spec(desk, caller, given, name)
    owns = partial(desk.kept.owns_image, caller.owner)
    wildcards = Wildcards({name: tuple(lines) for name, lines in given.wildcards.items()})
    whole = format in (*TEXTUAL, *HEADED) or (isinstance(given, DatasetAsk) and not given.partial)
    planner = check(desk.farm, spec, head, text=format in TEXTUAL, whole=whole, owns=owns, wildcards=wildcards)
    return spec, head, planner, format


def _no_file() -> InvalidJob:
    return wrong("file", "no such file is stored; upload it", "bad_file")


def _spec(desk: Desk, caller: Caller, given: RowsAsk, name: str) -> DatasetSpec:
    data = written(desk.farm, desk.kept, caller, given.chain)
    texts = {"prompt": given.prompt, "negative_prompt": given.negative_prompt}
    data |= {name: text for name, text in texts.items() if text is not None}
    if given.parameters and isinstance(data.get("stages"), list):
        data["stages"] = override(data["stages"], given.parameters)
    parsed = parse_chain(data)
    check_images(parsed, desk.kept, caller)
    names = set(DatasetSpec.model_fields) & set(RowsAsk.model_fields) - {"chain"}
    told: dict[str, Any] = {name: getattr(given, name) for name in names & given.model_fields_set}
    told |= {key: tuple(told[key]) for key in ("keep", "left_out") if key in told}
    told["chain"] = parsed.model_dump(mode="json", exclude_unset=True)
    try:
        return DatasetSpec.model_validate({**told, "name": name})
    except ValidationError as error:
        found = (FieldError(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()[:50])
        raise InvalidJob(errors=tuple(found)) from None
