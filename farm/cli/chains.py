"""Which chains are there, what passes between their stages, and does a file describe one that is possible?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from farm.cli.outcome import Outcome, Table, group, load_settings, say, usage

if TYPE_CHECKING:
    from pydantic import BaseModel

    from farm.job import PlannedStage

app = group("chain", "Chains of stages: presets and files.")
WIDE = 60
"""Characters of a parameter's type that a table shows; `--json` has all."""
ImageSize = Annotated[
    str | None, typer.Option(metavar="WxH", help="Size of the input image, pixels. [the checkpoint's own]")
]


@app.command()
def ls() -> Outcome:
    """List the presets.

    \b
    farm chain ls
    """
    from farm.catalog import Catalog

    presets = Catalog.load(load_settings()).presets.values()
    rows = [
        (found.name, " → ".join(str(stage["kind"]) for stage in found.stages), found.description) for found in presets
    ]
    data = [{"name": name, "stages": stages.split(" → "), "description": words} for name, stages, words in rows]
    return Outcome(data, [Table(("NAME", "STAGES", "WHAT IT GIVES"), rows)])


@app.command()
def show(
    chain: Annotated[str, typer.Argument(help="Preset, or a .json or .yaml file.")], image_size: ImageSize = None
) -> Outcome:
    """Show what each stage of a chain takes, with which checkpoint and at which size, and what it hands on.

    \b
    farm chain show hires
    farm chain show my-chain.yaml --image-size 640x480
    """
    table, data = edges(_plan(chain, image_size))
    return Outcome({"stages": data}, [table])


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A .json or .yaml chain file.")], image_size: ImageSize = None
) -> Outcome:
    """Check a chain file as a submit would, with the images that it names; every wrong field is named.

    \b
    farm chain validate my-chain.yaml
    """
    planned = _plan(file, image_size, images=True)
    told = f"{file} is a chain of {len(planned)} stages that gives {planned[-1].size}"
    return Outcome({"stages": edges(planned)[1]}, [told])


def stages(
    kind: Annotated[str | None, typer.Argument(help="Stage kind. [all]", show_default=False)] = None,
) -> Outcome:
    """Show the stage kinds that are installed: what each takes and gives, and its parameters.

    \b
    farm stages
    farm stages inpaint
    """
    from farm.stage import kinds

    if kind is not None and kind not in kinds():
        raise usage(f"no stage kind {kind}", f"choose one of {', '.join(kinds())}")
    picked = {name: cls for name, cls in kinds().items() if kind in (None, name)}
    data: list[dict[str, Any]] = [
        {
            "kind": name,
            "about": (cls.__doc__ or "").strip().splitlines()[0],
            "takes": sorted(cls.takes),
            "gives": sorted(cls.gives),
            "scale": cls.scale,
            "schema": cls.model_json_schema(),
        }
        for name, cls in picked.items()
    ]
    if kind is None:
        rows = [
            (each["kind"], " or ".join(each["takes"]) or "noise", " or ".join(each["gives"]), each["about"])
            for each in data
        ]
        return Outcome(data, [Table(("KIND", "TAKES", "GIVES", "WHAT IT DOES"), rows)])
    fields = list(_fields(picked[kind]))
    return Outcome(data[0], [data[0]["about"], Table(("PARAMETER", "TYPE", "DEFAULT", "MEANING"), fields)])


def _fields(cls: type[BaseModel], before: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each field, and of those that lie in it."""
    for name, field in cls.model_fields.items():
        if not before and name == "kind":
            continue
        default = (
            "" if field.is_required() or field.default is None else str(field.get_default(call_default_factory=True))
        )
        inner = _inner(field.annotation)
        told = _type(field.annotation)
        yield f"{before}{name}", told if len(told) <= WIDE else f"{told[:WIDE]}…", default, field.description or ""
        if inner is not None:
            yield from _fields(inner, f"{before}{name}.")


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds one or several of."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner, get_args(annotation))), None)


def _type(annotation: Any) -> str:
    """A field's type in a few words; what may be left out is not said."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inside)
    if origin in (Union, UnionType):
        return " | ".join(_type(each) for each in inside if each is not type(None))
    if origin in (list, tuple):
        return f"list of {_type(inside[0])}"
    return str(getattr(annotation, "__name__", annotation))


def edges(plan: Sequence[PlannedStage]) -> tuple[Table, list[dict[str, Any]]]:
    """The typed edges of a chain, as a table and as data."""
    data = [
        {
            "index": item.index,
            "kind": item.stage.kind,
            "checkpoint": item.checkpoint.name,
            "queue": item.queue,
            "takes": item.takes,
            "emits": item.emits,
            "space": item.space.name,
            "given_size": item.given and list(item.given),
            "size": list(item.size),
            "parameters": item.stage.model_dump(mode="json", exclude={"kind", "checkpoint"}, exclude_none=True),
        }
        for item in plan
    ]
    rows = [
        (
            item.index,
            item.stage.kind,
            item.checkpoint.name,
            _medium(item, item.takes),
            f"{item.given} → {item.size}" if item.given else str(item.size),
            _medium(item, item.emits),
        )
        for item in plan
    ]
    return Table(("STAGE", "KIND", "CHECKPOINT", "TAKES", "SIZE", "EMITS"), rows), data


def _medium(item: PlannedStage, medium: str | None) -> str:
    """A medium as the table tells it: latents with their space."""
    return "noise" if medium is None else f"latents ({item.space.name})" if medium == "latents" else str(medium)


def _plan(chain: str | Path, image_size: str | None, *, images: bool = False) -> tuple[PlannedStage, ...]:
    """The typed chain; an input image that it needs and nobody described has the checkpoint's own size.

    With `images` those that its stages name are read and fitted.

    Raises:
        InvalidJob: names each wrong field.
    """
    from farm.client import Farm
    from farm.job import plan
    from farm.stage import Size

    farm = Farm(load_settings())
    asked = farm.chain(chain)
    first = asked.stages[0]
    size = None
    if image_size is not None:
        found = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", image_size)
        if found is None:
            raise usage(f"--image-size {image_size}: not WxH", "for example --image-size 640x480")
        size = Size(int(found[1]), int(found[2]))
    elif first.takes:
        native = farm.catalog.checkpoint(first, "stages.0").native
        size = Size(native, native)
        say(f"the input image is taken to be {size}; --image-size says otherwise")
    if size is not None:
        size = farm.input_size(asked, size)
    if images:
        asked, _ = farm.fitted(asked, size)
    return plan(asked, farm.catalog, farm.settings, size)
