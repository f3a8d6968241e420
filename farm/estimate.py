"""When will a job be done, and what do jobs cost, going by how long their stages took before?

The ledger measures, per queue, how long its executions take: `mean`, each one's share of its call (a call of eight that
takes 8 s costs 1 s each), and `wall`, the whole call. What was never measured, or is served by nobody, is not guessed:
then the answer is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from farm.job import Job
from farm.ledger import Ledger
from farm.records import ENDED, JobRecord


@dataclass(frozen=True)
class Estimate:
    """What jobs would take: `cost_s` device-seconds, and `eta_s` seconds until all of them are done."""

    cost_s: float | None = None
    eta_s: float | None = None


def eta_s(record: JobRecord) -> float | None:
    """In how many seconds the job, read with its stages, will be done; never negative.

    The sum of what its current stage still waits for, position × mean / live workers; of what is left of that stage,
    wall × (1 - step / steps) while it runs and the whole wall before; and of the wall of each later stage. Outputs that
    are there already take nothing, nor does writing the result. That later stages may wait for workers too, and how
    long a back-off lasts, is left out. None where the job has ended or is paused, where one of these stages has never
    been measured, and where nobody serves it.
    """
    if record.state in ENDED or record.state == "paused" or not record.stages:
        return None
    here, left = record.stages[record.at], 0.0
    for stage in record.stages[record.at :]:
        running = stage is here and stage.state == "running"
        if stage.wall_s is None or stage.mean_s is None or not (running or stage.live or not stage.wall_s):
            return None
        if running:
            share = stage.step / stage.steps if stage.steps else 0.0
            done = 1.0 if stage.phase == "spool" else min(max(share, 0.0), 1.0)
            left += stage.wall_s * (1 - done)
        else:
            left += stage.wall_s
    if record.position and here.live and here.mean_s is not None:
        left += record.position * here.mean_s / here.live
    return round(left, 3)


def estimate(jobs: Sequence[Job], ledger: Ledger) -> Estimate:
    """What `jobs`, not submitted yet, would take beside all that waits already.

    `cost_s` sums the mean of every execution that is not committed; equal ones run once. `eta_s` is the longest chain's
    walls, and for the queue that is busiest with them (ready + new - 1) × mean / live workers: it has to work off what
    stands before the last of them.

    Raises:
        Unavailable: the ledger does not answer.
    """
    needed = {job.execution(item.index): item.queue for job in jobs for item in job.plan}
    for done in ledger.committed(list(needed)):
        del needed[done]
    known, new = {state.queue: state for state in ledger.queues()}, Counter(needed.values())
    if any(queue not in known or known[queue].mean_s is None for queue in new):
        return Estimate()
    mean = {queue: known[queue].mean_s or 0.0 for queue in new}
    cost = sum(mean[queue] * count for queue, count in new.items())
    if any(not known[queue].live for queue in new):
        return Estimate(round(cost, 3))
    chains = (
        sum(known[item.queue].wall_s or 0.0 for item in job.plan if job.execution(item.index) in needed) for job in jobs
    )
    waits = ((known[queue].ready + count - 1) * mean[queue] / known[queue].live for queue, count in new.items())
    return Estimate(round(cost, 3), round(max(chains) + max(waits, default=0.0), 3))


def estimate_many(job: Job, count: int, ledger: Ledger) -> Estimate:
    """What `count` jobs like `job`, no two of them equal, would take on the live workers with nothing else to do.

    `eta_s` goes by the queue that is busiest with them: count × mean / live workers. None where a stage was never
    measured, or nobody serves it.

    Raises:
        Unavailable: the ledger does not answer.
    """
    known, new = {state.queue: state for state in ledger.queues()}, Counter(item.queue for item in job.plan)
    if any(queue not in known or known[queue].mean_s is None for queue in new):
        return Estimate()
    busy = {queue: (known[queue].mean_s or 0.0) * times * count for queue, times in new.items()}
    if any(not known[queue].live for queue in new):
        return Estimate(round(sum(busy.values()), 3))
    return Estimate(
        round(sum(busy.values()), 3), round(max(took / known[queue].live for queue, took in busy.items()), 3)
    )
