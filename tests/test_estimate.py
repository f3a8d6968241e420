"""Is what was measured, waited for and left told right: times, places, costs?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from farm.client import Farm
from farm.estimate import Estimate, estimate, eta_s
from farm.ledger import Ledger
from farm.records import Commit, JobRecord, Submission
from farm.settings import Settings
from tests.test_cli import record_tiny
from tests.test_ledger import P, done, job, serve, submit, take

EXACT = 0.002
"""What rounding to milliseconds may take, seconds."""


def age(raw: redis.Redis, exec: str, seconds: float) -> None:
    """Lets a running execution have begun so long ago."""
    now, micros = raw.time()
    raw.hset(P + f"x:{exec}", "started_ms", round(now * 1000 + micros / 1000 - seconds * 1000))


def took_s(raw: redis.Redis, exec: str) -> float:
    """How long a committed execution ran, in seconds."""
    started, committed = raw.hmget(P + f"x:{exec}", "started_ms", "committed_ms")
    return (int(committed) - int(started)) / 1000


def measured(ledger: Ledger, raw: redis.Redis, queue: str, seconds: float, name: str) -> float:
    """Runs one execution of `queue` that takes so long, and the moment longer that it gives."""
    submit(ledger, replace(job(name), stages=(replace(job(name).stages[0], queue=queue),)))
    claim = take(ledger, queue=queue)
    age(raw, claim.exec, seconds)
    done(ledger, claim)
    return took_s(raw, claim.exec)


def taking(ledger: Ledger, raw: redis.Redis, queue: str, seconds: float, name: str, work: float = 0) -> None:
    """Lets executions of `queue`, each of so much `work`, be known to take exactly so long."""
    measured(ledger, raw, queue, seconds, name)
    raw.hset(P + f"times:{queue}", mapping={"mean_ms": seconds * 1000, "wall_ms": seconds * 1000, "work": work})


def times(ledger: Ledger, queue: str = "q0") -> tuple[float | None, float | None]:
    (found,) = [one for one in ledger.queues() if one.queue == queue]
    return found.mean_s, found.wall_s


# ------------------------------------------------------------------------------------------------ times


def test_a_queue_is_timed_by_a_mean_that_forgets(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a queue that nobody has worked for
    submit(ledger, job("z", lane="bulk"))
    assert times(ledger) == (None, None)
    # When ten executions take 1, 2, … 10 s
    mean = sum(measured(ledger, raw, "q0", i + 1, f"a{i}") for i in range(10)) / 10
    # Then the mean is theirs
    assert times(ledger) == pytest.approx((mean, mean), abs=EXACT)
    # When the next takes 15.5 s, then it counts for a tenth
    mean = 0.9 * mean + 0.1 * measured(ledger, raw, "q0", 15.5, "b")
    assert times(ledger) == pytest.approx((mean, mean), abs=EXACT)
    # And fifty of 1 s make the past forgotten: half a percent of it is left
    for i in range(50):
        mean = 0.9 * mean + 0.1 * measured(ledger, raw, "q0", 1, f"c{i}")
    assert times(ledger) == pytest.approx((mean, mean), abs=EXACT)


def test_what_ran_together_shares_its_time(ledger: Ledger, raw: redis.Redis) -> None:
    # Given four executions of one claim call
    submit(ledger, *(job(name) for name in "abcd"))
    claims, _ = ledger.claim(["q0"], "w1", "b1", limit=4)
    for claim in claims:
        age(raw, claim.exec, 8)
    # When
    ledger.commit([Commit(claim, "out", claim.finishing) for claim in claims])
    # Then each cost a quarter of the call, which was as long for all
    wall = sum(took_s(raw, name) for name in "abcd") / 4
    assert times(ledger) == pytest.approx((wall / 4, wall), abs=EXACT)


@pytest.mark.parametrize("why", ["publish", "spool", "clock"])
def test_what_says_nothing_of_a_stage_is_not_counted(ledger: Ledger, raw: redis.Redis, why: str) -> None:
    # Given a claim of a publication, one that waited for the store, or one from before the clock went back
    submit(ledger, job("a", "k"))
    if why == "publish":
        done(ledger, take(ledger))
        raw.delete(P + "times:q0")
        submit(ledger, job("b", "k"))
    claim = take(ledger)
    age(raw, claim.exec, -60 if why == "clock" else 60)
    if why == "spool":
        ledger.beat([claim], "spool", 0, 0)
    # When
    done(ledger, claim)
    # Then
    assert times(ledger) == (None, None)


def test_more_work_takes_longer(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a queue whose executions were of 100 and of 300 pixel-steps, and took 10 s and 30 s
    def worked(name: str, work: float) -> Submission:
        return replace(job(name), stages=(replace(job(name).stages[0], work=work),))

    took = 0.0
    for name, work in (("a", 100.0), ("b", 300.0)):
        submit(ledger, worked(name, work))
        claim = take(ledger)
        age(raw, claim.exec, work / 10)
        done(ledger, claim)
        took += took_s(raw, claim.exec)
    # When five times as much is asked for, then it takes five times as long, and its queue's mean is what it was
    submit(ledger, worked("large", 1000.0), worked("unknown", 0.0))
    serve(ledger, "w1")
    assert eta_s(ledger.job("large")) == pytest.approx(took * 1000 / 400, abs=EXACT)
    mean = times(ledger)[0]
    assert mean == pytest.approx(took / 2, abs=EXACT)
    assert eta_s(ledger.job("unknown")) == pytest.approx(2 * mean, abs=EXACT)
    # When the farm has only measured work that nobody told of, then nobody can tell, until the job itself runs
    raw.hdel(P + "times:q0", "work")
    assert eta_s(ledger.job("large")) is None
    claim = take(ledger)
    assert claim.waiters == ("large",)
    ledger.beat([claim], "step", 1, 4)
    age(raw, claim.exec, 30)
    assert eta_s(ledger.job("large")) == pytest.approx(90, abs=0.5)


# ------------------------------------------------------------------------------------------------ places


def test_a_place_counts_all_that_is_claimed_before(ledger: Ledger, raw: redis.Redis) -> None:
    # Given both lanes, several priorities, and records of a newer build
    lines = [
        job("bulk", lane="bulk", priority=100), job("old"), job("newer", schema=2), job("first", priority=90),
        job("newer first", schema=2, priority=91), job("newer bulk", lane="bulk", schema=2), job("last", priority=1),
    ]  # fmt: skip
    submit(ledger, *lines)
    order = ["newer first", "first", "old", "newer", "last", "bulk", "newer bulk"]
    # When / Then
    assert [(ledger.job(name).position, name) for name in order] == list(enumerate(order))
    # When one is claimed, the others move up, and it has no place
    claim = take(ledger)
    assert claim.waiters == ("first",)
    assert [ledger.job(name).position for name in order] == [0, None, 1, 2, 3, 4, 5]
    ledger.pause("old")
    ledger.cancel("newer")
    assert [ledger.job(name).position for name in order] == [0, None, None, None, 1, 2, 3]


def test_many_jobs_are_read_in_one_look(ledger: Ledger) -> None:
    # Given
    submit(ledger, *(job(f"j{i}") for i in range(230)))
    serve(ledger, "w1")
    # When
    found = ledger.read([*(f"j{i}" for i in range(230)), "nobody"])
    # Then
    assert [one.job for one in found] == [f"j{i}" for i in range(230)]
    assert [one.position for one in found] == list(range(230))
    assert [one.waits_for for one in found[:2]] == ["next in q0", "1 ahead in q0"]
    assert found[7] == ledger.job("j7") == ledger.jobs(limit=223, whole=True)[-1]


# ------------------------------------------------------------------------------------------------ time left


@pytest.fixture
def timed(ledger: Ledger, raw: redis.Redis) -> Ledger:
    """A ledger whose q0 takes 10 s, and q1 4 s, each with two workers."""
    for queue, seconds in (("q0", 10.0), ("q1", 4.0)):
        taking(ledger, raw, queue, seconds, f"before {queue}")
        serve(ledger, f"{queue}-1", f"{queue}-2", queue=queue)
    return ledger


def test_the_time_left_follows_the_job(timed: Ledger, raw: redis.Redis) -> None:
    # Given a job of two stages with four jobs ahead
    submit(timed, *(job(f"j{i}") for i in range(4)), job("a", "k0", "k1"))

    def left() -> float:
        found = eta_s(timed.job("a"))
        assert found is not None
        return found

    # Then: 4 × 10 s on two workers, then 10 s and 4 s
    assert left() == pytest.approx(4 * 10 / 2 + 10 + 4, abs=EXACT)
    # When it is the next
    claims = [take(timed, f"q0-{1 + i}") for i in range(2)]
    for claim in claims:
        done(timed, claim)
    for i in range(2):
        done(timed, take(timed, f"q0-{1 + i}"))
    serve(timed, "q0-1", "q0-2")
    now = timed.job("a").stages[0].wall_s
    assert now is not None
    assert left() == pytest.approx(now + 4, abs=EXACT)
    # When it has begun, and then is at step 3 of 4 after 60 s, far longer than those before it took
    claim = take(timed, "q0-1")
    assert left() == pytest.approx(now + 4, abs=EXACT)
    timed.beat([claim], "step", 3, 4)
    age(raw, claim.exec, 60)
    assert left() == pytest.approx(60 / 3 + 4, abs=0.5)
    timed.beat([claim], "spool", 0, 0)
    assert left() == pytest.approx(4, abs=EXACT)
    # When it stands before its last stage, runs it, and is done
    done(timed, claim)
    assert left() == pytest.approx(4, abs=EXACT)
    last = take(timed, "q1-1", "q1")
    timed.beat([last], "step", 9, 4)
    assert left() == 0
    done(timed, last)
    assert eta_s(timed.job("a")) is None


def test_what_is_made_already_takes_no_time(timed: Ledger) -> None:
    # Given a job whose first stage is made
    submit(timed, job("a", "k0", "k1"))
    done(timed, take(timed, "q0-1"))
    # When another with the same, and one whose later stage alone is made
    submit(timed, job("b", "k0", "x1"), job("c", "x0", "before q1"))
    timed.pause("a")
    # Then
    assert eta_s(timed.job("b")) == pytest.approx(4, abs=EXACT)
    wall = timed.job("c").stages[0].wall_s
    assert wall is not None
    assert eta_s(timed.job("c")) == pytest.approx(wall, abs=EXACT)
    assert eta_s(timed.job("a")) is None


@pytest.mark.parametrize("why", ["not measured", "nobody serves it", "nobody serves a later stage", "ended", "paused"])
def test_no_time_is_told_that_nobody_knows(timed: Ledger, raw: redis.Redis, why: str) -> None:
    # Given
    submit(timed, job("a", "k0", "k1"))
    assert eta_s(timed.job("a")) is not None
    if why == "not measured":
        raw.delete(P + "times:q1")
    elif why == "nobody serves it":
        timed.drain("q0-1")
        timed.drain("q0-2")
    elif why == "nobody serves a later stage":
        timed.drain("q1-1")
        timed.drain("q1-2")
    elif why == "ended":
        timed.cancel("a")
    else:
        timed.pause("a")
    # When / Then
    assert eta_s(timed.job("a")) is None


def test_the_time_left_is_never_negative(timed: Ledger) -> None:
    # Given whatever a worker may report
    submit(timed, job("a"))
    record = replace(timed.job("a"), state="running")
    (stage,) = record.stages

    def left(**more: Any) -> float | None:
        running: JobRecord = replace(record, position=None, stages=(replace(stage, state="running", **more),))
        return eta_s(running)

    # When / Then
    for step, steps in ((0, 0), (5, 0), (-3, 4), (4, 4), (99, 4), (1, -4)):
        assert 0 <= (left(step=step, steps=steps) or 0) <= (stage.wall_s or 0)


# ------------------------------------------------------------------------------------------------ what is not submitted


def test_a_dry_run_tells_cost_and_time(settings: Settings, ledger: Ledger, raw: redis.Redis) -> None:
    with Farm(settings) as farm:
        record_tiny(farm.catalog)
        jobs = farm.jobs_of(farm.chain("x2", "a pear", seed=1), count=3, upload=False)
        first, second = (item.queue for item in jobs[0].plan)
        # Given nothing measured
        assert estimate(jobs, ledger) == Estimate()
        taking(ledger, raw, first, 6, "a", jobs[0].plan[0].work)
        assert estimate(jobs, ledger) == Estimate()
        taking(ledger, raw, second, 2, "b", jobs[0].plan[1].work)
        # When nobody serves the stages, then the cost alone is known
        assert estimate(jobs, ledger) == Estimate(3 * (6 + 2), None)
        for queue in (first, second):
            serve(ledger, f"worker of {queue}", queue=queue)
        # Then the last goes through its own chain after the slowest queue has worked off the two before it
        assert estimate(jobs, ledger) == Estimate(3 * (6 + 2), 6 + 2 + 2 * 6)
        # And twice the steps take the first stage twice as long, whose every pixel the second has as before
        steps = 2 * jobs[0].plan[0].stage.num_inference_steps  # type: ignore[attr-defined]
        longer = farm.jobs_of(farm.chain("x2", "a pear", seed=1, **{"0.steps": steps}), upload=False)
        assert estimate(longer, ledger) == Estimate(2 * 6 + 2, 2 * 6 + 2)
        # When one of them is made
        with_made = [jobs[0]]
        for item in jobs[0].plan:
            name, queue = jobs[0].execution(item.index), item.queue
            submit(ledger, replace(job(name), stages=(replace(job(name).stages[0], exec=name, queue=queue),)))
            done(ledger, take(ledger, f"worker of {queue}", queue))
        # Then it costs nothing
        assert estimate(with_made, ledger) == Estimate(0, 0)
