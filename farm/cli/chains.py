"""Which chains are there, what passes between their stages, and does a file describe one that is possible?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, load_settings, say, usage

if TYPE_CHECKING:
    from farm.job import PlannedStage

app = group("chain", "Chains of stages: presets and files.")
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
    """Check a chain file as a submit would; every wrong field is named.

    \b
    farm chain validate my-chain.yaml
    """
    planned = _plan(file, image_size)
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
    fields = [
        (
            name,
            _type(field.annotation),
            "" if field.is_required() or field.default is None else str(field.default),
            field.description or "",
        )
        for name, field in picked[kind].model_fields.items()
        if name != "kind"
    ]
    return Outcome(data[0], [data[0]["about"], Table(("PARAMETER", "TYPE", "DEFAULT", "MEANING"), fields)])


def _type(annotation: Any) -> str:
    """A field's type in a few words."""
    text = re.sub(r"typing\.|farm\.\w+\.|workers\.(\w+\.)+|<class '|'>", "", str(annotation))
    return re.sub(r"Annotated\[(\w+),.*\]", r"\1", text)[:60]


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


def _plan(chain: str | Path, image_size: str | None) -> tuple[PlannedStage, ...]:
    """The typed chain; an input image that it needs and nobody described has the checkpoint's own size.

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
    return plan(asked, farm.catalog, farm.settings, size)
