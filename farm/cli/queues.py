"""What waits in the queues, and who works on it?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.outcome import Outcome, Table, group, open_overview

if TYPE_CHECKING:
    from farm.records import WorkerRecord

app = group("queue", "Queues and the workers that serve them.")
workers = group("workers", "Live workers: drain, resume. `farm queue status` lists them.")
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Workers, as `farm queue status` names them.")]
WITHHELD = {"worker": None, "host": None, "pid": None}
"""What a farm elsewhere tells an admin alone."""


@app.command()
def status() -> Outcome:
    """Show what is ready and running in each queue, and the live workers.

    \b
    farm queue status
    """
    with open_overview() as farm:
        queues, live, stats = farm.queues(), farm.workers(), farm.stats()
    rows = [(found.queue, found.ready, found.running, found.live) for found in queues]
    serving = [
        (found.worker or "withheld", _state(found), ",".join(found.queues), found.host or "withheld",
         found.pid or "withheld")
        for found in live
    ]  # fmt: skip
    data = {
        "queues": [asdict(found) for found in queues],
        "workers": [{**asdict(found), **({} if found.worker else WITHHELD)} for found in live],
        "stats": stats,
    }
    tables = (
        Table(("QUEUE", "READY", "RUNNING", "WORKERS"), rows),
        Table(("WORKER", "STATE", "QUEUES", "HOST", "PID"), serving),
    )
    return Outcome(data, [tables[0], "", tables[1]])


@workers.command()
def drain(names: Names) -> Outcome:
    """Give workers nothing more; what they run they finish.

    \b
    farm workers drain gpu-7.0
    """
    return _steer(names, on=True)


@workers.command()
def resume(names: Names) -> Outcome:
    """Give drained workers work again.

    \b
    farm workers resume gpu-7.0
    """
    return _steer(names, on=False)


def _steer(names: list[str], *, on: bool) -> Outcome:
    """What was said to each worker. Raises NotFound at the first that does not live."""
    with open_overview() as farm:
        for name in names:
            (farm.drain if on else farm.resume)(name)
    told = "draining" if on else "resumed"
    return Outcome([{"worker": name, "draining": on} for name in names], [f"{name}  {told}" for name in names])


def _state(worker: WorkerRecord) -> str:
    """What a worker does, or why it is given nothing."""
    if worker.isolated_s:
        return f"isolated for {worker.isolated_s:.0f} s"
    return "draining" if worker.draining else worker.state
