"""What becomes of a dataset's shards: scored, verified, exported, told of?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from farm.cli.dataset import Name, app
from farm.cli.following import open_datasets, opened
from farm.cli.machine import need_worker
from farm.cli.outcome import INTERRUPTED, Outcome, load_settings, say, usage
from farm.errors import BadBlob, FarmError, Unavailable

if TYPE_CHECKING:
    from farm.catalog import Catalog
    from farm.dataset.fetched import Fetched
    from farm.stage import AdapterType


Either = Annotated[str | None, typer.Argument(metavar="NAME", help="The dataset's name.", show_default=False)]
From = Annotated[
    Path | None,
    typer.Option("--from", metavar="FOLDER", help="In place of NAME: the folder of a `fetch`. No farm is asked."),
]


@app.command()
def score(
    name: Either = None,
    clip: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gives clip_score: how well a picture fits its prompt.")
    ] = None,
    safety: Annotated[
        str | None, typer.Option(metavar="NAME", help="Gives safety_score: above 0 the safety checker finds something.")
    ] = None,
    folder: From = None,
) -> Outcome:
    """Score the pictures of a dataset, so that an export can choose by it. Ctrl+C leaves; nothing is lost.

    Runs here, on FARM_DEVICE, shard by shard; what was scored by the same files before is not scored again. Scores
    in a folder serve the exports from it; a `fetch` into it replaces them where the farm has some of its own.

    \b
    farm dataset score fruit --clip clip-b32
    farm dataset score fruit --clip clip-l14 --safety safety-checker
    farm dataset score --from fruit/ --clip clip-b32
    """
    asked: tuple[tuple[str, str | None, AdapterType], ...] = (
        ("clip", clip, "clip"), ("safety", safety, "safety_checker")
    )  # fmt: skip
    if not (clip or safety):
        raise usage(
            "nothing to score with was named", "--clip NAME, --safety NAME, or both; `farm models ls` lists them"
        )
    meant = _meant(name, folder)
    if isinstance(meant, str) and load_settings().url:
        raise usage(
            "`farm dataset score NAME` works on the farm's own machine, and FARM_URL names a farm elsewhere",
            "`farm dataset fetch NAME -o FOLDER`, then `farm dataset score --from FOLDER`; or ask its operator to",
        )
    need_worker()
    words = [meant] if isinstance(meant, str) else ["--from", str(folder)]
    with _catalog(meant) as catalog:
        for option, entry, type_ in asked:
            if entry:
                catalog.lock(catalog.judge(entry, type_, f"--{option}"))
                words += [f"--{option}", entry]
    title = meant if isinstance(meant, str) else meant.name
    told = _scored(words)
    lost = f", {told['damaged']:,} of them cannot be read" if told["damaged"] else ""
    line = (
        f"{title}  {told['shards']:,} shards scored, {told['samples']:,} pictures{lost}; {told['before']:,} were before"
    )
    return Outcome({"name": title, **told}, [line])


@app.command()
def export(
    out: Annotated[str, typer.Option("-o", "--out", help="Folder, or s3://BUCKET/PREFIX; new, or an earlier export.")],
    name: Either = None,
    folder: From = None,
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

    With FARM_URL its shards are downloaded one after the other, and not kept: `fetch` keeps them.

    \b
    farm dataset export fruit -o fruit/
    farm dataset export fruit -o s3://bucket/fruit --format parquet --dedupe near --blank-below 3
    farm dataset export --from fetched/ -o fruit/
    """
    from pydantic import ValidationError

    from farm.dataset.shelves import installed

    with installed():
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
    meant = _meant(name, folder)
    if isinstance(meant, str):
        with open_datasets() as desk:
            found = desk.export(meant, out, spec, partial=partial)
    else:
        from farm.dataset.collecting import exported
        from farm.store import Store

        found = exported(meant, out, spec, Store(load_settings()), partial=partial)
    told = ", ".join(f"{count:,} {split}" for split, count in found.counts.items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items() if count)
    lines = [f"{out}: {told}" + (f"; left out: {dropped}" if dropped else "")]
    return Outcome({"out": out, "counts": found.counts, "dropped": found.dropped, "files": found.files}, lines)


@app.command()
def verify(
    name: Either = None,
    folder: From = None,
    repair: Annotated[bool, typer.Option("--repair", help="Take damaged shards away, to be made again.")] = False,
) -> Outcome:
    """Read every shard of a dataset again, and tell all that is not as it was written or planned.

    \b
    farm dataset verify fruit
    farm dataset verify fruit --repair && farm dataset run fruit
    farm dataset verify --from fetched/
    """
    meant, away = _meant(name, folder), list[int]()
    if isinstance(meant, str):
        hint = "--repair takes damaged shards away, for `farm dataset run` to make again"
        with open_datasets() as desk:
            found = desk.verify(meant)
            away = desk.mend(meant, found) if repair else []
    else:
        from farm.dataset.collecting import verified

        hint = f"`farm dataset fetch {meant.name} -o {folder}` brings damaged files again"
        if repair:
            raise usage("--repair is for the farm's own shards, not for those in a folder", hint)
        found = verified(meant, whole=False)
    wrong = [asdict(one) for one in found.problems]
    lines = [f"shard {one.shard}{f', {one.key}' if one.key else ''}: {one.what}" for one in found.problems[:100]]
    lines.append(
        f"{found.samples:,} samples in {found.shards:,} shards, {found.failed:,} failed, {found.bytes / 1e6:,.1f} MB; "
        f"{len(wrong)} problems" + (f"; {len(found.absent):,} shards are not there yet" if found.absent else "")
    )
    if repair:
        lines.append(f"{len(away)} shards are taken away; `farm dataset run {name}` makes them again" if away else "")
        return Outcome({**asdict(found), "problems": wrong, "taken_away": away}, list(filter(None, lines)))
    error = BadBlob(f"{len(wrong)} things are not as they were written", hint=hint) if wrong else None
    return Outcome({**asdict(found), "problems": wrong}, lines, error)


@app.command()
def card(name: Name) -> Outcome:
    """Print what a dataset says of itself: the README.md of an export of all of it; before it is made, what it will be.

    \b
    farm dataset card fruit
    """
    with open_datasets() as desk:
        text = desk.card(name)
    return Outcome({"card": text}, text.splitlines())


@app.command()
def fetch(
    name: Name, out: Annotated[Path, typer.Option("-o", "--out", help="A new folder, or that of an earlier fetch.")]
) -> Outcome:
    """Download a dataset's shards from the farm that FARM_URL names; checked, and only what is not here yet.

    `export`, `verify` and `score` read such a folder with --from, and need no farm for that.

    \b
    farm dataset fetch fruit -o fetched/
    farm dataset export --from fetched/ -o fruit/
    """
    if not load_settings().url:
        raise usage("fetch is for a farm elsewhere, and FARM_URL names none", "here `farm dataset export` writes it")
    from farm.remote.datasets import RemoteDatasets

    files, fresh = 0, 0
    with open_datasets() as desk:
        for file, size in cast(RemoteDatasets, desk).fetch(name, out):
            files, fresh = files + 1, fresh + size
            if size:
                say(f"{file}  {size / 1e6:,.1f} MB")
        status = desk.status(name)
    shards = files // 2
    new = f"{fresh / 1e6:,.1f} MB of them new" if fresh >= 1e5 else f"{fresh:,} bytes of them new"
    lines = [f"{out}: {shards:,} of {status.shards:,} shards, {new}"]
    if shards:
        lines.append(f'datasets.load_dataset("webdataset", data_files={{"train": "{out}/*.tar"}}, split="train")')
    if shards < status.shards:
        lines.append(f"the others are not made yet ({name} is {status.state}); once more fetches them alone")
    told = {"name": name, "state": status.state, "out": str(out), "shards": shards, "of": status.shards, "bytes": fresh}
    return Outcome(told, lines)


def _meant(name: str | None, folder: Path | None) -> str | Fetched:
    """A dataset of the farm by its name, or the one in a folder. Raises NotFound, BadBlob, FarmError: (`usage`)."""
    if name is not None and folder is None:
        return name
    if name is not None or folder is None:
        raise usage("give NAME, or --from FOLDER", "--from reads what `farm dataset fetch NAME -o FOLDER` left there")
    from farm.dataset.shelves import installed

    with installed():
        from farm.dataset.fetched import Fetched
    return Fetched(folder)


@contextmanager
def _catalog(meant: str | Fetched) -> Iterator[Catalog]:
    """The catalog of this machine; the dataset is there. Raises NotFound."""
    if isinstance(meant, str):
        with opened("dataset score") as (desk, farm):
            desk.folder(meant)
            yield farm.catalog
    else:
        from farm.catalog import Catalog

        yield Catalog.load(load_settings())


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
