"""How is a file made into a dataset: planned, run, looked at, exported?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from farm.cli.machine import need_worker
from farm.cli.outcome import INTERRUPTED, Outcome, Table, group, is_plain, say, settings_here, usage
from farm.cli.submit import assignments, axes
from farm.errors import BadBlob, FarmError, StageFailed, Unavailable

if TYPE_CHECKING:
    from farm.dataset.desk import Datasets, Planned, Status
    from farm.settings import Settings
    from farm.stage import AdapterType

app = group("dataset", "Bulk datasets: plan a file, run it, export what came of it.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
TURN_S = 8.0
"""So long the farm's own feeder has to see that a dataset is to run, before a command feeds it itself, seconds."""
RM_S = 15.0
"""So long a deletion waits for a feeder to leave the dataset, seconds."""
LOOK_S = 1.0
"""Pause between two looks at a dataset that is waited for, seconds."""


@app.command()
def plan(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, TSV, JSON, JSONL, Parquet or txt; also .gz, s3://.")
    ],
    name: Annotated[str, typer.Option(help="What the dataset is called.")],
    chain: Annotated[str, typer.Option(help="Preset or .json/.yaml file.")] = "txt",
    prompt: Annotated[str | None, typer.Option(help="Of rows that have none; a template with --templates.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Of rows that have none.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="[I.]NAME=VALUE", help="A parameter of every row.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Take prompt, seed, … from this column.")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="[I.]NAME=A,B,…", help="Each of these for every row; several multiply.")
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
    from farm.dataset.desk import as_data
    from farm.dataset.sources import source_of
    from farm.dataset.wildcards import Wildcards

    mapped = dict(_pair(one) for one in columns or [])
    asked: dict[str, Any] = {
        "columns": mapped, "sweep": axes(sweep or []), "templates": templates, "variants": variants, "seed": seed,
        "shard_samples": shard_samples, "image_format": image_format, "image_quality": image_quality,
        "keep": tuple(keep or ()), "per_row": per_row,
    }  # fmt: skip
    fields = {"prompt": prompt, "negative_prompt": negative_prompt, **assignments(settings or [])}
    with _open("dataset plan") as (desk, farm):
        source = source_of(file, store=farm.store, format=format)
        folder = None if file.startswith("s3://") else Path(file).parent
        with _counting() as counted:
            found = desk.plan(
                source, name, chain, chain_fields={key: value for key, value in fields.items() if value is not None},
                wildcards=Wildcards.read(wildcards) if wildcards else None, folder=folder, partial=partial,
                store=not dry_run, progress=counted, **asked,
            )  # fmt: skip
    return Outcome(as_data(found), _planned(found, dry_run))


@app.command()
def run(
    name: Name,
    priority: Annotated[int | None, typer.Option(help="0 to 100 among bulk jobs; higher runs first. [50]")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; the farm's own feeder feeds it.")] = False,
) -> Outcome:
    """Run a planned dataset, or let it go on, and show progress. Interactive jobs go before it.

    Where no feeder runs (`farm up` has one), this command feeds it itself. Ctrl+C leaves; nothing is lost.

    \b
    farm dataset run fruit
    farm dataset run fruit --priority 80 --detach
    """
    with _open("dataset run") as (desk, farm):
        status = desk.start(name, priority)
        if detach:
            hint = "" if desk.has_feeder() else "; nobody feeds it yet: `farm up` does, or `farm dataset feed`"
            return Outcome(_data(status), [_line(status) + hint])
        return _fed(desk, farm.settings, name)


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
    with _open("dataset ls") as (desk, _):
        found = desk.ls()
    rows = [
        (one.name, one.state, one.samples, one.done, one.failed, f"{one.shards_done}/{one.shards}") for one in found
    ]
    return Outcome(
        [_data(one) for one in found], [Table(("NAME", "STATE", "SAMPLES", "DONE", "FAILED", "SHARDS"), rows)]
    )


@app.command()
def status(name: Name) -> Outcome:
    """Show how far a dataset is, and why samples failed.

    \b
    farm dataset status fruit
    """
    with _open("dataset status") as (desk, _):
        found = desk.status(name)
        failures = desk.failures(name, 20) if found.failed else []
    lines: list[str | Table] = [_line(found)]
    if failures:
        heads = ("KEY", "ROW", "STATE", "CODE", "MESSAGE")
        lines.append(Table(heads, [tuple(one[head.lower()] for head in heads) for one in failures]))
    return Outcome({**_data(found), "failures": failures}, lines)


@app.command()
def pause(name: Name) -> Outcome:
    """Hold a dataset: what runs may still end, nothing new begins.

    \b
    farm dataset pause fruit
    """
    with _open("dataset pause") as (desk, _):
        return _after(desk.pause(name))


@app.command()
def resume(name: Name) -> Outcome:
    """Let a paused dataset go on.

    \b
    farm dataset resume fruit
    """
    with _open("dataset resume") as (desk, _):
        return _after(desk.start(name))


@app.command()
def retry(name: Name) -> Outcome:
    """Try again what failed, once every sample was tried.

    \b
    farm dataset retry fruit
    """
    with _open("dataset retry") as (desk, _):
        return _after(desk.retry(name))


@app.command()
def score(
    name: Name,
    clip: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gives clip_score: how well a picture fits its prompt.")
    ] = None,
    safety: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gives safety_score: above 0 the safety checker finds something.")
    ] = None,
) -> Outcome:
    """Score the pictures of a dataset, so that an export can choose by it. Ctrl+C leaves; nothing is lost.

    Runs here, on FARM_DEVICE, shard by shard; what was scored by the same files before is not scored again.

    \b
    farm dataset score fruit --clip clip-b32
    farm dataset score fruit --clip clip-l14 --safety safety-checker
    """
    asked: tuple[tuple[str, str | None, AdapterType], ...] = (
        ("clip", clip, "clip"), ("safety", safety, "safety_checker")
    )  # fmt: skip
    if not (clip or safety):
        raise usage(
            "nothing to score with was named", "--clip NAME, --safety NAME, or both; `farm models ls` lists them"
        )
    need_worker()
    with _open("dataset score") as (desk, farm):
        desk.folder(name)
        words = [name]
        for option, entry, type_ in asked:
            if entry:
                farm.catalog.lock(farm.catalog.judge(entry, type_, f"--{option}"))
                words += [f"--{option}", entry]
    told = _scored(words)
    lost = f", {told['damaged']:,} of them cannot be read" if told["damaged"] else ""
    line = (
        f"{name}  {told['shards']:,} shards scored, {told['samples']:,} pictures{lost}; {told['before']:,} were before"
    )
    return Outcome({"name": name, **told}, [line])


@app.command()
def export(
    name: Name,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder, or s3://BUCKET/PREFIX; new, or an earlier export.")],
    format: Annotated[
        Literal["webdataset", "parquet", "imagefolder"], typer.Option(help="What loaders will read.")
    ] = "webdataset",
    dedupe: Annotated[Literal["off", "exact", "near"], typer.Option(help="Of pictures that are alike, one.")] = "off",
    distance: Annotated[int, typer.Option(help="Bits of the perceptual hash that alike pictures may differ in.")] = 3,
    unique_prompts: Annotated[bool, typer.Option("--unique-prompts", help="One picture of each prompt.")] = False,
    blank_below: Annotated[
        float | None, typer.Option(help="Leave out pictures whose brightness deviates less, 0 to 127.5.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME>=VALUE", help="clip_score>=0.2, parameters.steps<30, columns.label==pear; all must hold."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples.")] = None,
    validation: Annotated[float, typer.Option(help="Share that goes into a validation split.")] = 0,
    file_samples: Annotated[int, typer.Option(help="Samples of a tar or Parquet file.")] = 1000,
    partial: Annotated[bool, typer.Option("--partial", help="Also while shards are missing.")] = False,
) -> Outcome:
    """Write a dataset in a form that loads in one line, with its card; what is left out is listed with its reason.

    \b
    farm dataset export fruit -o fruit/
    farm dataset export fruit -o s3://bucket/fruit --format parquet --dedupe near --blank-below 3
    """
    from pydantic import ValidationError

    from farm.dataset.choosing import ExportSpec

    given: dict[str, Any] = {
        "format": format, "dedupe": dedupe, "distance": distance, "unique_prompts": unique_prompts,
        "blank_below": blank_below, "where": tuple(where or ()), "limit": limit, "validation": validation,
        "file_samples": file_samples,
    }  # fmt: skip
    try:
        spec = ExportSpec(**given)
    except ValidationError as error:
        one = error.errors()[0]
        raise usage(f"--{str(one['loc'][0]).replace('_', '-')}: {one['msg']}") from None
    with _open("dataset export") as (desk, _):
        found = desk.export(name, out, spec, partial=partial)
    told = ", ".join(f"{count:,} {split}" for split, count in found.counts.items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items() if count)
    lines = [f"{out}: {told}" + (f"; left out: {dropped}" if dropped else "")]
    return Outcome({"out": out, "counts": found.counts, "dropped": found.dropped, "files": found.files}, lines)


@app.command()
def verify(
    name: Name,
    repair: Annotated[bool, typer.Option("--repair", help="Take damaged shards away, to be made again.")] = False,
) -> Outcome:
    """Read every shard of a dataset again, and tell all that is not as it was written.

    \b
    farm dataset verify fruit
    farm dataset verify fruit --repair && farm dataset run fruit
    """
    from dataclasses import asdict

    with _open("dataset verify") as (desk, _):
        found = desk.verify(name)
        away = desk.mend(name, found) if repair else []
    wrong = [asdict(one) for one in found.problems]
    lines = [f"shard {one.shard}{f', {one.key}' if one.key else ''}: {one.what}" for one in found.problems[:100]]
    lines.append(
        f"{found.samples:,} samples in {found.shards:,} shards, {found.failed:,} failed, {found.bytes / 1e6:,.1f} MB; "
        f"{len(wrong)} problems" + (f"; {len(found.absent):,} shards are not there yet" if found.absent else "")
    )
    if repair:
        lines.append(f"{len(away)} shards are taken away; `farm dataset run {name}` makes them again" if away else "")
        return Outcome({**asdict(found), "problems": wrong, "taken_away": away}, list(filter(None, lines)))
    hint = "--repair takes damaged shards away, for `farm dataset run` to make again"
    error = BadBlob(f"{len(wrong)} things are not as they were written", hint=hint) if wrong else None
    return Outcome({**asdict(found), "problems": wrong}, lines, error)


@app.command()
def card(name: Name) -> Outcome:
    """Print what a dataset says of itself: the README.md that an export of all of it has.

    \b
    farm dataset card fruit
    """
    with _open("dataset card") as (desk, _):
        text = desk.card(name)
    return Outcome({"card": text}, text.splitlines())


@app.command()
def rm(name: Name) -> Outcome:
    """Delete a dataset, plan and shards. What was exported stays.

    \b
    farm dataset rm fruit
    """
    with _open("dataset rm") as (desk, _):
        desk.rm(name, RM_S)
    return Outcome({"name": name}, [f"{name} is deleted"])


# ---------------------------------------------------------------------------------------------------- what they share


@contextmanager
def _open(command: str) -> Iterator[tuple[Datasets, Any]]:
    """The datasets of the farm that the settings name, and the farm."""
    settings = settings_here(command)
    try:
        import pyarrow  # noqa: F401

        from farm.client import Farm
        from farm.dataset.desk import Datasets
    except ModuleNotFoundError as error:
        raise Unavailable(f"datasets need {error.name}", hint="pip install 'latent-farm[dataset]'") from None
    with closing(Farm(settings)) as farm:
        yield Datasets(farm), farm


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not equals or not name or not column:
        raise usage(f"--map {text}: not NAME=COLUMN", "for example --map prompt=caption")
    return name, column


def _after(status: Status) -> Outcome:
    return Outcome(_data(status), [_line(status)])


def _data(status: Status) -> dict[str, Any]:
    from farm.dataset.desk import as_data

    return as_data(status)


def _line(status: Status) -> str:
    """A dataset in a line."""
    told = [
        f"{status.name}  {status.state}",
        f"{status.done:,} of {status.samples:,} samples",
        f"{status.failed:,} failed" if status.failed else "",
        f"{status.shards_done} of {status.shards} shards",
        f"{status.size_bytes / 1e6:,.1f} MB",
        f"{status.rate:.1f} a second" if status.rate else "",
        f"{_span(status.eta_s)} left" if status.eta_s else "",
        f"does not go on: {status.trouble['message']}" if status.trouble else "",
    ]
    return ", ".join(filter(None, told))


def _planned(found: Planned, dry_run: bool) -> list[str | Table]:
    """What was planned, in lines."""
    plan, estimate = found.plan, found.estimate
    lines: list[str | Table] = [
        f"{plan.spec.name}: {plan.rows:,} rows, {plan.samples:,} samples in {plan.shards:,} shards"
        + (f"; {plan.rejected:,} rows left out" if plan.rejected else "")
    ]
    sizes = ", ".join(f"{width}x{height}" for width, height in plan.sizes[:5])
    lines.append(f"pictures of {sizes}, at most {found.size_bytes_most / 1e9:,.2f} GB")
    if estimate.cost_s is not None:
        left = f", about {_span(estimate.eta_s)} on the live workers" if estimate.eta_s is not None else ""
        lines.append(f"{_span(estimate.cost_s)} of device time{left}")
    else:
        lines.append("what it costs is not known before its stages have run once")
    lines += [f"row {one.row}{f', {one.column}' if one.column else ''}: {one.message}" for one in found.rejected]
    if not found.fresh:
        lines.append("it was planned before, from the same rows")
    if not dry_run:
        lines.append(f"farm dataset run {plan.spec.name}")
    return lines


def _span(seconds: float | None) -> str:
    """A time as people say it."""
    left = seconds or 0.0
    if left < 120:
        return f"{left:.0f} s"
    if left < 7200:
        return f"{left / 60:.0f} min"
    return f"{left / 3600:.1f} h"


def _scored(words: Sequence[str]) -> dict[str, Any]:
    """What `workers.scoring` gives, in a process of its own, for the farm imports no torch; stderr is the user's."""
    # -P: what runs is what is installed, not what happens to lie in the current folder.
    command = [sys.executable, "-P", "-m", "workers.scoring", *words, "--parent", str(os.getpid())]
    # A group of its own: Ctrl+C reaches it once, from here.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            out, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if not out:
        raise FarmError(f"the scoring broke off with exit status {process.returncode}", hint="its last words are above")
    told: dict[str, Any] = json.loads(out)
    if "error" in told:
        raise (Unavailable if told["error"]["code"] == Unavailable.code else FarmError)(
            told["error"]["message"], code=told["error"]["code"], hint=told["error"]["hint"]
        )
    return told


@contextmanager
def _counting() -> Iterator[Any]:
    """Tells on a terminal how many rows were read."""
    shown = False

    def counted(rows: int) -> None:
        nonlocal shown
        if not is_plain(sys.stderr) and rows % 5000 == 0:
            sys.stderr.write(f"\r{rows:,} rows")
            sys.stderr.flush()
            shown = True

    try:
        yield counted
    finally:
        if shown:
            sys.stderr.write("\r\033[K")


def _fed(desk: Datasets, settings: Settings, name: str) -> Outcome:
    """Follows a dataset until it is done, feeding it where nobody else does."""
    from farm.dataset.serve import feed as run_feeder

    stop, wrong = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            if desk.has_feeder():  # which sees it within a moment
                stop.wait(TURN_S)
            run_feeder(settings, stop, name)
        except BaseException as error:  # noqa: BLE001 — raised again where it is waited for
            wrong.append(error)

    thread = threading.Thread(target=work, name="feeder")
    thread.start()
    try:
        found = _followed(desk, name, thread)
    except KeyboardInterrupt:
        say(f"left; `farm dataset run {name}` goes on with it")
        raise
    finally:
        stop.set()
        thread.join()
    if wrong:
        raise wrong[0]
    failed = f"{found.failed:,} samples could not be made" if found.state == "done" and found.failed else ""
    hint = f"`farm dataset status {name}` says why, `farm dataset retry {name}` tries them again"
    error = StageFailed(failed, code="job_failed", hint=hint) if failed else None
    return Outcome(_data(found), [_line(found)], error)


def _followed(desk: Datasets, name: str, thread: threading.Thread) -> Status:
    """Shows how far the dataset is until it is done, or its feeder ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    plain, last = is_plain(sys.stderr), ""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=plain) as bars:
        bar = bars.add_task(name, total=None, told="")
        while True:
            alive = thread.is_alive()
            status = desk.status(name)
            ended = status.done + status.failed + sum(status.open.get(one, 0) for one in ("done", "failed"))
            rate = f"{status.rate:.1f}/s" if status.rate else ""
            left = f"{_span(status.eta_s)} left" if status.eta_s else ""
            told = f"{status.failed} failed" if status.failed else ""
            bars.update(bar, total=status.samples, completed=ended, told="  ".join(filter(None, (rate, left, told))))
            if plain and (line := _line(status)) != last:
                say(line)
                last = line
            if status.state != "running" or not alive:
                return status
            time.sleep(LOOK_S)
