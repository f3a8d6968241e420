"""How are pictures asked for: by prompt and chain, or again from a picture?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from farm.cli.chains import edges
from farm.cli.jobs import lasting
from farm.cli.outcome import Outcome, load_settings, open_farm, usage
from farm.cli.submit import Out, assignments, axes, check_out, submitted
from farm.cli.wait import wait
from farm.errors import FarmError

if TYPE_CHECKING:
    from farm.job import Forecast
    from farm.protocol import AnyJob


def render(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    chain: Annotated[str | None, typer.Option(help="Name or .json/.yaml file. [hires; img with --image]")] = None,
    image: Annotated[str | None, typer.Option(help="Image to begin with; - reads it from stdin.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture. [random]")] = None,
    count: Annotated[int, typer.Option(help="Number of pictures, with seed, seed + 1, …")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="[I.]NAME=A,B,…", help="Each of these, or A..B; several multiply; or an axis as JSON."),
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Share of the schedule that img2img redoes.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely the prompt is followed.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the first stage, pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of the first stage, pixels.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler, by diffusers' class name or A1111's.")] = None,
    noise_level: Annotated[int | None, typer.Option(help="Noise that upscale adds to its input.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="[I.]NAME=VALUE", help="Any parameter, JSON; I: stage from 0.")
    ] = None,
    fit: Annotated[
        Literal["cover", "contain", "stretch"] | None, typer.Option(help="How the image meets another aspect. [cover]")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Run alone in every batch.")] = False,
    no_reuse: Annotated[bool, typer.Option("--no-reuse", help="Run even what is already made.")] = False,
    keep: Annotated[
        Literal["none", "preview", "image"] | None, typer.Option(help="What is kept of stages before the last. [none]")
    ] = None,
    priority: Annotated[int, typer.Option(help="0 to 100; higher runs first.")] = 50,
    lane: Annotated[Literal["interactive", "bulk"], typer.Option(help="bulk runs when nothing else is there.")] = (
        "interactive"
    ),
    deadline_s: Annotated[float | None, typer.Option(help="Expire after so many seconds.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Word to find the jobs by; may be repeated.")
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key yields the same jobs.")] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Show progress until the jobs have ended.")] = False,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show the chain; submit nothing.")] = False,
) -> Outcome:
    """Ask for pictures.

    A parameter is set in every stage that has it; --set 1.strength=0.4 sets that of one stage, counted from 0.

    \b
    farm render "a red apple" --wait -o out/
    farm render "a green apple" --image photo.jpg --strength 0.5 -o apple.png
    farm render "a lemon" --chain hires --count 4 --seed 7 --set 1.strength=0.4 --wait
    farm render "a lemon" --sweep seed=1,2,3 --sweep 0.guidance_scale=3,7 -o out/
    farm render --sweep '{"prompt": ["a lemon", "a carrot"], "seed": [1, 2]}'
    farm render "a plum" --count 8 --tag fruit --tag draft
    farm render --chain my-chain.yaml --dry-run

    Without --wait the ids of the jobs are printed. Exit status 3: a job did not end done.
    """
    if prompt is None and image is None and chain is None and not sweep:
        raise usage("nothing to draw: give a PROMPT, an --image or a --chain", "`farm render --help` shows how")
    if (count > 1 or sweep) and out is not None and out.suffix == ".png":
        raise usage("several pictures do not go into one .png", "give a folder with -o")
    named = {
        "negative_prompt": negative_prompt,
        "seed": seed,
        "fit": fit,
        "exact": exact or None,
        "reuse": False if no_reuse else None,
        "keep": keep,
        "strength": strength,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "noise_level": noise_level,
        # Only the first stage sets a size; the others take what they are given.
        "0.width": width,
        "0.height": height,
    }
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for name, value in assignments(settings or []).items():
        if name in given or (name == "prompt" and prompt is not None):
            raise usage(f"{name} is given twice")
        given[name] = value
    prompt = given.pop("prompt", prompt)
    default = "hires" if image is None else "img"
    source = sys.stdin.buffer.read(load_settings().max_upload_bytes + 1) if image == "-" else image
    options: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s, "count": count}
    options |= {"tags": tag or [], "sweep": axes(sweep or []), **given}
    options |= {"chain": default if chain is None else chain, "image": source}
    with open_farm() as farm:
        if dry_run:
            return _told(farm.dry_run(prompt, **options))
        check_out(out)
        handles = farm.run(prompt, idempotency_key=idempotency_key, **options)
        return submitted(farm, handles, wait_, out)


def rerun(
    pictures: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="PNGs that the farm made, or a dataset's WebP or JPEG.", show_default=False
        ),
    ],
    image: Annotated[Path | None, typer.Option(help="The input image, if the store no longer holds it.")] = None,
    wait_: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait, and compare the pixels.")] = True,
    out: Out = None,
) -> Outcome:
    """Make pictures again from the recipes in them, and say whether the pixels are identical.

    A dataset's WebP or JPEG is held against what was drawn, before it was compressed.

    \b
    farm rerun out/apple.png
    farm rerun out/apple.png --image photo.jpg -o again.png
    farm rerun out/*.png -o again/
    """
    from farm.image import drawn_sha256, pixels_sha256

    if len(pictures) > 1 and out is not None and out.suffix == ".png":
        raise usage("several pictures do not go into one .png", "give a folder with -o")
    with open_farm() as farm:
        handles, same = list["AnyJob"](), list[bool]()
        for picture in pictures:
            try:
                handle, same_recipe = farm.rerun(picture, image)
            except FarmError as error:
                # Those before it are under way, and go on.
                made = [handle.id for handle in handles]
                return Outcome({"jobs": [{"id": job} for job in made]}, made, error)
            handles.append(handle)
            same.append(same_recipe)
        if not wait_ and out is None:
            made = [handle.id for handle in handles]
            return Outcome({"jobs": [{"id": job} for job in made], "same_recipe": all(same)}, made)
        outcome = wait(handles, out, farm.round_s)
        if outcome.error is not None:
            return outcome
        lines, equal = list(outcome.lines), []
        for picture, handle, same_recipe in zip(pictures, handles, same, strict=True):
            (result,) = handle.results
            equal.append(pixels_sha256(handle.read(result)) == drawn_sha256(picture.read_bytes()))
            told = "the pixels are identical" if equal[-1] else "the pixels differ"
            if not same_recipe:
                told += "; the checkpoints or stages here are not those that made the picture"
            lines.append(told if len(pictures) == 1 else f"{picture}: {told}")
        jobs = [
            {**job, "identical": identical, "same_recipe": same_recipe}
            for job, identical, same_recipe in zip(outcome.data["jobs"], equal, same, strict=True)
        ]
        return Outcome({"jobs": jobs, "identical": all(equal), "same_recipe": all(same)}, lines)


def script(
    job: Annotated[str, typer.Argument(help="Id of a job, or its last 4 or more characters.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for program.py, and the input images if there are any.")
    ] = None,
) -> Outcome:
    """Print the plain diffusers program that makes the same pixels as a job.

    \b
    farm script 3f9a > apple.py
    farm script 3f9a -o again/     # also writes the input images, as they were fitted at submit
    """
    check_out(out)
    with open_farm() as farm:
        handle = farm.job(job)
        program = handle.script()
        if out is None:
            return Outcome({"script": program}, [program.rstrip("\n")])
        out.mkdir(parents=True, exist_ok=True)
        (out / "program.py").write_text(program, "utf-8")
        paths = [str(out / "program.py")]
        for name, data in handle.input_images().items():
            (out / name).write_bytes(data)
            paths.append(str(out / name))
    return Outcome({"script": program, "paths": paths}, paths)


def _told(forecast: Forecast) -> Outcome:
    """The jobs as they would run, all checks done and nothing stored, and what they take where the farm knows it."""
    count, seed = forecast.count, forecast.seed
    seeds = "a random seed" if seed is None else f"seeds {seed} to {seed + count - 1}" if count > 1 else f"seed {seed}"
    told = f"{count} job{'s' if count > 1 else ''}, {seeds}; not submitted"
    found = {"device time": lasting(forecast.cost_s), "done in": lasting(forecast.eta_s)}
    lines = [f"{name:<11} {value}" for name, value in found.items() if value]
    data = {"count": count, "seed": seed, "cost_s": forecast.cost_s, "eta_s": forecast.eta_s, "stages": forecast.stages}
    return Outcome(data, [edges(forecast.stages), told, *lines])
