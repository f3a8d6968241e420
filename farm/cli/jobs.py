"""How far are the jobs, what became of them, and who works on what?"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from farm.cli.outcome import Outcome, Table, group, open_farm, say, usage
from farm.cli.submit import Out, assignments, check_out, submitted
from farm.cli.wait import failure_of, wait
from farm.errors import Conflict, FarmError
from farm.records import ENDED, Lane, instant
from farm.tags import check_change

if TYPE_CHECKING:
    from farm.protocol import AnyJob
    from farm.records import Event, JobRecord

app = group("jobs", "Jobs: list, look, wait, steer, download.")
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, or its last 4 or more characters.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs, or their last 4 or more characters.")]
State = Literal["queued", "running", "paused", "done", "failed", "quarantined", "cancelled", "expired"]
LISTEN_MS = 1000
"""How long one look for further events blocks, milliseconds; shorter than the ledger's socket timeout."""


@app.command()
def ls(
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    run: Annotated[str | None, typer.Option(help="Only jobs of this run.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10000, help="At most so many.")] = 50,
) -> Outcome:
    """List jobs, the newest first.

    \b
    farm jobs ls --state failed --limit 10
    farm jobs ls --tag starred
    """
    with open_farm() as farm:
        records = farm.jobs(state=state, run=run, limit=limit, tag=tag)
    data = [_summary(record) for record in records]
    rows = [
        (record.job, record.state, f"{min(record.at + 1, record.n)}/{record.n}", record.lane, record.priority,
         _age(record), record.code, " ".join(record.tags))
        for record in records
    ]  # fmt: skip
    return Outcome(data, [Table(("JOB", "STATE", "STAGE", "LANE", "PRIORITY", "AGE", "CODE", "TAGS"), rows)])


@app.command()
def show(job: Id) -> Outcome:
    """Show a job: what was asked for, its stages, attempts and workers, and why it waits.

    \b
    farm jobs show 3f9a
    """
    from farm.estimate import eta_s

    with open_farm() as farm:
        handle = farm.job(job)
        record = handle.record
        results = [result.uri for result in handle.results]
        kept = handle.intermediates
    spec = json.loads(record.spec)
    stages = [asdict(stage) for stage in record.stages]
    left_s = eta_s(record)
    more = {"waits_for": record.waits_for, "position": record.position, "eta_s": left_s}
    data = {**_summary(record), **more, "chain": spec["chain"], "stages": stages, "results": results}
    data["intermediates"] = [{"stage": one.stage, "keep": one.keep, "uri": one.uri} for one in kept]
    facts = {
        "job": record.job,
        "state": f"{record.state}{f' ({record.code})' if record.code else ''}",
        "message": record.message,
        "waits for": record.waits_for,
        "done in": lasting(left_s),
        "prompt": spec["chain"].get("prompt", ""),
        "seed": spec["chain"]["seed"],
        "run": record.run,
        "tags": " ".join(record.tags),
        "created": instant(record.created_ms),
        "ended": instant(record.ended_ms),
    }
    lines: list[str | Table] = [f"{name:<10} {value}" for name, value in facts.items() if value not in ("", None)]
    heads = ("STAGE", "QUEUE", "STATE", "STEP", "ATTEMPT", "CRASHES", "OOM", "LAPSES", "WORKER", "CODE")
    rows = [
        (stage.index, stage.queue, stage.state, f"{stage.step}/{stage.steps}" if stage.steps else "", stage.attempt,
         stage.crash, stage.oom, stage.lapses, stage.worker, stage.code)
        for stage in record.stages
    ]  # fmt: skip
    lines += [
        Table(heads, rows),
        *(f"stage {stage.index}: {stage.message}" for stage in record.stages if stage.message),
        *(f"stage {one.stage}: kept {one.uri}" for one in kept),
        *(line for stage in record.stages if stage.output for line in _remarks(stage.index, json.loads(stage.output))),
    ]
    return Outcome(data, [*lines, *results])


def _remarks(index: int, output: dict[str, Any]) -> Iterator[str]:
    """What is to be said of a stage's output."""
    if output.get("tags"):
        yield f"stage {index}: {', '.join(output['tags'])}"
    if output.get("unread"):
        yield f"stage {index}: the prompt is too long; not read was: {output['unread']}"


@app.command("wait")
def wait_for(
    jobs: Ids, out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results.")] = None
) -> Outcome:
    """Wait until jobs have ended, showing where they are; print the results.

    \b
    farm jobs wait 3f9a 77c1 -o out/
    """
    if len(jobs) > 1 and out is not None and out.suffix == ".png":
        raise usage("several pictures do not go into one .png", "give a folder with -o")
    with open_farm() as farm:
        return wait([farm.job(job) for job in jobs], out, farm.round_s)


@app.command()
def watch(job: Id) -> Outcome:
    """Print each event of a job on stderr as it happens, from the first one, until it has ended.

    \b
    farm jobs watch 3f9a
    """
    from farm.handle import patient

    seen: list[Event] = []
    with open_farm() as farm:
        handle = farm.job(job)
        while True:
            # Read before the events: what ends the job is then among them.
            record = patient(lambda: handle.record)
            over, last = record.state in ENDED, seen[-1].id if seen else "0-0"
            found = patient(partial(handle.history, last, None if over else LISTEN_MS))
            for event in found:
                stage = "" if event.stage < 0 else f"stage {event.stage}"
                say(
                    "  ".join(
                        filter(None, (instant(event.t), event.type, stage, event.state, event.worker, event.code))
                    )
                )
            seen += found
            if over and not found:
                break
    data = {**_summary(record), "events": [asdict(event) for event in seen]}
    return Outcome(data, [record.state], failure_of([record]))


@app.command()
def cancel(jobs: Ids) -> Outcome:
    """Cancel jobs; a running stage stops within one step.

    \b
    farm jobs cancel 3f9a
    """
    return _each(jobs, lambda handle: handle.cancel())


@app.command()
def retry(jobs: Ids) -> Outcome:
    """Queue failed, quarantined, cancelled or expired jobs again from the stage they ended in.

    \b
    farm jobs retry 3f9a
    """
    return _each(jobs, lambda handle: handle.retry())


@app.command()
def pause(jobs: Ids) -> Outcome:
    """Hold jobs after the stage that runs now.

    \b
    farm jobs pause 3f9a
    """
    return _each(jobs, lambda handle: handle.pause())


@app.command()
def resume(jobs: Ids) -> Outcome:
    """Let paused jobs go on.

    \b
    farm jobs resume 3f9a
    """
    return _each(jobs, lambda handle: handle.resume())


@app.command()
def reprioritise(
    jobs: Ids,
    priority: Annotated[int, typer.Option(min=0, max=100, help="0 to 100; higher runs first.")],
    lane: Annotated[Lane | None, typer.Option(help="bulk runs when nothing else is there. [as it is]")] = None,
) -> Outcome:
    """Give unended jobs another place in the line.

    \b
    farm jobs reprioritise 3f9a --priority 90
    farm jobs reprioritise 3f9a 77c1 --priority 50 --lane bulk
    """
    told = f"priority {priority}{f', {lane}' if lane else ''}"
    return _each(jobs, lambda handle: handle.reprioritise(priority, lane), lambda handle: f"{handle.state}, {told}")


@app.command()
def tag(
    jobs: Ids,
    add: Annotated[list[str] | None, typer.Option(metavar="TAG", help="A tag to put on; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="TAG", help="One to take off; may be repeated.")] = None,
) -> Outcome:
    """Put tags on jobs in any state, and take others off; `starred` is the star of the page.

    A tagged job is kept: it outlives the retention, and is not cleared away with what has ended.

    \b
    farm jobs tag 3f9a 77c1 --add starred --add fruit
    farm jobs tag 3f9a --remove fruit
    """
    added, removed = check_change(add or [], remove or [])
    return _each(jobs, lambda handle: handle.tag(added, removed), lambda handle: list(handle.tags), "tags")


@app.command()
def tags() -> Outcome:
    """List the tags that jobs have, the one of the most jobs first.

    \b
    farm jobs tags
    """
    with open_farm() as farm:
        found = farm.tags()
    data = [{"tag": tag, "count": count} for tag, count in found.items()]
    return Outcome(data, [Table(("TAG", "JOBS"), list(found.items()))])


@app.command()
def fork(
    job: Id,
    from_stage: Annotated[
        int, typer.Option("--from", metavar="STAGE", help="The first stage that is another one, counted from 0.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[I.]NAME=VALUE", help="Any parameter from there on, JSON; I: stage from 0."),
    ] = None,
    stages: Annotated[
        Path | None,
        typer.Option("--chain", help="A chain file with the stages from there on."),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 100; higher runs first. [the job's]")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key yields the same job.")] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Show progress until the job has ended.")] = False,
    out: Out = None,
) -> Outcome:
    """Render a job once more with another end; the stages before it are not run again.

    \b
    farm jobs fork 3f9a --from 2 --set guidance_scale=3
    farm jobs fork 3f9a --from 1 --chain upscale.yaml -o out/
    """
    given = assignments(settings or [])
    check_out(out)
    more: dict[str, Any] = {"idempotency_key": idempotency_key, "priority": priority, "stages": stages}
    with open_farm() as farm:
        return submitted(farm, [farm.fork(job, from_stage, **more, **given)], wait_, out)


@app.command()
def rm(jobs: Ids) -> Outcome:
    """Delete ended jobs with their results in the store; pictures that other jobs share stay with those.

    \b
    farm jobs rm 3f9a
    """
    return _each(jobs, lambda handle: handle.delete(), lambda _: "deleted")


@app.command()
def download(
    job: Id,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder, or a .png.")] = Path("."),
    intermediates: Annotated[
        bool, typer.Option("--intermediates", help="Also what `farm render --keep` kept of earlier stages.")
    ] = False,
) -> Outcome:
    """Write the results of a job to disk.

    \b
    farm jobs download 3f9a -o apple.png
    farm jobs download 3f9a -o out/ --intermediates
    """
    with open_farm() as farm:
        handle = farm.job(job)
        state = handle.state
        if state != "done" and not (intermediates and handle.intermediates):
            hint = f"`farm jobs show {job}` says why" if state in ENDED else f"`farm jobs wait {job}` waits for it"
            raise Conflict(f"the job is {state}: it has no result", hint=hint)
        paths = [str(path) for path in handle.download(out, intermediates=intermediates)]
    return Outcome({"id": handle.id, "paths": paths}, paths)


def _each(
    ids: Sequence[str],
    steer: Callable[[AnyJob], object],
    told: Callable[[AnyJob], str | list[str]] = lambda handle: handle.state,
    name: str = "state",
) -> Outcome:
    """What `told` says of each job after `steer`, as `name`; the first refusal is the error, others go to stderr."""
    data: list[dict[str, Any]] = []
    lines, refused = [], []
    with open_farm() as farm:
        for job in ids:
            try:
                handle = farm.job(job)
                steer(handle)
                said = told(handle)
                data.append({"id": handle.id, name: said})
                lines.append(f"{handle.id}  {said if isinstance(said, str) else ' '.join(said)}".rstrip())
            except FarmError as error:
                if error.code in ("unavailable", "outcome_unknown"):
                    raise
                data.append({"id": job, "code": error.code, "message": error.message})
                refused.append(error)
    for other in refused[1:]:
        say(f"error: {other.message}")
    return Outcome({"jobs": data}, lines, refused[0] if refused else None)


def _summary(record: JobRecord) -> dict[str, Any]:
    """A job's record as data, without what is opaque in it."""
    names = ("state", "run", "lane", "priority", "at", "n", "code", "message", "tags")
    times = {name: instant(getattr(record, f"{name}_ms")) for name in ("created", "started", "ended", "deadline")}
    return {"id": record.job, **{name: getattr(record, name) for name in names}, **times}


def lasting(seconds: float | None) -> str:
    """About how long something takes: `about 40 s`, `about 3 min`; "" where nobody knows."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"


def _age(record: JobRecord) -> str:
    """How long ago a job was created: `12s`, `3m`, `5h`, `2d`."""
    age = max(0, int(time.time() - record.created_ms / 1000))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if age >= size:
            return f"{age // size}{unit}"
    return f"{age}s"
