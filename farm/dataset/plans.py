"""What is a dataset once it is planned, and what is a plan written as?"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.dataset.parameters import Kind
from farm.dataset.spec import DatasetSpec, Sample
from farm.errors import BadBlob
from farm.job import canonical

Model = TypeVar("Model", bound=BaseModel)


class Plan(BaseModel):
    """What a dataset is: what was asked for, and what that came to. `digest` covers every sample of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    spec: DatasetSpec
    owner: str = Field("", description="whose dataset it is, and whose its jobs are")
    source: dict[str, Any] = Field(description="name, sha256 and size_bytes of the file")
    rows: int = Field(description="rows that were taken")
    rejected: int = Field(0, description="rows that were not")
    samples: int
    shards: int
    columns: tuple[str, ...] = Field((), description="the file's columns that go into the samples")
    parameters: dict[str, Kind] = Field(
        default_factory=dict, description="what axes and columns gave the samples beside prompts and seed, and its kind"
    )
    sizes: tuple[tuple[int, int], ...] = Field((), description="[width, height] of the pictures, pixels")
    checkpoints: tuple[dict[str, Any], ...] = Field((), description="name, source, revision and licence of each")
    adapters: tuple[dict[str, Any], ...] = Field((), description="the same of each LoRA, ControlNet, VAE and so on")
    sample_bytes: int | None = Field(None, description="what pictures and latents of one sample take at most, bytes")
    digest: str = Field(description="SHA-256 (hex) over all samples")
    safety: Literal["off", "tag", "blur", "refuse"] = Field("off", description="the farm's policy when it was planned")

    @property
    def identity(self) -> str:
        """What tells this dataset from every other one of its name: 16 hex digits."""
        told = f"{canonical(self.spec.model_dump(mode='json'))}\n{self.digest}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def samples_of(self, number: int) -> int:
        """How many samples shard `number` has."""
        return min(self.spec.shard_samples, self.samples - number * self.spec.shard_samples)

    def path_of(self, number: int) -> str:
        """Where the samples of shard `number` lie: below the digest, for two who plan one name must not mix theirs."""
        return f"{self._part}{number:05d}.jsonl.gz"

    def is_of_others(self, path: str) -> bool:
        """Whether samples lie there that are not this plan's."""
        return path.startswith("plan/") and not path.startswith(self._part)

    @property
    def _part(self) -> str:
        return f"plan/{self.digest[:16]}/"


def read_plan(data: bytes, name: str) -> Plan:
    """The plan of the dataset `name` in what was written of it. Raises BadBlob."""
    return parsed(Plan, data, f"the plan of {name!r}")


def read_samples(data: bytes, number: int) -> list[Sample]:
    """The samples of shard `number` in what was written of them. Raises BadBlob."""
    try:
        return [read_sample(line) for line in gzip.decompress(data).splitlines()]
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
        raise BadBlob(f"the plan of shard {number} cannot be read") from None


def parsed(kind: type[Model], data: bytes, what: str) -> Model:
    """What lies in an object. Raises BadBlob where that is not what was written, or by another build."""
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise BadBlob(f"{what} cannot be read by this build") from None


def unlike(there: DatasetSpec, spec: DatasetSpec, file: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What tells the dataset that is there from one that is asked for; `file` and `other` are what each is made of."""
    names = [name for name in DatasetSpec.model_fields if getattr(there, name) != getattr(spec, name)]
    told = [f"of another file, {file['name']}"] if file != other else []
    told += [f"with other {', '.join(names)}"] if names else []
    return " and ".join(told)


def write_sample(sample: Sample) -> str:
    """A sample as a line of its shard's plan. What says nothing is left out."""
    told: dict[str, Any] = {
        "at": sample.place,
        "row": sample.row,
        "variant": sample.variant,
        "prompt": sample.prompt,
        "seed": sample.seed,
    }
    if sample.negative_prompt:
        told["negative_prompt"] = sample.negative_prompt
    if sample.changes:
        told["changes"] = sample.changes
    if sample.image:
        told["image"] = [sample.image, *sample.image_size]
    if sample.choices:
        told["choices"] = sample.choices
    if sample.columns:
        told["columns"] = sample.columns
    return canonical(told)


def read_sample(line: bytes) -> Sample:
    """The sample in a line of a plan."""
    told = json.loads(line)
    image = told.get("image") or ["", 0, 0]
    return Sample(
        place=(told["at"][0], told["at"][1]), row=told["row"], variant=told["variant"],
        prompt=told["prompt"], negative_prompt=told.get("negative_prompt", ""), seed=told["seed"],
        changes=told.get("changes", {}), image=image[0], image_size=(image[1], image[2]),
        choices=tuple(told.get("choices", ())), columns=told.get("columns", {}),
    )  # fmt: skip
