"""What becomes of work that fails again and again, and of a worker on which everything fails?"""

from __future__ import annotations

import pytest
import redis

from farm.client import Farm
from farm.errors import Failure, NotFound
from farm.ledger import Ledger
from farm.records import Beat, Commit
from farm.settings import Settings
from tests.test_ledger import P, done, job, mature, serve, state, submit, take


def crash(ledger: Ledger, worker: str, message: str = "", log: str = "", queue: str = "q0") -> None:
    ledger.fail([take(ledger, worker, queue)], Failure.CRASH, "internal", message, log)


def poison(ledger: Ledger, *names: str) -> None:
    """Jobs of one execution, `k`, in quarantine."""
    submit(ledger, *(job(name, "k") for name in names))
    for worker in ("w1", "w2", "w3"):
        crash(ledger, worker, f"died on {worker}", f"last words of {worker}")


# ------------------------------------------------------------------------------------------------ quarantine


def test_each_failed_attempt_is_kept_with_its_cause_and_last_words(ledger: Ledger) -> None:
    poison(ledger, "a")
    found = ledger.attempts("k")
    assert [(one.worker, one.attempt, one.code, one.message, one.log) for one in found] == [
        (f"w{i}", i, "internal", f"died on w{i}", f"last words of w{i}") for i in (1, 2, 3)
    ]


def test_deaths_lapses_and_memory_are_kept_too(ledger: Ledger, raw: redis.Redis) -> None:
    submit(ledger, job("a", "k"))
    take(ledger, "w1")
    ledger.worker_died("w1", "b1", "crashed", "the worker died: killed by SIGSEGV", log="Fatal Python error")
    ledger.fail([take(ledger, "w2")], Failure.OOM, "gpu_oom", "at 512x512")
    take(ledger, "w3")
    mature(raw, "leases", "k")
    ledger.reap("r")
    assert [(one.code, one.log) for one in ledger.attempts("k")] == [
        ("crashed", "Fatal Python error"),
        ("gpu_oom", ""),
        ("lapsed", ""),
    ]


def test_a_log_is_kept_from_its_end(ledger: Ledger) -> None:
    submit(ledger, job("a", "k"))
    crash(ledger, "w1", log="x" * 100_000 + "the end")
    (found,) = ledger.attempts("k")
    assert found.log.endswith("the end")
    assert len(found.log) == 8000


def test_the_list_says_what_is_in_quarantine_and_how_many_jobs_it_ended(ledger: Ledger) -> None:
    poison(ledger, "a", "b")
    submit(ledger, job("c", "k"))  # a recipe that is in quarantine already
    (found,) = ledger.quarantined(ledger.quarantine())
    assert (found.exec, found.queue, found.code, found.message) == ("k", "q0", "internal", "died on w3")
    assert (found.attempts, found.payload, found.jobs) == (3, "payload of k", 3)
    assert ledger.quarantined_jobs("k") == ["a", "b", "c"]


def test_a_retried_job_leaves_the_list_and_the_others_follow(ledger: Ledger) -> None:
    poison(ledger, "a", "b")
    ledger.retry("a")
    assert ledger.quarantine() == []
    assert ledger.attempts("k") == []
    assert ledger.quarantined_jobs("k") == ["b"]
    ledger.retry("b")
    done(ledger, take(ledger, "w4"))
    assert (state(ledger, "a"), state(ledger, "b")) == ("done", "done")


def test_a_dropped_quarantine_leaves_its_jobs_ended_and_lets_new_ones_run(ledger: Ledger) -> None:
    poison(ledger, "a")
    ledger.drop("k")
    assert (ledger.quarantine(), ledger.attempts("k"), ledger.quarantined_jobs("k")) == ([], [], [])
    assert state(ledger, "a") == "quarantined"
    submit(ledger, job("b", "k"))
    done(ledger, take(ledger, "w1"))
    assert state(ledger, "b") == "done"


@pytest.mark.parametrize("name", ["k", "nothing"])
def test_only_what_is_in_quarantine_can_be_dropped(ledger: Ledger, name: str) -> None:
    submit(ledger, job("a", "k"))
    with pytest.raises(NotFound):
        ledger.drop(name)
    assert state(ledger, "a") == "queued"


def test_a_quarantine_passes_out_of_the_list_with_its_retention(ledger: Ledger, raw: redis.Redis) -> None:
    poison(ledger, "a")
    raw.zadd(P + "quarantine", {"k": 1})
    ledger.reap("r")
    assert ledger.quarantine() == []


# ------------------------------------------------------------------------------------------------ isolation


def fail_three(ledger: Ledger, worker: str = "bad") -> None:
    for place, name in enumerate("abc"):
        submit(ledger, job(name, priority=place))
        crash(ledger, worker)


def test_three_different_failures_in_a_row_isolate_a_worker(ledger: Ledger) -> None:
    serve(ledger, "bad", "good")
    fail_three(ledger)
    assert 0 < ledger.isolated("bad") <= 10
    submit(ledger, job("fresh"))
    assert ledger.claim(["q0"], "bad", "b1")[0] == []
    (bad, good) = ledger.workers()
    assert (bad.isolated_s > 0, good.isolated_s) == (True, 0)
    # The queue counts on the others alone, and they do the work.
    assert ledger.queues()[0].live == 1
    for _ in range(4):
        done(ledger, take(ledger, "good"))
    assert [state(ledger, name) for name in ("a", "b", "c", "fresh")] == ["done"] * 4


def test_one_poison_isolates_nobody(ledger: Ledger) -> None:
    submit(ledger, job("a"))
    for _ in range(3):
        crash(ledger, "w1")
    assert ledger.isolated("w1") == 0


def test_a_success_in_between_clears_a_worker(ledger: Ledger) -> None:
    for place, name in enumerate("ab"):
        submit(ledger, job(name, priority=place))
        crash(ledger, "w1")
    submit(ledger, job("good", lane="interactive", priority=100))
    done(ledger, take(ledger, "w1"))
    submit(ledger, job("c", priority=100))
    crash(ledger, "w1")
    assert ledger.isolated("w1") == 0


@pytest.mark.parametrize("how", ["crash", "died", "oom"])
def test_every_failure_that_may_be_the_worker_s_fault_counts(ledger: Ledger, how: str) -> None:
    for place, name in enumerate("abc"):
        submit(ledger, job(name, priority=place))
        claim = take(ledger, "w1")
        if how == "died":
            ledger.worker_died("w1", "b1", "crashed", "")
        else:
            ledger.fail([claim], Failure(how), "internal", "")
    assert ledger.isolated("w1") > 0


@pytest.mark.parametrize("failure", [Failure.TRANSIENT, Failure.DETERMINISTIC])
def test_what_is_nobody_s_or_the_job_s_fault_does_not_count(ledger: Ledger, failure: Failure) -> None:
    for place, name in enumerate("abcd"):
        submit(ledger, job(name, priority=place))
        ledger.fail([take(ledger, "w1")], failure, "transient", "")
    assert ledger.isolated("w1") == 0


def test_a_batch_that_dies_counts_as_one_failure(ledger: Ledger) -> None:
    submit(ledger, *(job(name) for name in "abcd"))
    assert len(ledger.claim(["q0"], "w1", "b1", limit=4)[0]) == 4
    ledger.worker_died("w1", "b1", "crashed", "")
    assert ledger.isolated("w1") == 0


def test_a_worker_that_goes_on_failing_waits_twice_as_long(ledger: Ledger, raw: redis.Redis) -> None:
    fail_three(ledger)
    raw.hset(P + "health:bad", "until_ms", 1)
    for place, name in enumerate("def"):
        submit(ledger, job(name, priority=place))
        crash(ledger, "bad")
    assert 10 < ledger.isolated("bad") <= 20
    # A success ends the suspicion.
    raw.hset(P + "health:bad", "until_ms", 1)
    done(ledger, take(ledger, "bad"))
    assert not raw.exists(P + "health:bad", P + "failing:bad")


def test_poison_before_good_work_keeps_the_only_worker_for_a_minute_or_so(ledger: Ledger, raw: redis.Redis) -> None:
    # Given ten jobs that fail, before one that does not, and a single worker
    serve(ledger, "only")
    submit(ledger, *(job(f"bad{i}") for i in range(10)), job("good"))
    # When it works, its pauses skipped and summed
    waited = 0.0
    while state(ledger, "good") != "done":
        waited += ledger.isolated("only")
        if raw.exists(P + "health:only"):
            raw.hset(P + "health:only", "until_ms", 1)
        claim = take(ledger, "only")
        if claim.exec == "good":
            done(ledger, claim)
        else:
            ledger.fail([claim], Failure.CRASH, "internal", "")
    # Then three pauses are all: each of the ten was tried once
    assert 60 < waited <= 70


def test_a_suspected_worker_tries_first_what_has_not_failed_on_it(ledger: Ledger) -> None:
    submit(ledger, job("first"), job("second"))
    crash(ledger, "w1")
    claim = take(ledger, "w1")
    assert claim.exec == "second"
    done(ledger, claim)
    assert take(ledger, "w1").exec == "first"


def test_a_suspected_worker_takes_what_failed_on_it_where_there_is_nothing_else(ledger: Ledger) -> None:
    submit(ledger, job("a"))
    crash(ledger, "w1")
    assert take(ledger, "w1").exec == "a"


def test_writing_a_result_that_exists_clears_no_worker(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a job whose last stage another job is making, so that its result is a claim of its own
    submit(ledger, job("a", "k"))
    claim = take(ledger, "w2")
    submit(ledger, job("late", "k"))
    done(ledger, claim)
    # When a failing worker writes it
    submit(ledger, job("bad", priority=100))
    crash(ledger, "w1")
    publication = take(ledger, "w1")
    assert publication.publish
    done(ledger, publication)
    # Then
    assert raw.scard(P + "failing:w1") == 1


def test_a_pause_that_was_set_before_the_clock_went_back_is_over(ledger: Ledger, raw: redis.Redis) -> None:
    fail_three(ledger)
    raw.hset(P + "health:bad", "until_ms", 2**53)
    assert ledger.isolated("bad") == 0


# -------------------------------------------------------------------------------------------- finished, not uploaded


def test_a_finished_output_survives_its_worker_s_death(ledger: Ledger) -> None:
    # Given a claim whose output waits for its upload
    submit(ledger, job("a"))
    claim = take(ledger)
    assert ledger.beat([claim], "spool", 0, 0) == [Beat.OK]
    # When its worker dies, and its next life keeps it
    ledger.worker_died("w1", "b1", "crashed", "")
    assert ledger.claim(["q0"], "w1", "b2", spooled=[claim.token]) == ([], set())
    # Then it is committed with its token, and nobody was charged
    assert ledger.commit([Commit(claim, "out", claim.finishing)])[0] == [True]
    assert (state(ledger, "a"), ledger.job("a").stages[0].crash) == ("done", 0)


def test_a_job_says_that_it_is_finished_and_waits_for_the_store(ledger: Ledger) -> None:
    submit(ledger, job("a"))
    ledger.beat([take(ledger)], "spool", 0, 0)
    assert ledger.job("a").waits_for.startswith("finished")


def test_what_is_not_kept_is_given_back_with_the_next_claim(ledger: Ledger) -> None:
    submit(ledger, job("a", priority=90), job("b", priority=80), job("c"))
    kept, lost = take(ledger), None
    (lost,), _ = ledger.claim(["q0"], "w1", "b1", spooled=[kept.token])
    (again,), _ = ledger.claim(["q0"], "w1", "b1", spooled=[kept.token])
    assert again.exec == lost.exec
    assert ledger.beat([kept, lost], "spool", 0, 0) == [Beat.OK, Beat.STALE]


# ------------------------------------------------------------------------------------------------ schema versions


def test_newer_records_are_left_to_newer_workers(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a job of a newer build, and workers of both
    submit(ledger, job("new", schema=2))
    submit(ledger, job("old"))
    serve(ledger, "old")
    # Then an old worker takes the old one alone, and says that work is left to nobody here
    assert done(ledger, take(ledger, "old")) == set()
    assert ledger.claim(["q0"], "old", "b1") == ([], set())
    assert state(ledger, "new") == "queued"
    assert (
        ledger.job("new").waits_for
        == "no worker of q0 may take it now: they are drained, pause after failures, or are of another build"
    )
    assert ledger.queues()[0].ready == 1
    # When a newer worker comes, it takes it
    monkeypatch.setattr("farm.ledger.KNOWN_SCHEMAS", (1, 2))
    serve(ledger, "new")
    assert ledger.job("new").waits_for == "next in q0"
    done(ledger, take(ledger, "new"))
    assert state(ledger, "new") == "done"


def test_an_old_build_s_reconciler_gives_newer_records_back_as_they_were(
    ledger: Ledger, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(ledger, job("new", schema=2))
    with monkeypatch.context() as newer:
        newer.setattr("farm.ledger.KNOWN_SCHEMAS", (1, 2))
        claim = take(ledger, "new")
    mature(raw, "leases", claim.exec)
    ledger.reap("old")
    assert raw.zcard(P + "ready:v2:q0:interactive") == 1
    assert ledger.claim(["q0"], "old", "b1")[0] == []


def test_a_worker_that_knows_both_takes_them_in_the_order_of_the_line(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(ledger, job("a"), job("b", schema=2), job("c"), job("d", schema=2, priority=90))
    monkeypatch.setattr("farm.ledger.KNOWN_SCHEMAS", (1, 2))
    taken = []
    for _ in range(4):
        claim = take(ledger)
        taken.append(claim.exec)
        done(ledger, claim)
    assert taken == ["d", "a", "b", "c"]


def test_retry_whose_reply_was_lost_is_answered_alike(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(ledger, "a")
    monkeypatch.setattr("farm.ledger.secrets.token_hex", lambda n: "0" * 2 * n)
    ledger.retry("a")
    ledger.retry("a")
    assert [event.type for event in ledger.events("a")].count("retried") == 1


def test_a_newer_output_is_taken_on_by_newer_workers(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a first stage that a newer build's job has made, and an older one's that shares it
    monkeypatch.setattr("farm.ledger.KNOWN_SCHEMAS", (1, 2))
    submit(ledger, job("new", "shared", "n1", schema=2))
    done(ledger, take(ledger, "new"), "newer output")
    submit(ledger, job("old", "shared", "o1"))
    # Then an old worker is not given what it may not understand, and a newer one does both
    with monkeypatch.context() as older:
        older.setattr("farm.ledger.KNOWN_SCHEMAS", (1,))
        assert ledger.claim(["q1"], "old", "b1")[0] == []
    for _ in range(2):
        done(ledger, take(ledger, "new", "q1"))
    assert (state(ledger, "old"), state(ledger, "new")) == ("done", "done")


def test_records_from_before_there_were_versions_are_of_the_first(ledger: Ledger, raw: redis.Redis) -> None:
    submit(ledger, job("a"), job("b", "b0", "b1"))
    for key in (P + "job:b", P + "x:a", P + "x:b0"):
        raw.hdel(key, "schema")
    for queue in ("q0", "q0", "q1"):
        done(ledger, take(ledger, queue=queue))
    assert (state(ledger, "a"), state(ledger, "b")) == ("done", "done")


def test_a_queue_without_a_worker_for_what_is_ready_has_no_live_one(ledger: Ledger) -> None:
    serve(ledger, "old")
    submit(ledger, job("new", schema=2))
    (found,) = ledger.queues()
    assert (found.ready, found.live) == (1, 0)


def test_drop_whose_reply_was_lost_is_answered_alike(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(ledger, "a")
    monkeypatch.setattr("farm.ledger.secrets.token_hex", lambda n: "0" * 2 * n)
    ledger.drop("k")
    ledger.drop("k")


def test_a_group_that_was_retried_in_part_can_be_retried_on(settings: Settings, ledger: Ledger) -> None:
    with Farm(settings) as farm:
        poison(ledger, "a", "b", "c")
        ledger.retry("a")
        assert farm.retry_quarantined(farm.quarantine_of("k")) == ["b", "c"]
        for call in (farm.quarantine_of, farm.retry_quarantined):
            with pytest.raises(NotFound):
                call("k")
