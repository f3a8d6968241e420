"""What does a row of a script's answer say?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from farm.errors import CODES
from farm.records import (
    ENDED,
    OPEN,
    PAUSING,
    STATES,
    Attempt,
    Claim,
    Event,
    JobRecord,
    Minute,
    Quarantined,
    QueueState,
    RunRecord,
    StageRecord,
    WorkerRecord,
    share_of,
)


def read_claim(row: list[Any], lease_s: float) -> Claim:
    """The claim in a row of `claim.lua`."""
    exec_, token, epoch, queue, payload, given, waiters, finishing, publish, attempt, stage, oom, crash = row
    return Claim(
        exec=exec_, token=token, epoch=int(epoch), queue=queue, payload=payload, input=given,
        waiters=tuple(sorted(waiters)), finishing=tuple(sorted(finishing)), publish=publish == "1", attempt=attempt,
        stage=int(stage), lease_s=lease_s, oom=int(oom), crash=int(crash),
    )  # fmt: skip


def read_job(row: list[Any]) -> JobRecord:
    """The job in a row of `record` (`shared/reading.lua`)."""
    job, fields, outputs, stages, wait = row if len(row) == 5 else (*row, [], [""])
    state, spec, run, lane, priority, created, deadline, started, ended, at, n, code, message, *rest = fields
    idem, owner, collected, tags = rest
    return JobRecord(
        job=job, state=state, spec=spec, run=run, lane=lane, priority=int(priority), created_ms=float(created),
        deadline_ms=int(deadline), started_ms=int(started or 0), ended_ms=int(ended or 0), at=int(at), n=int(n),
        code=code or "", message=message or CODES.get(code or "", ""), idem=idem, outputs=tuple(outputs),
        stages=tuple(_read_stage(i, int(at), state, outputs[i], stage) for i, stage in enumerate(stages)),
        owner=owner or "", position=wait[2] if wait[0] == "ready" else None, waits_for=_waits_for(*wait),
        collected=collected == "1", tags=tuple(tags.split("\n")) if tags else (),
    )  # fmt: skip


def _waits_for(state: str, *rest: Any) -> str:
    if state == "paused":
        return "paused"
    if state == "pausing":
        return PAUSING
    if state == "between":
        return "paused, its stage done"
    if state == "spool":
        return "finished; the result waits on its worker's disk until the store answers"
    if state == "backoff":
        return "back-off until " + time.strftime("%H:%M:%S UTC", time.gmtime(float(rest[0]) / 1000))
    if state != "ready":
        return ""
    queue, ahead, live, registered = rest
    if not live and registered:
        return f"no worker of {queue} may take it now: they are drained, pause after failures, or are of another build"
    if not live:
        return f"no worker serves {queue}"
    return f"{ahead} ahead in {queue}" if ahead else f"next in {queue}"


def _read_stage(index: int, at: int, job_state: str, output: str, row: list[Any]) -> StageRecord:
    exec_, queue, fields, times, live, work, now = row
    state, phase, step, steps, worker, attempt, crash, oom, lapses, code, message, started, committed, preview = fields
    mean_s, wall_s, queue_s = _of_work(times, work)
    if exec_.startswith("p:"):
        wall_s = 0.0  # what another job made is there, and only gets this one's name
    if index < at or job_state == "done":
        shown, mean_s, wall_s = "committed", 0.0, 0.0
    elif index > at:
        if state == "committed":
            mean_s, wall_s = 0.0, 0.0
        return StageRecord(
            index=index, exec=exec_, queue=queue, state="waiting", mean_s=mean_s, wall_s=wall_s, live=live,
            queue_s=queue_s,
        )  # fmt: skip
    elif job_state in ENDED or job_state == "paused":
        shown = job_state
    else:
        shown = "queued" if state == "ready" else state
    return StageRecord(
        index=index, exec=exec_, queue=queue, state=shown, phase=phase or "", step=int(step or 0),
        steps=int(steps or 0), worker=worker or "", attempt=int(attempt or 0), crash=int(crash or 0),
        oom=int(oom or 0), lapses=int(lapses or 0), output=output, code=code or "",
        message=message or CODES.get(code or "", ""), started_ms=int(started or 0), committed_ms=int(committed or 0),
        preview=int(preview or 0) if shown == "running" else 0,
        mean_s=mean_s, wall_s=wall_s, live=live, queue_s=queue_s,
        elapsed_s=max(now - int(started), 0) / 1000 if shown == "running" and started else None,
    )  # fmt: skip


def _seconds(times: Sequence[str]) -> tuple[float | None, float | None]:
    """The mean and the wall-clock time of a row of `times` (`shared/reading.lua`)."""
    mean, wall, _ = times
    return (float(mean) / 1000 if mean else None), (float(wall) / 1000 if wall else None)


def _of_work(times: Sequence[str], work: str) -> tuple[float | None, float | None, float | None]:
    """The mean and the wall-clock time of an execution of so much work, and the mean of its queue's."""
    mean_s, wall_s = _seconds(times)
    share = share_of(float(work or 0), float(times[2] or 0))
    if mean_s is None or wall_s is None or share is None:
        return None, None, mean_s
    return mean_s * share, wall_s * share, mean_s


def read_run(row: list[Any]) -> RunRecord:
    """The run in a row of `run.lua`."""
    run, owner, created, ended, states = row
    found = dict(states)
    return RunRecord(
        run=run, owner=owner, created_ms=float(created or 0), count=sum(found.values()),
        states={state: found[state] for state in STATES if state in found},
        ended_ms=0 if set(OPEN) & set(found) else int(float(ended)),
    )  # fmt: skip


def read_queue(row: list[Any]) -> QueueState:
    """The queue in a row of `queues.lua`."""
    queue, ready, running, live, times = row
    return QueueState(queue, int(ready), int(running), int(live), *_seconds(times), float(times[2] or 0))


def read_worker(row: list[Any]) -> WorkerRecord:
    """The worker in a row of `workers.lua`."""
    worker, (boot, state, host, pid, info, seen, queues), drained, held, isolated_ms, jobs = row
    return WorkerRecord(
        worker=worker, boot=boot, queues=tuple(queues.split("\n")) if queues else (), state=state, host=host,
        pid=int(pid) if pid.isdigit() else 0, draining=drained == 1, held=tuple(sorted(held)), seen_ms=int(seen),
        isolated_s=isolated_ms / 1000, info=json.loads(info), jobs=tuple(sorted(set(jobs))),
    )  # fmt: skip


def read_minute(row: list[Any]) -> Minute:
    """The minute in a row of `minutes.lua`."""
    told: dict[str, dict[str, int]] = {"queue": {}, "worker": {}, "image": {}}
    for name, many in zip(row[1][::2], row[1][1::2], strict=True):
        what, _, of = name.partition(" ")
        told[what][of] = int(many)
    return Minute(int(row[0]), told["queue"], told["worker"], told["image"])


def read_attempt(row: dict[str, str]) -> Attempt:
    """The failed attempt in an entry of an execution's `causes`."""
    code = row["code"]
    return Attempt(
        t=int(row["t"]), worker=row["worker"], attempt=int(row["attempt"]), code=code,
        message=row["message"] or CODES.get(code, ""), log=row["log"],
    )  # fmt: skip


def read_quarantined(row: list[Any]) -> Quarantined:
    """The execution in a row of `quarantined.lua`."""
    exec_, t, (queue, code, message, attempts, payload), jobs = row
    return Quarantined(
        exec=exec_, t=int(float(t)), queue=queue, code=code, message=message or CODES.get(code, ""),
        attempts=int(attempts), payload=payload, jobs=jobs,
    )  # fmt: skip


def read_event(id_: str, row: dict[str, str]) -> Event:
    """The event of a stream's entry."""
    return Event(
        id=id_, type=row["type"], job=row["job"], stage=int(row["stage"]), state=row["state"], worker=row["worker"],
        code=row["code"], exec=row["exec"], token=row["token"], epoch=row["epoch"], t=int(row["t"]),
        owner=row.get("owner", ""), run=row.get("run", ""),
    )  # fmt: skip
