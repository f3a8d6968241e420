"""Which chains are there, what passes between their stages, and does a file describe one that is possible?"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, open_farm, open_overview, say, usage
from farm.cli.submit import check_out

if TYPE_CHECKING:
    from farm.comfy_graph import Workflow

app = group("chain", "Chains of stages: named ones, saved ones and files.")
WIDE = 60
"""Characters of a parameter's type that a table shows; `--json` has all."""
WIDTHS = (42, 24, 16, 44)
"""Characters of a line in the columns of that table: beside each other they fit where people read logs."""
ImageSize = Annotated[
    str | None, typer.Option(metavar="WxH", help="Size of the input image, pixels. [the checkpoint's own]")
]


Name = Annotated[str, typer.Argument(metavar="NAME", help="The chain's name.")]
CUT = 60
"""Characters of a description that a list shows; `--json` has all."""


@app.command()
def ls() -> Outcome:
    """List the chains that have a name: the catalog's, then those that were saved, with their owner.

    \b
    farm chain ls
    """
    from farm.errors import Unavailable

    with open_overview() as farm:
        try:
            found = farm.presets()
        except Unavailable as error:  # the catalog's are known all the same
            found = farm.presets(saved=False)
            say(f"saved chains are not listed: {error.message}")
    rows = [
        (each["name"], " → ".join(_kinds(each)), textwrap.shorten(each["description"], CUT), _whose(each))
        for each in found
    ]
    data = [{**each, "stages": _kinds(each)} for each in found]
    return Outcome(data, [Table(("NAME", "STAGES", "WHAT IT GIVES", "OWNER"), rows)])


@app.command()
def show(
    chain: Annotated[str, typer.Argument(help="Name, or a .json or .yaml file.")], image_size: ImageSize = None
) -> Outcome:
    """Show what each stage of a chain takes, with which checkpoint and at which size, and what it hands on.

    With --json a saved one is told as in a chain file, too.

    \b
    farm chain show hires
    farm chain show my-chain.yaml --image-size 640x480
    """
    from farm.chains import FILES

    data: dict[str, Any] = {"stages": _edges(chain, image_size)}
    lines: list[str | Table] = [edges(data["stages"])]
    with open_overview() as farm:
        if chain not in {each["name"] for each in farm.presets(saved=False)} and Path(chain).suffix not in FILES:
            found = farm.preset(chain)
            written = {**found["fields"], "stages": found["stages"]}
            data |= {"chain": written, **{name: found[name] for name in ("description", "owner", "saved")}}
            own = ", ".join(f"{name}={value!r}" for name, value in found["fields"].items())
            lines += [line for line in (found["description"], own) if line]
            lines.append(f"saved {found['saved']}" + (f" by {found['owner']}" if found["owner"] else ""))
    return Outcome(data, lines)


@app.command()
def save(
    name: Name,
    chain: Annotated[str, typer.Option(help="A .json or .yaml file, or the name of a chain to copy.")],
    description: Annotated[str, typer.Option(help="What it gives.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the one of this name.")] = False,
) -> Outcome:
    """Save a chain under a name, by which everybody may ask for it; it is checked as at a submit.

    Prompts, a seed, fit and keep that stand in the file are saved with its stages.

    \b
    farm chain save portrait --chain portrait.yaml --description "a soft portrait, twice as large"
    farm render "a cat on a green background" --chain portrait
    """
    with open_farm() as farm:
        found = farm.save_chain(name, chain, description, replace)
    return Outcome(found, [f"{name} is saved: {' → '.join(_kinds(found))}"])


@app.command()
def rm(name: Name) -> Outcome:
    """Delete a saved chain. Jobs and datasets that were asked for with it stay as they are.

    \b
    farm chain rm portrait
    """
    with open_overview() as farm:
        farm.delete_chain(name)
    return Outcome({"name": name}, [f"{name} is deleted"])


def _kinds(found: Mapping[str, Any]) -> list[str]:
    """The kinds of a chain's stages."""
    return [str(stage["kind"]) for stage in found["stages"]]


def _whose(found: Mapping[str, Any]) -> str:
    """Whose a chain is, as a table tells it."""
    return "the catalog" if found["saved"] is None else found["owner"]


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A .json or .yaml chain file.")], image_size: ImageSize = None
) -> Outcome:
    """Check a chain file as a submit would, with the images that it names; every wrong field is named.

    \b
    farm chain validate my-chain.yaml
    """
    data = _edges(file, image_size, images=True)
    return Outcome({"stages": data}, [f"{file} is a chain of {len(data)} stages that gives {_size(data[-1]['size'])}"])


@app.command()
def comfy(
    source: Annotated[str, typer.Argument(metavar="JOB|CHAIN", help="Job, chain's name, or a .json or .yaml file.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for workflow.json, and a job's images if there are any.")
    ] = None,
    image_size: ImageSize = None,
) -> Outcome:
    """Write a job or a chain as a workflow of ComfyUI's: load it there, or send it as `prompt`.

    What has to lie in ComfyUI's folders, and what is not the same there, is told on stderr; a stage that it cannot run
    is refused.

    \b
    farm chain comfy 3f9a > pear.json
    farm chain comfy hires > hires.json
    farm chain comfy 3f9a -o pear/     # also writes the input images under the names that the workflow has for them
    """
    from farm.program import file_of

    check_out(out)
    images: dict[str, bytes] = {}
    with open_farm() as farm:
        named = {one["name"]: {**one["fields"], "stages": one["stages"]} for one in farm.presets()}
        if source in named or Path(source).suffix in (".json", ".yaml", ".yml"):
            found = _drafted(source, named.get(source), image_size)
        else:
            job = farm.job(source)
            found, images = job.comfy(), job.input_images() if out else {}
    for note in found.notes:
        say(note)
    text, data = json.dumps(found.nodes, indent=2, ensure_ascii=False), {"workflow": found.nodes, "notes": found.notes}
    if out is None:
        return Outcome(data, [text])
    out.mkdir(parents=True, exist_ok=True)
    # As the nodes call them: input.png may be any program's there.
    written = {file_of(hashlib.sha256(png).hexdigest()): png for png in images.values()}
    written["workflow.json"] = text.encode()
    for name, content in written.items():
        (out / name).write_bytes(content)
    paths = [str(out / name) for name in written]
    return Outcome({**data, "paths": paths}, paths)


def _drafted(source: str, named: dict[str, Any] | None, image_size: str | None) -> Workflow:
    """The workflow of a chain that is no job: of a file, or of one that is `named`."""
    from farm.catalog import Catalog
    from farm.chain import read_chain_file
    from farm.comfy_graph import drafted, workflow
    from farm.settings import Settings

    facts = _edges(source, image_size)
    chain = read_chain_file(Path(source)) if named is None else named
    if chain.get("seed") is None:
        say("the chain gives no seed: the workflow has 0 for it")
    return workflow(drafted(facts, chain), Catalog.load(Settings.load()))


def stages(
    kind: Annotated[str | None, typer.Argument(help="Stage kind. [all]", show_default=False)] = None,
) -> Outcome:
    """Show the stage kinds that are installed: what each takes and gives, and its parameters.

    \b
    farm stages
    farm stages inpaint
    """
    with open_overview() as farm:
        found = {each["kind"]: each for each in farm.kinds()}
    if kind is not None and kind not in found:
        raise usage(f"no stage kind {kind}", f"choose one of {', '.join(found)}")
    names = ("kind", "about", "takes", "gives", "scale", "schema")
    data: list[dict[str, Any]] = [
        {name: each[name] for name in names} for name, each in found.items() if kind in (None, name)
    ]
    if kind is None:
        rows = [
            (each["kind"], " or ".join(each["takes"]) or "noise", " or ".join(each["gives"]), each["about"])
            for each in data
        ]
        return Outcome(data, [Table(("KIND", "TAKES", "GIVES", "WHAT IT DOES"), rows)])
    fields = [
        row
        for name, told, default, meaning in found[kind]["fields"]
        for row in _wrapped(name, told if len(told) <= WIDE else f"{told[:WIDE]}…", default, meaning)
    ]
    return Outcome(data[0], [data[0]["about"], Table(("PARAMETER", "TYPE", "DEFAULT", "MEANING"), fields)])


def _wrapped(*cells: str) -> Iterator[tuple[str, ...]]:
    """The rows that cells take, each in its width."""
    lines = [textwrap.wrap(cell, width, break_on_hyphens=False) for cell, width in zip(cells, WIDTHS, strict=True)]
    return zip_longest(*lines, fillvalue="")


def edges(data: Sequence[Mapping[str, Any]]) -> Table:
    """The typed edges of a chain, of which `data` has the stages' facts."""
    rows = [
        (
            item["index"],
            item["kind"],
            item["checkpoint"],
            _medium(item, item["takes"]),
            f"{_size(item['given_size'])} → {_size(item['size'])}" if item["given_size"] else _size(item["size"]),
            _medium(item, item["emits"]),
        )
        for item in data
    ]
    return Table(("STAGE", "KIND", "CHECKPOINT", "TAKES", "SIZE", "EMITS"), rows)


def _medium(item: Mapping[str, Any], medium: str | None) -> str:
    """A medium as the table tells it: latents with their space."""
    return "noise" if medium is None else f"latents ({item['space']})" if medium == "latents" else str(medium)


def _size(sides: Sequence[int]) -> str:
    """A size as it is written everywhere."""
    from farm.stage import Size

    return str(Size(*sides))


def _edges(chain: str | Path, image_size: str | None, *, images: bool = False) -> list[dict[str, Any]]:
    """The facts of a chain's stages; an input image that it needs and nobody described has the checkpoint's own size.

    With `images` those that its stages name are read and fitted.

    Raises:
        InvalidJob: names each wrong field.
    """
    from farm.stage import Size

    size = None
    if image_size is not None:
        found = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", image_size)
        if found is None:
            raise usage(f"--image-size {image_size}: not WxH", "for example --image-size 640x480")
        size = Size(int(found[1]), int(found[2]))
    with open_farm() as farm:
        data, taken = farm.edges(chain, size, images=images)
    if size is None and taken is not None:
        say(f"the input image is taken to be {taken}; --image-size says otherwise")
    return data
