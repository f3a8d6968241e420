"""Are jobs listed, limited, forgotten and steered by owner and run, and never by passing over others'?"""

from __future__ import annotations

import threading

import pytest
import redis

from farm.errors import Conflict, Failure, NotFound, QuotaExceeded, Unavailable
from farm.ledger import Ledger
from farm.records import OPEN, Submission
from farm.settings import Settings
from tests.test_ledger import P, done, job, state, submit, take, types


def many(count: int, prefix: str = "j", **more: object) -> list[Submission]:
    return [job(f"{prefix}{i}", **more) for i in range(count)]


def asked(raw: redis.Redis) -> int:
    """How many commands the server has carried out so far, those within scripts among them."""
    return sum(row["calls"] for row in raw.info("commandstats").values())


# ------------------------------------------------------------------------------------------------ lists


def open_of(ledger: Ledger, owner: str) -> int:
    """How many jobs of the owner have not ended."""
    return sum(len(ledger.jobs(state=state, owner=owner, limit=1000)) for state in OPEN)


def test_pages_of_an_owner_show_each_job_once(ledger: Ledger) -> None:
    # Given jobs of two owners, written within the same milliseconds
    mine = many(450, "a", owner="ada")
    others = many(450, "b", owner="bob")
    submit(ledger, *(one for pair in zip(mine, others, strict=True) for one in pair))
    for i in range(0, 450, 3):
        ledger.cancel(f"a{i}")
    for chosen, expected in (
        (None, [one.job for one in reversed(mine)]),
        ("cancelled", [f"a{i}" for i in reversed(range(0, 450, 3))]),
        ("queued", [f"a{i}" for i in reversed(range(450)) if i % 3]),
        ("done", []),
    ):
        # When they are read page by page
        seen: list[str] = []
        before = None
        while page := ledger.jobs(state=chosen, owner="ada", limit=7, before_ms=before):
            seen += [one.job for one in page]
            before = page[-1].created_ms
        # Then
        assert seen == expected


def test_a_list_looks_at_no_more_than_it_shows(ledger: Ledger, raw: redis.Redis) -> None:
    # Given one job of ada's, behind very many of others
    submit(ledger, job("a", owner="ada", run="r"))
    submit(ledger, *many(1500, owner="bob", run="s"))
    ledger.jobs(owner="ada")
    for how in ({"owner": "ada"}, {"owner": "ada", "state": "queued"}, {"run": "r", "state": "queued"}):
        before = asked(raw)
        # When
        assert [one.job for one in ledger.jobs(**how)] == ["a"]  # type: ignore[arg-type]
        # Then
        assert asked(raw) - before < 15


def test_a_job_that_turns_meanwhile_is_in_one_list(ledger: Ledger) -> None:
    # Given
    submit(ledger, *many(3, owner="ada", run="r"))
    claim = take(ledger)
    ledger.pause("j1")
    # When / Then
    for name, how in (("j0", "running"), ("j1", "paused"), ("j2", "queued")):
        assert [one.job for one in ledger.jobs(state=how, owner="ada")] == [name]
        assert [one.job for one in ledger.jobs(state=how, run="r")] == [name]
    done(ledger, claim)
    assert open_of(ledger, "ada") == 2
    assert [one.job for one in ledger.jobs(state="done", owner="ada", run="r", whole=True)] == ["j0"]
    assert ledger.jobs(owner="bob", run="r") == ledger.jobs(owner="bob") == []


def test_a_run_is_one_owners(ledger: Ledger) -> None:
    # Given
    submit(ledger, job("a", owner="ada", run="r"))
    # When
    for one in (job("b", owner="bob", run="r"), job("b", run="r")):
        with pytest.raises(Conflict):
            ledger.submit([job("c"), one])
    with pytest.raises(Conflict):
        ledger.submit([job("c", owner="ada", run="new"), job("d", owner="bob", run="new")])
    # Then nothing was written
    assert [one.job for one in ledger.jobs()] == ["a"]
    assert [one.run for one in ledger.runs()] == ["r"]


# ------------------------------------------------------------------------------------------------ limits


def test_no_owner_has_more_than_its_quota(ledger: Ledger) -> None:
    # Given
    ledger.submit(many(3, owner="ada"), max_open=4)
    # When one more and two more are asked for
    with pytest.raises(QuotaExceeded) as refused:
        ledger.submit(many(2, "k", owner="ada"), max_open=4)
    ledger.submit([job("k0", owner="ada")], max_open=4)
    # Then
    assert (refused.value.code, refused.value.http) == ("quota_exceeded", 429)
    assert "3 of at most 4 jobs are open, and 2 more" in refused.value.message
    assert open_of(ledger, "ada") == 4
    assert len(ledger.jobs()) == 4
    # And others, and those without a limit, have theirs
    ledger.submit(many(4, "b", owner="bob"), max_open=4)
    ledger.submit(many(9, "c", owner="ada"))
    # And what has ended makes room
    for one in ledger.jobs(owner="bob"):
        ledger.cancel(one.job)
    ledger.submit(many(4, "d", owner="bob"), max_open=4)


def test_a_datasets_jobs_take_no_room_of_their_owner(ledger: Ledger, raw: redis.Redis) -> None:
    # Given more jobs of a dataset than their owner may have open, of which one runs, one is paused and one has ended
    ledger.submit(many(6, "d", owner="ada", collected=True, run="shard"), max_open=0)
    take(ledger)
    ledger.pause("d4")
    ledger.cancel("d5")
    assert len(raw.keys(P + "collected:ada:*")) == 3
    # When, Then the owner may submit all the same, as much as ever
    ledger.submit(many(4, "k", owner="ada"), max_open=4)
    with pytest.raises(QuotaExceeded, match="4 of at most 4"):
        ledger.submit([job("k4", owner="ada")], max_open=4)
    # And so when one is tried again
    ledger.cancel("k0")
    ledger.retry("k0", 4)
    ledger.cancel("k1")
    ledger.submit([job("k4", owner="ada")], max_open=4)
    with pytest.raises(QuotaExceeded):
        ledger.retry("k1", 4)
    # And once they have ended, nothing tells that they were
    ledger.resume("d4")
    ledger.cancel_run("shard")
    ledger.forget([f"d{number}" for number in range(6)])
    assert raw.keys(P + "collected:*") == []
    with pytest.raises(QuotaExceeded, match="4 of at most 4"):
        ledger.submit([job("k5", owner="ada")], max_open=4)


@pytest.mark.parametrize("how", ["forgotten", "turned"])
def test_what_an_earlier_build_did_with_a_datasets_job_is_not_counted(
    ledger: Ledger, raw: redis.Redis, how: str
) -> None:
    # Given a dataset's job of this build that an earlier one has turned: it knows the owner's lists alone
    ledger.submit([job("d", "x", owner="ada", collected=True), *many(2, "k", owner="ada")])
    old, new = "queued", "done" if how == "forgotten" else "running"
    for name in ("jobs:{}", "owner:ada:{}"):
        assert raw.zrem(P + name.format(old), "d") == 1
        raw.zadd(P + name.format(new), {"d": 1})
    raw.hset(P + "job:d", "state", new)
    assert raw.zcard(P + "collected:ada:queued") == 1
    # When this build forgets it, or turns it again
    if how == "forgotten":
        assert ledger.forget(["d"]) == []
    else:
        ledger.pause("d")
    # Then its owner has as many open as there are
    assert raw.zcard(P + "collected:ada:queued") == 0
    assert len(raw.keys(P + "collected:ada:*")) == (how == "turned")
    with pytest.raises(QuotaExceeded, match="2 of at most 2"):
        ledger.submit([job("more", owner="ada")], max_open=2)


def test_no_owner_has_fewer_than_no_jobs_open(ledger: Ledger, raw: redis.Redis) -> None:
    # Given jobs of a dataset that an earlier build has forgotten
    raw.zadd(P + "collected:ada:queued", {"gone": 1, "gone too": 2})
    # When, Then
    with pytest.raises(QuotaExceeded, match="0 of at most 1"):
        ledger.submit(many(2, owner="ada"), max_open=1)


def test_a_repeated_call_is_answered_whatever_the_quota(ledger: Ledger) -> None:
    # Given a run of which two scripts were written, when the connection broke
    run = many(600, owner="ada", run="r")
    ledger.submit(run[:200], max_open=600, beyond=400)
    ledger.submit(run[200:400], max_open=600, beyond=200)
    # When it is sent again as a whole, twice
    for _ in range(2):
        found, _ = ledger.submit(run, max_open=600)
        # Then
        assert [one.job for one in found] == [one.job for one in run]
    assert open_of(ledger, "ada") == 600


def test_a_run_of_many_scripts_is_admitted_as_a_whole(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a quota that the first scripts of a run would keep to
    with pytest.raises(QuotaExceeded):
        ledger.submit(many(450, owner="ada", run="r"), max_open=449)
    assert ledger.jobs() == []
    # When two runs are sent by turns, of which only one has room
    ledger.submit(many(200, "a", owner="ada", run="r"), max_open=450, beyond=200)
    with pytest.raises(QuotaExceeded):
        ledger.submit(many(51, "b", owner="ada", run="s"), max_open=450)
    ledger.submit(many(50, "c", owner="ada", run="s"), max_open=450)
    # Then the first goes on
    ledger.submit(many(200, "d", owner="ada", run="r"), max_open=450)
    assert open_of(ledger, "ada") == 450
    assert raw.hgetall(P + "booked:ada") == {}


def test_room_that_nobody_takes_is_given_back(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a run that breaks off after its first script
    ledger.submit([job("a", owner="ada", run="r")], max_open=10, beyond=9)
    with pytest.raises(QuotaExceeded):
        ledger.submit([job("b", owner="ada")], max_open=10)
    assert 0 < raw.pttl(P + "booked:ada") <= 60_000
    # When its time is over
    raw.hset(P + "booked:ada", "r", "9 1")
    # Then
    ledger.submit([job("b", owner="ada")], max_open=10)
    assert raw.hgetall(P + "booked:ada") == {}


def test_ten_at_once_keep_to_the_quota(ledger: Ledger) -> None:
    # Given
    begin, refused = threading.Barrier(10), list[QuotaExceeded]()

    def send(name: str) -> None:
        begin.wait(10)
        try:
            ledger.submit(many(3, name, owner="ada", run=name), max_open=20)
        except QuotaExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=send, args=(name,)) for name in "abcdefghij"]
    # When
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then six have room for three each
    assert (len(refused), open_of(ledger, "ada")) == (4, 18)


def test_a_full_farm_takes_no_more(settings: Settings, raw: redis.Redis) -> None:
    # Given a farm that takes five unended jobs
    small = Ledger(settings.model_copy(update={"max_pending": 5}))
    first = many(4, owner="ada")
    submit(small, *first)
    before = sorted(raw.scan_iter())
    # When
    with pytest.raises(Unavailable) as full:
        small.submit(many(2, "b", owner="bob"))
    # Then nothing is written, and it is worth another try
    assert (full.value.code, full.value.http) == ("farm_full", 503)
    assert full.value.retry_after_s > 0
    assert sorted(raw.scan_iter()) == before
    # And a repeated call is answered
    assert [one.existed for one in submit(small, *first, job("c"))] == [True] * 4 + [False]
    assert [one.existed for one in submit(small, *first)] == [True] * 4
    small.close()


# ------------------------------------------------------------------------------------------------ delete


def test_a_deleted_job_leaves_nothing_but_what_it_made(ledger: Ledger, raw: redis.Redis) -> None:
    # Given two jobs of one recipe, done, the second with a publication of its own
    submit(ledger, job("one", "k", owner="ada", run="r"))
    done(ledger, take(ledger))
    submit(ledger, job("two", "k", owner="ada", run="r"))
    done(ledger, take(ledger))
    last = ledger.events(None)[-1].id
    # When
    ledger.delete("two")
    # Then
    assert [key for key in raw.scan_iter() if "two" in key] == []
    assert raw.zrange(P + "owner:ada", 0, -1) == raw.zrange(P + "run:r", 0, -1) == ["one"]
    assert [one.job for one in ledger.jobs(owner="ada")] == [one.job for one in ledger.jobs(run="r")] == ["one"]
    assert ledger.run("r").states == {"done": 1}
    with pytest.raises(NotFound):
        ledger.job("two")
    with pytest.raises(NotFound):
        ledger.delete("two")
    # And the farm's stream tells of it
    (told,) = ledger.events(None, last)
    assert (told.type, told.job, told.owner, told.run, told.state) == ("deleted", "two", "ada", "r", "done")
    # And the recipe stays: a new job under the same key finds its output
    assert submit(ledger, job("new", "k", idem="key of two", body_hash="other")) != []
    assert types(ledger, "new") == ["submitted", "reused"]


@pytest.mark.parametrize("how", ["queued", "running", "paused"])
def test_only_an_ended_job_is_deleted(ledger: Ledger, how: str) -> None:
    # Given
    submit(ledger, job("a"))
    if how == "running":
        take(ledger)
    if how == "paused":
        ledger.pause("a")
    # When
    with pytest.raises(Conflict) as refused:
        ledger.delete("a")
    # Then
    assert (refused.value.code, state(ledger, "a")) == ("conflict", how)


def test_a_deleted_job_is_no_quarantines_any_more(ledger: Ledger) -> None:
    # Given two jobs that a quarantine ended
    submit(ledger, job("a", "k"), job("b", "k"))
    for worker in ("w1", "w2", "w3"):
        ledger.fail([take(ledger, worker)], Failure.CRASH, "internal", "")
    # When
    ledger.delete("a")
    # Then
    assert ledger.quarantined_jobs("k") == ["b"]
    ledger.retry("b")
    assert take(ledger).waiters == ("b",)


def test_a_job_that_is_deleted_while_its_publication_runs_takes_nothing_down(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a publication that runs for a job which is cancelled
    submit(ledger, job("a", "k"))
    done(ledger, take(ledger))
    submit(ledger, job("b", "k"))
    claim = take(ledger)
    assert claim.publish
    ledger.cancel("b")
    # When
    ledger.delete("b")
    # Then whoever runs it ends it as ever
    raw.zadd(P + "leases", {claim.exec: 1}, xx=True)
    ledger.reap("me")
    assert ledger.queues()[0].running == 0
    assert raw.ttl(P + "x:p:b") > 0


# ------------------------------------------------------------------------------------------------ runs


def test_a_run_is_told_by_its_states(ledger: Ledger) -> None:
    # Given
    submit(ledger, *many(5, owner="ada", run="r"))
    submit(ledger, job("other", owner="bob", run="s"))
    done(ledger, take(ledger))
    take(ledger)
    ledger.cancel("j4")
    # When
    found = ledger.run("r")
    # Then
    assert (found.run, found.owner, found.count) == ("r", "ada", 5)
    assert found.states == {"queued": 2, "running": 1, "done": 1, "cancelled": 1}
    assert found.created_ms == ledger.job("j0").created_ms
    assert ledger.run_jobs("r") == [f"j{i}" for i in range(5)]
    # And runs are listed, the newest first, page by page
    assert [one.run for one in ledger.runs()] == ["s", "r"]
    assert ledger.runs(owner="ada") == [found]
    (first,) = ledger.runs(limit=1)
    assert [one.run for one in ledger.runs(before_ms=first.created_ms)] == ["r"]
    for call in (ledger.run, ledger.cancel_run):
        with pytest.raises(NotFound):
            call("nobody's")


def test_a_run_costs_the_same_to_tell_however_many_jobs_it_has(ledger: Ledger, raw: redis.Redis) -> None:
    # Given
    submit(ledger, *many(1, "a", run="small"), *many(1500, "b", run="large"))
    ledger.run("small")
    costs = []
    for run in ("small", "large"):
        before = asked(raw)
        # When
        ledger.run(run)
        costs.append(asked(raw) - before)
    # Then
    assert costs[0] == costs[1] < 30


def test_a_run_is_cancelled_in_several_scripts(ledger: Ledger, raw: redis.Redis) -> None:
    # Given more jobs than one script steers, in every state
    submit(ledger, *many(450, run="r", owner="ada"))
    submit(ledger, job("other"))
    claims = [take(ledger, f"w{i}") for i in range(2)]
    done(ledger, claims[0])
    ledger.pause("j7")
    # When
    count = ledger.cancel_run("r")
    # Then all of it ends but what has ended, and nothing else
    assert count == 449
    assert ledger.run("r").states == {"done": 1, "cancelled": 449}
    assert state(ledger, "other") == "queued"
    assert types(ledger, "j7")[-1] == "cancelled"
    assert raw.zcard(P + "ready:v1:q0:interactive") == 1
    assert ledger.cancel_run("r") == 0


def test_a_run_is_paused_resumed_and_retried(ledger: Ledger) -> None:
    # Given
    submit(ledger, *many(5, run="r"))
    done(ledger, take(ledger))
    ledger.fail([take(ledger)], Failure.DETERMINISTIC, "nan_output", "")
    # When / Then
    assert ledger.steer_run("r", "pause") == (3, set())
    assert ledger.run("r").states == {"paused": 3, "done": 1, "failed": 1}
    assert ledger.claim(["q0"], "w", "b")[0] == []
    assert ledger.steer_run("r", "resume") == (3, {"q0"})
    assert ledger.run("r").states == {"queued": 3, "done": 1, "failed": 1}
    ledger.cancel("j4")
    assert ledger.steer_run("r", "retry") == (2, {"q0"})
    assert ledger.run("r").states == {"queued": 4, "done": 1}


def test_a_retry_of_a_run_retries_each_job_once(ledger: Ledger) -> None:
    # Given two jobs of which the second fails again at once, for its second stage is in quarantine
    submit(ledger, job("a", "k0", "poison"))
    done(ledger, take(ledger))
    for worker in ("w1", "w2", "w3"):
        ledger.fail([take(ledger, worker, "q1")], Failure.CRASH, "internal", "")
    submit(ledger, job("b", "k0", "poison", run="r"), job("c", run="r"))
    assert state(ledger, "b") == "quarantined"
    # When
    count, _ = ledger.steer_run("r", "retry")
    # Then
    assert (count, types(ledger, "b").count("retried")) == (1, 1)
