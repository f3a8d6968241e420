"""When will a job be done, and what do jobs cost, going by how long their stages took before?

The ledger measures, per queue, how long its executions take: `mean`, each one's share of its call (a call of eight that
takes 8 s costs 1 s each), and `wall`, the whole call. An execution of more work than those, more pixels or more steps,
takes so many times as long. What was never measured, or is served by nobody, is not guessed: then the answer is None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from farm.job import Job
from farm.ledger import Ledger
from farm.records import ENDED, JobRecord, StageRecord, share_of


@dataclass(frozen=True)
class Estimate:
    """What jobs would take: `cost_s` device-seconds, and `eta_s` seconds until all of them are done."""

    cost_s: float | None = None
    eta_s: float | None = None


def eta_s(record: JobRecord) -> float | None:
    """In how many seconds the job, read with its stages, will be done; never negative.

    The sum of what its current stage still waits for, position × the queue's mean / live workers; of what is left of
    that stage, at the rate of its own steps once it has done some, and the whole wall before; and of the wall of each
    later stage. Outputs that are there already take nothing, nor does writing the result. That later stages may wait
    for workers too, and how long a back-off lasts, is left out. None where the job has ended or is paused, where one of
    these stages has never been measured, and where nobody serves it.
    """
    if record.state in ENDED or record.state == "paused" or not record.stages:
        return None
    here, left = record.stages[record.at], 0.0
    for stage in record.stages[record.at :]:
        took_s = stage.wall_s if stage.live or not stage.wall_s else None
        left_s = _left_s(stage) if stage is here and stage.state == "running" else took_s
        if left_s is None:
            return None
        left += left_s
    usual_s = here.mean_s if here.queue_s is None else here.queue_s
    if record.position and here.live and usual_s is not None:
        left += record.position * usual_s / here.live
    return round(left, 3)


def _left_s(stage: StageRecord) -> float | None:
    """What is left of a running stage, in seconds; None where it is not known."""
    if stage.phase == "spool" or 0 < stage.steps <= stage.step:
        return 0.0
    share = max(stage.step, 0) / stage.steps if stage.steps > 0 else 0.0
    if share and stage.elapsed_s is not None:
        return stage.elapsed_s * (1 - share) / share
    return None if stage.wall_s is None else stage.wall_s * (1 - share)


def estimate(jobs: Sequence[Job], ledger: Ledger) -> Estimate:
    """What `jobs`, not submitted yet, would take beside all that waits already.

    `cost_s` sums what every execution that is not committed takes; equal ones run once. `eta_s` is the longest chain's
    walls, and for the queue that is busiest with them what is ready there, and all but the longest of the new ones,
    over its live workers: it has to work off what stands before the last of them.

    Raises:
        Unavailable: the ledger does not answer.
    """
    needed = {job.execution(item.index): item for job in jobs for item in job.plan}
    for done in ledger.committed(list(needed)):
        del needed[done]
    known = {state.queue: state for state in ledger.queues()}
    # How many times the queue's mean each takes.
    shares = {
        name: share_of(item.work, known[item.queue].work) if item.queue in known else None
        for name, item in needed.items()
    }
    new: dict[str, list[float]] = defaultdict(list)
    for name, item in needed.items():
        share = shares[name]
        if share is None or known[item.queue].mean_s is None:
            return Estimate()
        new[item.queue].append(share * (known[item.queue].mean_s or 0.0))
    cost = sum(map(sum, new.values()))
    if any(not known[queue].live for queue in new):
        return Estimate(round(cost, 3))
    chains = (
        sum(
            (known[item.queue].wall_s or 0.0) * (shares[name] or 0.0)
            for item in job.plan
            if (name := job.execution(item.index)) in needed
        )
        for job in jobs
    )
    waits = (
        (known[queue].ready * (known[queue].mean_s or 0.0) + sum(each) - max(each)) / known[queue].live
        for queue, each in new.items()
    )
    return Estimate(round(cost, 3), round(max(chains) + max(waits, default=0.0), 3))


def estimate_many(job: Job, count: int, ledger: Ledger) -> Estimate:
    """What `count` jobs like `job`, no two of them equal, would take on the live workers with nothing else to do.

    `eta_s` goes by the queue that is busiest with them: what they take there / live workers. None where a stage was
    never measured, or nobody serves it.

    Raises:
        Unavailable: the ledger does not answer.
    """
    known, busy = {state.queue: state for state in ledger.queues()}, defaultdict[str, float](float)
    for item in job.plan:
        state = known.get(item.queue)
        share = share_of(item.work, state.work) if state else None
        if state is None or share is None or state.mean_s is None:
            return Estimate()
        busy[item.queue] += share * state.mean_s * count
    cost = round(sum(busy.values()), 3)
    if any(not known[queue].live for queue in busy):
        return Estimate(cost)
    return Estimate(cost, round(max(took / known[queue].live for queue, took in busy.items()), 3))
