"""How is a file made into a dataset: planned, run, looked at, exported?"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from farm.cli.following import Unfed, fed, followed, line_of, open_datasets, opened, span, unfed
from farm.cli.outcome import Outcome, Table, group, is_plain, load_settings, settings_here, usage
from farm.cli.submit import assignments, axes

if TYPE_CHECKING:
    from farm.dataset.status import Status
    from farm.dataset.wildcards import Wildcards
    from farm.remote.datasets import RemoteDatasets

app = group("dataset", "Bulk datasets: plan a file, run it, export what came of it.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
RM_S = 15.0
"""So long a deletion waits for a feeder to leave the dataset, seconds."""


@app.command()
def plan(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, TSV, JSON, JSONL, Parquet or txt; also .gz, s3://.")
    ],
    name: Annotated[str, typer.Option(help="What the dataset is called.")],
    chain: Annotated[str, typer.Option(help="Name or .json/.yaml file.")] = "txt",
    prompt: Annotated[str | None, typer.Option(help="Of rows that have none; a template with --templates.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Of rows that have none.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="[I.]NAME=VALUE", help="A parameter of every row.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Take prompt, seed, … from this column.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Pass over this column of the file.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="[I.]NAME=A,B,…", help="Each of these, or A..B, for every row; several multiply."),
    ] = None,
    templates: Annotated[
        Literal["off", "random", "all"], typer.Option(help="Read {a|b}, {2$$x|y|z}, __wildcard__ in prompts.")
    ] = "off",
    variants: Annotated[int, typer.Option(help="Prompts drawn from each template with --templates random.")] = 1,
    wildcards: Annotated[Path | None, typer.Option(help="Folder of wildcard files.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the seeds of samples that have none.")] = 0,
    shard_samples: Annotated[int, typer.Option(help="Samples of a shard.")] = 1000,
    image_format: Annotated[Literal["png", "webp", "jpg"], typer.Option(help="Of the pictures.")] = "png",
    image_quality: Annotated[int, typer.Option(help="Of WebP and JPEG, 1 to 100.")] = 90,
    keep: Annotated[list[str] | None, typer.Option(help="base, latents: also of the stages before the last.")] = None,
    per_row: Annotated[int, typer.Option(help="A row that means more samples is refused.")] = 1000,
    format: Annotated[str | None, typer.Option(help="Of the file, where its name does not say.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave wrong rows out instead of refusing all.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count; store nothing.")] = False,
) -> Outcome:
    """Check every row of a file, and plan its dataset: how many samples, what they cost, how large.

    A column called like a parameter of the chain is taken as that; others go into the samples.

    \b
    farm dataset plan prompts.csv --name fruit --chain txt --sweep seed=1,2
    farm dataset plan rows.parquet --name fruit --map prompt=caption --map 1.strength=s --chain hires
    farm dataset plan templates.txt --name fruit --templates random --variants 4 --wildcards words/
    """
    from farm.dataset.wildcards import Wildcards

    mapped = dict(_pair(one) for one in columns or [])
    asked: dict[str, Any] = {
        "columns": mapped, "sweep": axes(sweep or []), "templates": templates, "variants": variants, "seed": seed,
        "shard_samples": shard_samples, "image_format": image_format, "image_quality": image_quality,
        "keep": tuple(keep or ()), "per_row": per_row, "left_out": tuple(leave_out or ()),
    }  # fmt: skip
    fields = {"prompt": prompt, "negative_prompt": negative_prompt, **assignments(settings or [])}
    how: dict[str, Any] = {
        "chain_fields": {key: value for key, value in fields.items() if value is not None}, "partial": partial, **asked
    }  # fmt: skip
    words = Wildcards.read(wildcards) if wildcards else None
    if load_settings().url:
        found = _plan_elsewhere(file, name, chain, format, words, dry_run, how)
    else:
        found = _plan_here(file, name, chain, format, words, dry_run, how)
    return Outcome(found, _planned(found, dry_run))


def _plan_here(
    file: str, name: str, chain: str, format: str | None, words: Wildcards | None, dry_run: bool, how: dict[str, Any]
) -> dict[str, Any]:
    from farm.dataset.drafts import as_data
    from farm.dataset.sources import source_of

    with opened("dataset plan") as (desk, farm), _counting() as counted:
        source = source_of(file, store=farm.store, format=format)
        folder = None if file.startswith("s3://") else Path(file).parent
        more = {"wildcards": words, "folder": folder, "store": not dry_run, "progress": counted}
        return as_data(desk.plan(source, name, chain, **more, **how))


def _plan_elsewhere(
    file: str, name: str, chain: str, format: str | None, words: Wildcards | None, dry_run: bool, how: dict[str, Any]
) -> dict[str, Any]:
    if file.startswith("s3://"):
        raise usage("with FARM_URL the file goes up from here", "name a file of this machine")
    if dry_run:
        hint = (
            "leave --dry-run out: what is planned runs with `farm dataset run` alone, and `farm dataset rm` deletes it"
        )
        raise usage("--dry-run needs the farm's own machine, and FARM_URL names a farm elsewhere", hint)
    with open_datasets() as desk, _counting() as counted:
        unfed = Unfed(name)

        def progress(status: Status) -> None:
            counted(status.rows)
            unfed.look(status)

        lines = words.lines if words else None
        elsewhere = cast("RemoteDatasets", desk)
        return elsewhere.plan(file, name, chain, wildcards=lines, format=format, progress=progress, **how)


@app.command()
def run(
    name: Name,
    priority: Annotated[int | None, typer.Option(help="0 to 100 among bulk jobs; higher runs first. [50]")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; the farm's own feeder feeds it.")] = False,
) -> Outcome:
    """Run a planned dataset, or let it go on, and show progress. Interactive jobs go before it.

    Where no feeder runs (`farm up` has one), this command feeds it itself, but with FARM_URL. Ctrl+C leaves; nothing is
    lost.

    \b
    farm dataset run fruit
    farm dataset run fruit --priority 80 --detach
    """
    if load_settings().url:
        with open_datasets() as there:
            status = there.start(name, priority)
            return _after(status) if detach else followed(there, name)
    with opened("dataset run") as (desk, farm):
        status = desk.start(name, priority)
        if detach:
            hint = "" if desk.has_feeder() else "; nobody feeds it yet: `farm up` does, or `farm dataset feed`"
            return Outcome(asdict(status), [line_of(status) + hint])
        return fed(desk, farm.settings, name)


@app.command()
def feed() -> Outcome:
    """Feed the farm's datasets that are to run, until Ctrl+C. `farm up` does so by itself.

    \b
    farm dataset feed
    """
    from farm.dataset.serve import feed as run_feeder

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run_feeder(settings_here("dataset feed"), stop)
    return Outcome()


@app.command()
def ls() -> Outcome:
    """List datasets.

    \b
    farm dataset ls
    """
    with open_datasets() as desk:
        found = desk.ls()
    rows = [
        (one.name, one.state, one.samples, one.done, one.failed, f"{one.shards_done}/{one.shards}") for one in found
    ]
    return Outcome(
        [asdict(one) for one in found], [Table(("NAME", "STATE", "SAMPLES", "DONE", "FAILED", "SHARDS"), rows)]
    )


@app.command()
def status(name: Name) -> Outcome:
    """Show how far a dataset is, and why samples failed.

    \b
    farm dataset status fruit
    """
    with open_datasets() as desk:
        found = desk.status(name)
        failures = desk.failures(name, 20) if found.failed else []
    lines: list[str | Table] = [line_of(found), *filter(None, [unfed(found)])]
    for one in (found.refused or {}).get("rows", [])[:20]:
        lines.append(f"row {one['row']}{', ' + one['column'] if one['column'] else ''}: {one['message']}")
    for one in (found.refused or {}).get("errors", [])[:20]:
        lines.append(f"{one['loc']}: {one['msg']}")
    if failures:
        heads = ("KEY", "ROW", "STATE", "CODE", "MESSAGE")
        lines.append(Table(heads, [tuple(one[head.lower()] for head in heads) for one in failures]))
    return Outcome({**asdict(found), "failures": failures}, lines)


@app.command()
def pause(name: Name) -> Outcome:
    """Hold a dataset: what runs may still end, nothing new begins.

    \b
    farm dataset pause fruit
    """
    with open_datasets() as desk:
        return _after(desk.pause(name))


@app.command()
def resume(name: Name) -> Outcome:
    """Let a paused dataset go on.

    \b
    farm dataset resume fruit
    """
    with open_datasets() as desk:
        return _after(desk.start(name))


@app.command()
def retry(name: Name) -> Outcome:
    """Try again what failed, once every sample was tried.

    \b
    farm dataset retry fruit
    """
    with open_datasets() as desk:
        return _after(desk.retry(name))


@app.command()
def rm(name: Name) -> Outcome:
    """Delete a dataset, plan and shards. What was exported stays.

    \b
    farm dataset rm fruit
    """
    with open_datasets() as desk:
        desk.rm(name, RM_S)
    return Outcome({"name": name}, [f"{name} is deleted"])


# ---------------------------------------------------------------------------------------------------- what they share


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not equals or not name or not column:
        raise usage(f"--map {text}: not NAME=COLUMN", "for example --map prompt=caption")
    return name, column


def _after(status: Status) -> Outcome:
    return Outcome(asdict(status), [line_of(status)])


def _planned(found: dict[str, Any], dry_run: bool) -> list[str | Table]:
    """What was planned, in lines."""
    lines: list[str | Table] = [
        f"{found['name']}: {found['rows']:,} rows, {found['samples']:,} samples in {found['shards']:,} shards"
        + (f"; {found['rejected']:,} rows left out" if found["rejected"] else "")
    ]
    sizes = ", ".join(f"{width}x{height}" for width, height in found["sizes"][:5])
    lines.append(f"pictures of {sizes}, at most {found['size_bytes_most'] / 1e6:,.1f} MB")
    for word, names in (("differ in", found["parameters"]), ("columns beside", found["columns"])):
        if names:
            lines.append(f"{word}: {', '.join(list(names)[:20])}" + (", …" if len(names) > 20 else ""))
    if found["cost_s"] is not None:
        left = f", about {span(found['eta_s'])} on the live workers" if found["eta_s"] is not None else ""
        lines.append(f"{span(found['cost_s'])} of device time{left}")
    else:
        lines.append("what it costs is not known before its stages have run once")
    for one in found["rejects"]:
        column = f", {one['column']}" if one["column"] else ""
        lines.append(f"row {one['row']}{column}: {one['message']}")
    if not found["fresh"]:
        lines.append("it was planned before, from the same rows")
    if not dry_run:
        lines.append(f"farm dataset run {found['name']}")
    return lines


@contextmanager
def _counting() -> Iterator[Any]:
    """Tells on a terminal how many rows were read."""
    shown = False

    def counted(rows: int) -> None:
        nonlocal shown
        if rows % 5000 == 0 and not is_plain(sys.stderr):
            sys.stderr.write(f"\r{rows:,} rows")
            sys.stderr.flush()
            shown = True

    try:
        yield counted
    finally:
        if shown:
            sys.stderr.write("\r\033[K")
