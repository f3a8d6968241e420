"""What runs on this machine: a whole farm, a demonstration, workers, or a look at what works."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, load_settings, say, settings_here, usage
from farm.cli.wait import failure_of, follow
from farm.errors import FarmError, FieldError, InvalidJob, Unavailable

if TYPE_CHECKING:
    from farm.catalog import Catalog
    from farm.handle import JobHandle
    from farm.records import JobRecord

WORKER_PARTS = ("workers", "torch", "diffusers", "transformers", "safetensors")
"""What a worker imports and the light installation lacks."""
API_PARTS = ("fastapi", "httpx2", "uvicorn")
"""What the API imports and the light installation lacks."""
SLOT = "KIND[=CHECKPOINT][,...]"


def up(
    data: Annotated[Path | None, typer.Option(help="Folder of the farm's data. [FARM_DATA]")] = None,
    slots: Annotated[
        list[str] | None, typer.Option(metavar=SLOT, help="One worker each; repeatable. [each kind's default]")
    ] = None,
) -> Outcome:
    """Run a whole farm on this machine: Redis, S3, workers and the HTTP API. Ctrl+C stops it; jobs survive.

    \b
    farm up
    farm up --slots text2img,img2img --slots upscale_latent,upscale
    """
    from farm.catalog import Catalog
    from farm.local import up as run

    settings = settings_here("up")
    settings = load_settings(**({"data": data} if data else {}))
    need_worker()
    _need(API_PARTS, "the API needs", "pip install 'latent-farm[local]'")
    run(settings, _slots(Catalog.load(settings), slots) if slots else None, say)
    return Outcome()


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the pictures.")] = Path("demo-out"),
    seed: Annotated[int | None, typer.Option(help="Seed of the pictures. [random]")] = None,
) -> Outcome:
    """Render two chains on this machine, on the running farm or on one that is started for it.

    On a terminal the farm that was started stays, with its dashboard, until Ctrl+C; elsewhere it is stopped at once.

    \b
    farm demo -o demo-out --seed 7
    """
    from farm.handle import ROUND_S
    from farm.local import demo as run

    settings = settings_here("demo")
    need_worker()
    # As Ctrl+C does: what was started is stopped again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    records: list[JobRecord] = []
    data: list[dict[str, Any]] = []

    def show(handles: list[JobHandle]) -> None:
        records.extend(follow(handles, ROUND_S))
        for handle, record in zip(handles, records, strict=True):
            uris = [result.uri for result in handle.results]
            data.append(
                {"id": handle.id, "state": record.state, "results": uris, "path": str(out / f"{handle.id}.png")}
            )

    run(settings, out, seed, show, say, stay=sys.stdin.isatty() and sys.stdout.isatty())
    return Outcome({"jobs": data}, (), failure_of(records))


def worker(
    stage: Annotated[list[str], typer.Option(metavar=SLOT, help="Stages of one child process; repeatable.")],
    name: Annotated[str | None, typer.Option(help="Unique among supervisors. [host and pid]")] = None,
) -> Outcome:
    """Run workers on this machine, one child process per --stage.

    \b
    farm worker --stage text2img=sd15,img2img=sd15 --stage upscale
    """
    from farm.catalog import Catalog

    settings = settings_here("worker")
    catalog = Catalog.load(settings)
    slots = _slots(catalog, stage)
    need_worker()
    for checkpoint in {queue.partition(".")[2] for slot in slots for queue in slot.split(",")}:
        catalog.lock(catalog.checkpoints[checkpoint])
    command = [sys.executable, "-m", "workers.supervisor"]
    for slot in slots:
        command += ["--slot", slot]
    if name is not None:
        command += ["--name", name]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 — no shell is wanted


def doctor() -> Outcome:
    """Look what works here, what is missing, and how to mend it. Exit status 1: something needed is broken.

    With FARM_URL set: whether the API of that farm answers, as whom, and whether it is of this version.

    \b
    farm doctor
    """
    from farm.doctor import examine, examine_elsewhere

    settings = load_settings()
    found = examine_elsewhere(settings) if settings.url else examine(settings, say)
    rows = [(item.name, item.state, item.found) for item in found]
    remedies = [f"{item.name}: {item.remedy}" for item in found if item.remedy]
    broken = [item.name for item in found if item.state == "broken"]
    error = None
    if broken:
        error = FarmError(f"needed, but broken: {', '.join(broken)}", code="unavailable")
    lines: list[str | Table] = [Table(("PART", "STATE", "FOUND"), rows)]
    return Outcome(found, [*lines, *([""] if remedies else []), *remedies], error)


def _slots(catalog: Catalog, given: Sequence[str]) -> list[str]:
    """The queues of each child, separated by commas: `text2img.sd15,img2img.sd15`.

    Raises:
        InvalidJob: (`unknown_kind`, `unknown_checkpoint`, `wrong_checkpoint`) says what there is.
    """
    from farm.plan import queue_name
    from farm.stage import kinds

    slots = []
    for slot in given:
        queues = []
        for part in slot.split(","):
            kind, _, checkpoint = part.strip().partition("=")
            if kind not in kinds():
                message = f"{kind!r} is not an installed kind; choose one of {', '.join(kinds())}"
                raise InvalidJob(errors=(FieldError(slot, message, "unknown_kind"),))
            stage = kinds()[kind](kind=kind, checkpoint=checkpoint or None)
            queues.append(queue_name(kind, catalog.checkpoint(stage, slot).name))
        if len(set(queues)) < len(queues):
            raise usage(f"{slot} names a queue twice")
        slots.append(",".join(queues))
    return slots


def need_worker() -> None:
    """Nothing, if workers can run here. Raises as `_need`."""
    _need(WORKER_PARTS, "workers need", "pip install 'latent-farm[worker]'")


def _need(parts: Sequence[str], who: str, remedy: str) -> None:
    """Nothing, if all `parts` are installed.

    Raises:
        Unavailable: some are not; says how to install them.
    """
    missing = [name for name in parts if find_spec(name) is None]
    if missing:
        raise Unavailable(f"{who} {', '.join(missing)}", hint=remedy)
