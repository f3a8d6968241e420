"""What is a stage, and which kinds are installed?

A stage is a frozen pydantic model: its fields are the parameters that a chain may set, its class says what it takes
and gives and how the size changes, and `load` and `run` do the work on a worker. Adding a kind is one file with one
such class in `workers/stages/`; the chain's parser, its typing, the queue and the worker follow from the class.
Packages outside this repository name theirs in the entry point group `farm.stages`.

Nothing here, and nothing at the top of a stage's module, imports torch: `load` and `run` do it inside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from importlib.metadata import entry_points
from inspect import get_annotations, getmembers, isclass
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from farm.errors import FarmError, FieldError
from farm.sampler import SAMPLERS, SCHEDULERS

GROUP = "farm.stages"
MAX_SEED = 2**53 - 1
"""Largest seed: what a JavaScript number holds exactly."""

ALIASES = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler_name": "scheduler",
    "denoising_strength": "strength",
}
"""Words people know from other programs, taken at the edge for the field's own."""

Prompt = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]
"""Up to 2,000 characters without control characters (but tab and newline) or lone surrogates."""

VaeTiling = Annotated[
    bool,
    Field(
        description="en- and decode in overlapping tiles: larger pictures fit into memory, with slightly other pixels"
    ),
]
"""Of the measures against a lack of memory the one that changes pixels; so a submit chooses it, never a worker."""


@dataclass(frozen=True)
class Upload:
    """Marks a field that holds an image of its own: a mask, a map, a reference.

    Its value is a file's path where a person writes it, and `sha256:HEX` from the submit on: an RGB PNG in the store.
    """

    fitted: Literal["given", "emitted"] | None = "given"
    """The submit fits it, by the chain's own rule, to the size of what the stage is given or emits."""
    shows: Literal["white", "depth"] | None = None
    """What it must show to be of use: white somewhere, as fitted, or two levels at least."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The field's JSON Schema, marked for forms: `x-upload`, with what the image must show."""
        return {**handler(core), "x-upload": self.shows or "any"}


AdapterType = Literal["controlnet", "lora", "textual_inversion", "ip_adapter", "vae", "safety_checker", "clip"]


@dataclass(frozen=True)
class Named:
    """Marks a field that names an adapter of the catalog."""

    type: AdapterType

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The field's JSON Schema, marked for forms: `x-adapter`, with the adapter's type."""
        return {**handler(core), "x-adapter": self.type}


Picture = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
"""What an `Upload` field holds."""
STORED = "sha256:"


class Medium(StrEnum):
    """What passes from one stage to the next."""

    LATENTS = "latents"
    """One tensor [channels, height / factor, width / factor], the pipeline's dtype, times scaling_factor."""
    IMAGE = "image"
    """uint8 RGB."""


class Size(NamedTuple):
    """Width and height in pixels of the image, or of the image that latents decode to."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


@dataclass(frozen=True)
class Batch:
    """What the members of one pipeline call bring; everything else they share is in the stage's fields.

    All lists have one entry per member. `given` holds latents as a tensor [channels, height, width], an image as a PIL
    RGB image, or None for a stage that starts from noise. `generators` are seeded torch CPU generators.
    """

    emits: Medium
    size: Size
    prompts: Sequence[str]
    negative_prompts: Sequence[str]
    given: Sequence[Any]
    generators: Sequence[Any]
    uploads: Sequence[Mapping[str, Any]] = ()
    """Per member the stage's own images, PIL RGB, by location: `mask`, `controls.0.image`."""
    adapters: Mapping[str, Any] = field(default_factory=dict)
    """The files (`workers.adapters.Files`) of the adapters that the stage names, by name."""
    frugal: bool = False
    """The device's memory did not suffice before: spare it, where that leaves every pixel as it is."""

    def alone(self, row: int) -> Batch:
        """The member `row` in a call of its own."""
        members = ("prompts", "negative_prompts", "given", "generators", "uploads")
        return replace(self, **{name: getattr(self, name)[row : row + 1] for name in members})


class Report(Protocol):
    """How a running stage tells where it is. Each call may raise to stop the stage (cancel, drain, lost lease)."""

    def phase(self, name: str) -> None:
        """A phase begins: load, encode, step, tile, decode."""

    def step(self, step: int, steps: int) -> None:
        """Denoising step `step` of `steps` is done; counts from 1."""

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        """A picture may be shown: `seen` gives latents [views, members, channels, …] of the members from `row` on."""


@dataclass(frozen=True)
class Source:
    """A checkpoint in a plain program: its family, and the Python source of the arguments that it is loaded with."""

    family: str
    arguments: str
    is_file: bool = False
    path: str = ""
    """Where the files lie, if they lie here."""
    dtype: str = "torch.float32"
    switches: Mapping[str, Any] = field(default_factory=dict)
    """How the checkpoint is run otherwise than it was made, by the catalog's names."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Python source of the arguments that each adapter is loaded with, by name."""


class Stage(BaseModel):
    """One link of a chain, with its parameters."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    takes: ClassVar[frozenset[Medium]] = frozenset()
    """Media it can be given; empty for a stage that starts from noise."""
    gives: ClassVar[frozenset[Medium]] = frozenset({Medium.LATENTS, Medium.IMAGE})
    """Media it can emit."""
    scale: ClassVar[int] = 1
    """Output side / input side."""
    multiple: ClassVar[int] = 8
    """The sides of what it is given are multiples of so many pixels."""
    needs_torch: ClassVar[bool] = True
    """Whether it runs on torch; without, its worker never imports it and `Batch.generators` holds the plain seeds."""
    draws: ClassVar[bool] = True
    """Whether prompts and seed decide its pixels; if not, its recipe has none."""
    version: ClassVar[int] = 1
    """Raised when the same parameters would give other pixels; part of the recipe."""

    kind: str
    checkpoint: str | None = Field(None, description="name in the catalog; default: the catalog's for this kind")
    prompt: Prompt | None = Field(None, description="default: the chain's")
    negative_prompt: Prompt | None = Field(None, description="default: the chain's")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="default: derived from the job's seed and the position"
    )

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, data: Any) -> Any:
        """Known words of other programs become the field's own."""
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        for alias, name in ALIASES.items():
            if alias in given and alias not in cls.model_fields and name in cls.model_fields:
                if name in given:
                    raise ValueError(f"{alias} and {name} are the same parameter; give one")
                given[name] = given.pop(alias)
        sampler = given.get("scheduler")
        if (
            isinstance(sampler, str)
            and sampler in SAMPLERS
            and sampler not in SCHEDULERS
            and "scheduler" in cls.model_fields
        ):
            options = given.get("scheduler_options", {})
            if isinstance(options, Mapping):
                given["scheduler"], told = SAMPLERS[sampler]
                given["scheduler_options"] = {**told, **options}
        return given

    def input_size(self, natural: Size) -> Size:
        """The size an input image is fitted to before this stage, as the first of a chain, sees it.

        `natural` is the image's own in multiples of 8. `width` and `height` fields, where the stage has them, decide;
        of one alone, the other follows the image's aspect.
        """
        width: int | None = getattr(self, "width", None)
        height: int | None = getattr(self, "height", None)
        if width is None and height is None:
            return natural
        if width is None:
            width = max(8, round((height or 8) * natural.width / natural.height / 8) * 8)
        if height is None:
            height = max(8, round(width * natural.height / natural.width / 8) * 8)
        return Size(width, height)

    def output_size(self, given: Size | None, native: int) -> Size:
        """The size of what this stage emits, from what it is given and the checkpoint's native side in pixels."""
        if given is None:
            return Size(native * self.scale, native * self.scale)
        return Size(given.width * self.scale, given.height * self.scale)

    def given_size(self, size: Size) -> Size:
        """The size of what it was given, if `size` is that of what it emits."""
        return Size(size.width // self.scale, size.height // self.scale)

    def uploads(self) -> dict[str, tuple[str, Upload]]:
        """The images of its own that it names, by location, with how they are marked."""
        return dict(_marked(self, Upload))

    def adapters(self) -> dict[str, tuple[str, Named]]:
        """The adapters that it names, by location, with how they are marked."""
        return dict(_marked(self, Named))

    def whole(self) -> bool:
        """Whether it draws a picture at once; in pieces, or locally, its size is no matter of the checkpoint's."""
        return True

    def accepts(self) -> frozenset[Medium]:
        """Those of `takes` that it can be given with its fields as they are."""
        return self.takes

    def with_uploads(self, named: Mapping[str, str]) -> Self:
        """The same stage with other images named, by location."""
        data = self.model_dump(exclude_unset=True)
        for loc, value in named.items():
            *path, last = (int(word) if word.isdigit() else word for word in loc.split("."))
            place: Any = data
            for word in path:
                place = place[word]
            place[last] = value
        return type(self).model_validate(data)

    def check(self) -> Iterator[FieldError]:
        """Rules that one field alone cannot hold; yields what is wrong, with locations relative to the stage."""
        yield from ()

    def fits(self, family: str) -> Iterator[FieldError]:  # noqa: ARG002
        """What checkpoints of `family` do not know of this stage, as `check` yields it."""
        yield from ()

    def load(self, checkpoint: Any, device: str) -> Any:
        """The pipeline for `checkpoint` (a `workers.pipelines.Files`) on `device`, warm.

        Raises:
            StageFailed: (`bad_checkpoint`) the files cannot be loaded.
        """
        raise NotImplementedError

    def run(self, pipe: Any, batch: Batch, report: Report) -> list[Any]:
        """One pipeline call for all members: per member latents [channels, height, width] or a PIL RGB image.

        Raises:
            StageFailed: the output is not what the chain expects (`nan_output`, `bad_output`), or the device failed.
        """
        raise NotImplementedError

    def decoded(self, pipe: Any, latents: Any, batch: Batch) -> Any:
        """The PIL RGB image of one member's latents as `run` gave them, for people to see; never handed on.

        Raises:
            StageFailed: `nan_output`, `gpu_oom`.
        """
        raise NotImplementedError

    def script(self, named: Mapping[str, str], emits: Medium, size: Size, seed: int, source: Source) -> list[str]:
        """The lines of a plain diffusers program that does what `run` does for one member, leaving it in `out`.

        `named` has the variables that hold the input (`given`) and the stage's own images (by location), `size` is
        the output's, and `source` says how the checkpoint is loaded.
        """
        raise NotImplementedError


Mark = TypeVar("Mark", Upload, Named)


@cache
def _marks(model: type[BaseModel], kind: type) -> list[tuple[str, list[Any]]]:
    """Every field of `model` with its marks of `kind`."""
    return [
        (name, [mark for mark in told.metadata if isinstance(mark, kind)]) for name, told in model.model_fields.items()
    ]


def _marked(model: BaseModel, kind: type[Mark], prefix: str = "") -> Iterator[tuple[str, tuple[str, Mark]]]:
    """The values of fields that are marked as `kind`, also in models within lists, by location."""
    for name, marks in _marks(type(model), kind):  # type: ignore[arg-type]  # a class has a hash
        value = getattr(model, name)
        if marks and isinstance(value, str):
            yield prefix + name, (value, marks[0])
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if marks:
                yield f"{prefix}{name}.{index}", (item, marks[0])
            elif isinstance(item, BaseModel):
                yield from _marked(item, kind, f"{prefix}{name}.{index}.")


def _classes(module: ModuleType) -> Iterator[type[Stage]]:
    """Stage classes that `module`, or a module of the package `module`, defines."""
    modules = [module]
    if hasattr(module, "__path__"):
        names = [f"{module.__name__}.{info.name}" for info in pkgutil.iter_modules(module.__path__)]
        modules += [importlib.import_module(name) for name in names]
    for found in modules:
        for _, member in getmembers(found, isclass):
            own = member.__module__ == found.__name__ and "kind" in get_annotations(member)
            if own and issubclass(member, Stage):
                yield member


@cache
def kinds() -> dict[str, type[Stage]]:
    """The installed stage classes by kind, sorted by kind.

    Raises:
        FarmError: (`conflict`) two installed classes claim the same kind.
    """
    found: dict[str, type[Stage]] = {}
    for point in entry_points(group=GROUP):
        target = point.load()
        classes: list[type[Stage]] = list(_classes(target)) if isinstance(target, ModuleType) else [target]
        for cls in classes:
            kind = cls.model_fields["kind"].default
            if found.setdefault(kind, cls) is not cls:
                raise FarmError(
                    f"the stage kind {kind!r} is claimed by {found[kind].__module__} and {cls.__module__}",
                    code="conflict",
                    hint="uninstall one of them",
                )
    return dict(sorted(found.items()))
