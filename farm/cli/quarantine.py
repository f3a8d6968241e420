"""What has failed again and again, why, and should it be tried once more?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, Table, group, open_farm
from farm.records import instant

if TYPE_CHECKING:
    from farm.records import Quarantined

app = group("quarantine", "Stages that killed their workers again and again, with cause and last log lines.")
Name = Annotated[
    str,
    typer.Argument(metavar="ID", help="First 4 or more characters of a quarantined recipe, or a job that it ended."),
]


@app.command()
def ls(limit: Annotated[int, typer.Option(min=1, max=10000, help="At most so many.")] = 100) -> Outcome:
    """List what is in quarantine, the newest first: the stage, the cause, and how many jobs it ended.

    \b
    farm quarantine ls
    """
    with open_farm() as farm:
        found = farm.quarantined(limit)
    rows = [(one.exec[:12], one.queue, one.jobs, one.attempts, instant(one.t), one.code, one.message) for one in found]
    heads = ("ID", "QUEUE", "JOBS", "ATTEMPTS", "SINCE", "CODE", "MESSAGE")
    return Outcome([_data(one) for one in found], [Table(heads, rows)])


@app.command()
def show(name: Name) -> Outcome:
    """Show one: what it would run, its jobs, and each failed attempt with the worker's last log lines.

    \b
    farm quarantine show 3f9a
    """
    with open_farm() as farm:
        exec = farm.quarantine_of(name)
        one, attempts, jobs = farm.failures(exec)
    recipe = json.loads(one.payload)["recipes"][-1]
    facts = {
        "recipe": one.exec,
        "stage": f"{recipe['kind']} with {recipe['checkpoint']['name']}, seed {recipe['seed']}",
        "parameters": json.dumps(recipe["parameters"], ensure_ascii=False),
        "cause": f"{one.code}: {one.message}",
        "since": instant(one.t),
        "jobs": " ".join(jobs),
    }
    lines = [f"{head:<10} {value}" for head, value in facts.items()]
    for attempt in attempts:
        lines += ["", f"attempt {attempt.attempt} on {attempt.worker} at {instant(attempt.t)}: {attempt.message}"]
        lines += [f"    {line}" for line in attempt.log.splitlines()]
    data = {**_data(one), "recipe": recipe, "job_ids": jobs, "failures": [asdict(attempt) for attempt in attempts]}
    return Outcome(data, lines)


@app.command()
def retry(name: Name) -> Outcome:
    """Lift a quarantine and queue all the jobs that it ended again, with cleared counters.

    \b
    farm quarantine retry 3f9a
    """
    with open_farm() as farm:
        exec = farm.quarantine_of(name)
        jobs = farm.retry_quarantined(exec)
    return Outcome({"exec": exec, "jobs": jobs}, [f"{job}  queued" for job in jobs])


@app.command()
def drop(name: Name) -> Outcome:
    """Lift a quarantine and forget its cause. Its jobs stay ended; a new job with the same recipe may run again.

    \b
    farm quarantine drop 3f9a
    """
    with open_farm() as farm:
        exec = farm.quarantine_of(name)
        farm.drop_quarantined(exec)
    return Outcome({"exec": exec}, [f"{exec}  dropped"])


def _data(one: Quarantined) -> dict[str, Any]:
    """A quarantined stage as data, without what is opaque in it."""
    return {**{key: value for key, value in asdict(one).items() if key != "payload"}, "t": instant(one.t)}
