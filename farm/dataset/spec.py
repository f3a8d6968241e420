"""What is a dataset asked to be, and what is one sample of it?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from farm.named import Name
from farm.sweep import Listed

ImageFormat = Literal["png", "webp", "jpg"]
Templates = Literal["off", "random", "all"]
Kept = Literal["base", "latents"]
SHARD_SAMPLES = 1000
"""Samples of a shard unless said. Source: 1,000 to 10,000 samples or 0.5 to 1 GB a shard is what loaders like
(img2dataset's default is 10,000; at 0.5 MB a picture, 1,000 are half a GB)."""
MAX_SHARD_SAMPLES = 10_000
"""A sample's key has four digits for its place in the shard."""
MAX_SHARDS = 100_000
"""And five for its shard. Source: img2dataset's key format."""
MAX_PER_ROW = 10_000
"""Samples that one row may mean, whatever its template and the axes multiply to."""


class DatasetSpec(BaseModel):
    """What is asked for beside the rows. Equal specs and rows give equal samples, and equal bytes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Name
    chain: dict[str, Any] = Field(description="the chain that every sample runs, as a chain file has it")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="which column of the file gives what: `prompt`, `negative_prompt`, `seed`, `image`, a chain's or a "
        "stage's parameter (`1.strength`); a column of such a name is taken without being named here",
    )
    sweep: Listed = Field(
        default_factory=list, description="axes of every row, side by side within one, multiplied among each other"
    )
    templates: Templates = Field(
        "off", description="prompts are templates ({a|b}, {2$$x|y|z}, __wildcard__): some at random, or all they mean"
    )
    variants: int = Field(1, ge=1, le=MAX_PER_ROW, description="random prompts drawn from each row's template")
    per_row: int = Field(1000, ge=1, le=MAX_PER_ROW, description="a row that means more samples is refused")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="decides the seeds of samples that have none, and the draws")
    shard_samples: int = Field(SHARD_SAMPLES, ge=1, le=MAX_SHARD_SAMPLES, description="samples of a shard")
    image_format: ImageFormat = Field("png", description="of the pictures in the shards")
    image_quality: int = Field(90, ge=1, le=100, description="of WebP and JPEG")
    keep: tuple[Kept, ...] = Field(
        (), description="also of each stage before the last: its picture (`base`), its latents (`latents`)"
    )
    kept_columns: bool = Field(True, description="columns of the file that are no parameters go into the samples")
    automatic: bool = Field(True, description="a column that is called like what it can give is taken as that")
    left_out: tuple[str, ...] = Field((), description="columns of the file that are passed over")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture to be made.

    `place` is its shard and its index therein. `changes` are chain fields and stage parameters beside prompts and seed,
    as `farm.chain.override` takes them. `image` is the SHA-256 of the stored input image as it was fitted, "" for none,
    and `image_size` its [width, height] in pixels. `choices` are what a template's options came to, in order, `columns`
    the file's other columns.
    """

    place: tuple[int, int]
    row: int
    variant: int
    prompt: str
    negative_prompt: str
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    image: str = ""
    image_size: tuple[int, int] = (0, 0)
    choices: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the shard: five digits for the shard, four for the place. Source: img2dataset, `000420031`."""
        return f"{self.place[0]:05d}{self.place[1]:04d}"


def sample_id(dataset: str, row: int, variant: int) -> str:
    """What a sample is called for good: 32 hex digits of the SHA-256 of dataset, row and variant."""
    return hashlib.sha256(f"{dataset}\n{row}\n{variant}".encode()).hexdigest()[:32]


def sample_seed(dataset: str, seed: int, row: int, variant: int) -> int:
    """The seed of a sample that was given none: 32 bits, as every program takes them."""
    return int.from_bytes(hashlib.sha256(f"{dataset}\n{seed}\n{row}\n{variant}".encode()).digest()[:4])


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample that was made, as a shard takes it.

    `data` is the PNG that the last stage made, with its recipe in it; `recipes` its recipes, `made` what ran each of
    them, and `kept` what lies beside: file extension (`stage0.png`, `stage0.safetensors`) to bytes.
    """

    sample: Sample
    data: bytes
    recipes: list[dict[str, Any]]
    made: list[dict[str, Any]]
    kept: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """One sample that could not be made: the state its job ended in, and why."""

    sample: Sample
    state: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file. `number` counts from 1 without a header; `values` are by column, absent ones left out."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row cannot be taken: `column` is the file's, "" for the whole row; `code` one of `farm.errors.CODES`."""

    row: int
    column: str
    code: str
    message: str
