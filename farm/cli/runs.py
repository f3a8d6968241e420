"""How far are the runs, jobs that were submitted together, and how are all jobs of one steered at once?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, open_overview
from farm.records import instant

if TYPE_CHECKING:
    from farm.protocol import AnyOverview
    from farm.records import RunRecord

app = group("runs", "Runs, jobs that were submitted together: list, look, steer.")
Id = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, as `farm runs ls` and `farm jobs show` tell it.")]


@app.command()
def ls(limit: Annotated[int, typer.Option(min=1, max=10000, help="At most so many.")] = 50) -> Outcome:
    """List runs, the newest first.

    \b
    farm runs ls --limit 10
    """
    with open_overview() as farm:
        data = [_told(record) for record in farm.runs(limit)]
    rows = [(one["id"], one["count"], _states(one), one["created"], one["ended"] or "") for one in data]
    return Outcome(data, [Table(("RUN", "JOBS", "STATES", "CREATED", "ENDED"), rows)])


@app.command()
def show(run: Id) -> Outcome:
    """Show how many jobs of a run are in each state; `farm jobs ls --run RUN` lists them.

    \b
    farm runs show RUN
    """
    return _after(run, lambda farm: farm.run_record(run))


@app.command()
def cancel(run: Id) -> Outcome:
    """Cancel all unended jobs of a run; running stages stop within one step.

    \b
    farm runs cancel RUN
    """
    return _after(run, lambda farm: farm.cancel_run(run))


@app.command()
def pause(run: Id) -> Outcome:
    """Hold all unended jobs of a run after the stages that run now.

    \b
    farm runs pause RUN
    """
    return _after(run, lambda farm: farm.pause_run(run))


@app.command()
def resume(run: Id) -> Outcome:
    """Let the paused jobs of a run go on.

    \b
    farm runs resume RUN
    """
    return _after(run, lambda farm: farm.resume_run(run))


@app.command()
def retry(run: Id) -> Outcome:
    """Queue the failed, quarantined, cancelled and expired jobs of a run again.

    \b
    farm runs retry RUN
    """
    return _after(run, lambda farm: farm.retry_run(run))


def _after(run: str, call: Callable[[AnyOverview], RunRecord]) -> Outcome:
    """A run after `call`."""
    with open_overview() as farm:
        data = _told(call(farm))
    return Outcome(data, [f"{run}  {_states(data)}"])


def _told(record: RunRecord) -> dict[str, Any]:
    """A run as data."""
    times = {"created": instant(record.created_ms), "ended": instant(record.ended_ms)}
    return {"id": record.run, "count": record.count, "states": record.states, **times}


def _states(run: dict[str, Any]) -> str:
    """How many of its jobs are in each state, in words."""
    return ", ".join(f"{count} {state}" for state, count in run["states"].items())
