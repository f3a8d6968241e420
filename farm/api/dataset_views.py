"""How do datasets look over HTTP?

Cells of a file are told shortened, as text; `row` counts from 1 without the header.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pydantic import Field

from farm.api.views import PlannedView
from farm.dataset.drafts import Planned
from farm.dataset.parameters import Kind
from farm.dataset.peeking import Head
from farm.dataset.previewing import Preview
from farm.dataset.spec import Row, RowError, Sample
from farm.dataset.status import Status
from farm.snapshot import View, told

CELL_CHARS = 300
"""So many characters of a cell are told."""


class RowErrorView(View):
    """Why one row cannot be taken. `column` is the file's, "" for the whole row."""

    row: int
    column: str
    code: str
    message: str

    @classmethod
    def of(cls, error: RowError) -> RowErrorView:
        """The view of an error."""
        return cls(**asdict(error))


class RowView(View):
    """One row of a file, by column; empty cells are left out."""

    row: int
    values: dict[str, str]

    @classmethod
    def of(cls, row: Row) -> RowView:
        """The view of a row."""
        return cls(row=row.number, values={name: _short(value) for name, value in row.values.items()})


class FileView(View):
    """A file of rows that was uploaded: `id` is its name in a dataset; its first rows, and what is wrong among them."""

    id: str
    name: str
    format: str
    size_bytes: int
    columns: list[str]
    rows: list[RowView]
    errors: list[RowErrorView]

    @classmethod
    def of(cls, id: str, format: str, size_bytes: int, head: Head) -> FileView:
        """The view of a file that begins so."""
        return cls(
            id=id, name=id.partition("/")[2], format=format, size_bytes=size_bytes, columns=list(head.columns),
            rows=[RowView.of(row) for row in head.rows if isinstance(row, Row)],
            errors=[RowErrorView.of(row) for row in head.rows if isinstance(row, RowError)],
        )  # fmt: skip


class SampleView(View):
    """One picture that is to be made. `changes` are parameters beside prompts and seed, `columns` what goes with it."""

    key: str
    row: int
    variant: int
    prompt: str
    negative_prompt: str
    seed: int
    changes: dict[str, Any]
    choices: list[str] = Field(description="what the template's options came to, in order")
    columns: dict[str, str]

    @classmethod
    def of(cls, sample: Sample) -> SampleView:
        """The view of a sample."""
        return cls(
            key=sample.key, row=sample.row, variant=sample.variant, prompt=sample.prompt,
            negative_prompt=sample.negative_prompt, seed=sample.seed, changes=dict(sample.changes),
            choices=[_short(one) for one in sample.choices],
            columns={name: _short(value) for name, value in sample.columns.items()},
        )  # fmt: skip


class ColumnView(View):
    """What a column of the file gives."""

    name: str
    gives: str | None = Field(description='a parameter; "" where it goes into the samples as it is; none: left out')


class RowCount(View):
    """How many samples one row means."""

    row: int
    samples: int


class PreviewView(View):
    """What a file's first rows would become; nothing was stored."""

    columns: list[ColumnView]
    known: list[str] = Field(description="what a column of this chain may give")
    counts: list[RowCount] = Field(description="of the rows that can be taken")
    first: list[SampleView] = Field(description="the first few samples of each row")
    errors: list[RowErrorView]
    sizes: list[list[int]] = Field(description="width and height of the pictures, pixels")
    stages: list[PlannedView] = Field(description="of the first sample")
    cost_s: float | None = Field(description="device-seconds of one sample; none where a stage was never measured")

    @classmethod
    def of(cls, found: Preview) -> PreviewView:
        """The view of a preview."""
        return cls(
            columns=[ColumnView(name=name, gives=gives) for name, gives in found.gives.items()],
            known=found.known,
            counts=[RowCount(row=row, samples=samples) for row, samples in found.counts.items()],
            first=[SampleView.of(sample) for sample in found.first],
            errors=[RowErrorView.of(error) for error in found.errors],
            sizes=[list(size) for size in found.sizes],
            stages=[PlannedView.of(item) for item in found.stages],
            cost_s=found.cost_s,
        )


class WrongView(View):
    """One wrong field of what was asked for."""

    loc: str
    msg: str
    code: str


class RefusedView(View):
    """Why a dataset that was asked for is not possible: ask again under the same name once that is mended."""

    code: str
    message: str
    hint: str = ""
    until: str = Field("", description="when it is forgotten, unless it is asked for again")
    count: int = Field(0, description="rows that are wrong")
    rows: list[RowErrorView] = Field([], description="the first of them")
    errors: list[WrongView] = []


class TroubleView(View):
    """Why a dataset that is to run does not go on; it is tried again by itself."""

    code: str
    message: str
    errors: list[WrongView] = []

    @classmethod
    def of(cls, trouble: dict[str, Any]) -> TroubleView:
        """The view of what its feeder wrote."""
        return cls(**{**trouble, "message": told(trouble["code"], trouble["message"])})


class DatasetView(View):
    """How far a dataset is. Rates and counts are its feeder's, who tells them every few seconds."""

    name: str
    owner: str
    state: str = Field(description="planning, refused, planned, running, paused or done")
    samples: int
    done: int
    failed: int
    open: dict[str, int] = Field(description="jobs of the shards in work, by state")
    shards: int
    shards_done: int
    size_bytes: int = Field(description="of the shards that are there")
    rows: int = Field(description="that were taken; while it is planned those that were read")
    rejected: int = Field(description="rows that were left out")
    priority: int
    fed: bool = Field(description="whether a process plans or feeds it now; nobody: `farm up`, `farm dataset feed`")
    rate: float | None = Field(description="samples a second over the last minute")
    eta_s: float | None = Field(description="seconds until the last sample is done")
    refused: RefusedView | None
    trouble: TroubleView | None

    @classmethod
    def of(cls, status: Status) -> DatasetView:
        """The view of a status."""
        trouble = TroubleView.of(status.trouble) if status.trouble else None
        return cls(**{**asdict(status), "trouble": trouble})


class DatasetPage(View):
    """Datasets by name."""

    datasets: list[DatasetView]
    next: str | None = Field(None, description="the cursor of the page after this one; none where this is the last")


class PlanView(View):
    """What a dataset was planned to be. Cost and time go by what its stages took before."""

    identity: str = Field(description="what tells this dataset from every other one of its name")
    source: str = Field(description="the file's name")
    sha256: str
    chain: dict[str, Any]
    sweep: list[dict[str, list[Any]]]
    templates: str
    image_format: str
    shard_samples: int
    columns: list[str] = Field(description="the file's columns that go into the samples")
    parameters: dict[str, Kind] = Field(description="what axes and columns gave beside prompts and seed, and its kind")
    sizes: list[list[int]] = Field(description="width and height of the pictures, pixels")
    checkpoints: list[dict[str, Any]] = Field(description="name, source, revision and licence of each")
    cost_s: float | None = Field(description="device-seconds of all samples; none where a stage was never measured")
    eta_s: float | None = Field(description="seconds that all would take on the live workers with nothing else to do")
    size_bytes_most: int = Field(description="three bytes a pixel, as no compression leaves; four a value of latents")
    rejects: list[RowErrorView] = Field(description="the first rows that were left out, and why")
    first: list[SampleView]

    @classmethod
    def of(cls, found: Planned) -> PlanView:
        """The view of a plan."""
        plan, spec = found.plan, found.plan.spec
        return cls(
            identity=plan.identity, source=plan.source["name"], sha256=plan.source["sha256"], chain=spec.chain,
            sweep=spec.sweep,
            templates=spec.templates, image_format=spec.image_format, shard_samples=spec.shard_samples,
            columns=list(plan.columns), parameters=plan.parameters, sizes=[list(size) for size in plan.sizes],
            checkpoints=list(plan.checkpoints),
            cost_s=found.estimate.cost_s, eta_s=found.estimate.eta_s, size_bytes_most=found.size_bytes_most,
            rejects=[RowErrorView.of(row) for row in found.rejected],
            first=[SampleView.of(sample) for sample in found.first],
        )  # fmt: skip


class Snippet(View):
    """Lines that read a dataset's shards, with one loader."""

    loader: str
    text: str


class DatasetDetail(DatasetView):
    """A dataset with its plan, none while it has none, and how its shards are read."""

    plan: PlanView | None
    load: list[Snippet]


class FailedSample(View):
    """One sample that could not be made."""

    key: str
    row: int
    variant: int
    state: str
    code: str
    message: str

    @classmethod
    def of(cls, one: dict[str, Any]) -> FailedSample:
        """The view of a shard's note."""
        names = ("key", "row", "variant", "state", "code")
        return cls(**{name: one[name] for name in names}, message=told(one["code"], one["message"]))


class FailurePage(View):
    """Samples that could not be made, by key."""

    failures: list[FailedSample]
    next: int | None = Field(description="the shard with which the next page begins; none where this is the last")


class ShardFile(View):
    """One file of a shard; its address leads on to a signed one that needs no token for a while."""

    size_bytes: int
    sha256: str
    url: str


class ShardView(View):
    """One shard that is there, whole."""

    shard: int
    samples: int = Field(description="that are in it")
    failed: int
    tar: ShardFile
    parquet: ShardFile
    sheet: str = Field(description="address of a picture of its first pictures")

    @classmethod
    def of(cls, stats: dict[str, Any], here: str) -> ShardView:
        """The view of a shard's notes; its files are below `here`."""
        number = stats["shard"]
        files = {
            end: ShardFile(size_bytes=found["bytes"], sha256=found["sha256"], url=f"{here}/{number}/{end}")
            for end in ("tar", "parquet")
            if (found := stats["files"][f"{number:05d}.{end}"])
        }
        sheet = f"{here}/{number}/sheet?v={files['tar'].sha256[:8]}"
        return cls(shard=number, samples=stats["successes"], failed=stats["failed"], sheet=sheet, **files)


class ShardPage(View):
    """Shards that are there, by number."""

    shards: list[ShardView]
    damaged: list[int] = Field([], description="those that are there and whose facts cannot be read")
    next: int | None = Field(description="the shard with which the next page begins; none where this is the last")


def _short(value: Any) -> str:
    """A cell as text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CELL_CHARS else text[: CELL_CHARS - 1] + "…"
