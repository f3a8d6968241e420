"""Are tags put on jobs, found again, counted, and is what has one kept?"""

from __future__ import annotations

import unicodedata
from itertools import chain, product

import pytest
import redis

from farm.errors import InvalidJob, NotFound
from farm.ledger import Ledger
from farm.tags import MOST, check_change, check_tags
from tests.test_ledger import PAST, P, done, job, mature, submit, take, types


def tagged(ledger: Ledger, tag: str, **more: object) -> list[str]:
    """The jobs with the tag, the newest first."""
    return [one.job for one in ledger.jobs(tag=tag, **more)]  # type: ignore[arg-type]


def traces(raw: redis.Redis, name: str = "") -> set[str]:
    """The keys that know of tags, of the job `name` where one is given."""
    keys = {str(key).removeprefix(P) for key in raw.scan_iter(P + "tag*", count=1000)}
    return {key for key in keys if not name or raw.zscore(P + key, name) is not None}


# ------------------------------------------------------------------------------------------------ the words


@pytest.mark.parametrize(
    "tag", ["starred", "A", "x" * 40, "v1.2", "to-do", "a_b", "2026", "Blüte", "夕焼け", "फ़ोटो", "صورة", "²"]
)
def test_letters_and_digits_of_any_script_are_a_tag(tag: str) -> None:
    assert check_tags([tag]) == (unicodedata.normalize("NFC", tag),)


@pytest.mark.parametrize(
    "tag",
    ["", "x" * 41, "two words", "a,b", "a:b", "a\nb", "-a", ".", "_x", "a/b", "<b>", "\u0301a", "a\u200bb", "a\u202eb",
     "a\x00", "\ud800", "★", 7, None, ["a"]],
)  # fmt: skip
def test_anything_else_is_refused_with_its_place(tag: object) -> None:
    with pytest.raises(InvalidJob) as refused:
        check_tags(["fine", tag])
    (error,) = refused.value.errors
    assert error.loc == "tags.1"
    assert "letters, digits" in error.msg


@pytest.mark.parametrize("tags", ["word", 7, None, {"a": 1}, {"a"}])
def test_tags_are_a_list(tags: object) -> None:
    with pytest.raises(InvalidJob) as refused:
        check_tags(tags)
    assert [(one.loc, one.msg) for one in refused.value.errors] == [("tags", "a list of words")]


def test_each_tag_is_there_once_however_it_was_typed() -> None:
    assert check_tags(["Caf\u00e9", "Cafe\u0301", "café", "Caf\u00e9"]) == ("Caf\u00e9", "café")
    assert len(check_tags([f"t{i % MOST}" for i in range(100)])) == MOST
    with pytest.raises(InvalidJob, match="at most 16 tags"):
        check_tags([f"t{i}" for i in range(MOST + 1)])


@pytest.mark.parametrize(
    ("add", "remove", "loc"),
    [([], [], "add"), (["a"], ["b", "a"], "remove"), (["a b"], [], "add.0"), ([], "a", "remove")],
)
def test_a_change_is_one(add: object, remove: object, loc: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        check_change(add, remove)
    assert [one.loc for one in refused.value.errors] == [loc]


# ------------------------------------------------------------------------------------------------ the lists


def test_a_job_is_tagged_at_submit_and_later(ledger: Ledger) -> None:
    # Given one with tags, and one without
    submit(ledger, job("a", tags=("sky", "Best")), job("b"))
    assert [ledger.job(name).tags for name in "ab"] == [("sky", "Best"), ()]
    # When some are put on and others taken off, each twice
    for _ in range(2):
        ledger.tag("a", add=["new", "Best"], remove=["sky", "never"])
    # Then it has these, and the event is told once
    assert ledger.job("a").tags == ("Best", "new")
    assert types(ledger, "a").count("tagged") == 1
    assert [event.type for event in ledger.events(None)].count("tagged") == 1
    assert ledger.jobs()[1].tags == ("Best", "new")
    # And nothing else of it has changed
    assert (ledger.job("a").state, ledger.job("a").spec) == ("queued", "spec of a")


def test_a_job_that_is_submitted_again_keeps_the_tags_that_it_has(ledger: Ledger) -> None:
    submit(ledger, job("a", tags=("x",)))
    ledger.tag("a", ["y"], ["x"])
    # When the reply was lost, and it is sent once more
    (found,) = submit(ledger, job("a", tags=("x",)))
    # Then
    assert found.existed
    assert (ledger.job("a").tags, ledger.tags()) == (("y",), {"y": 1})


def test_a_job_has_so_many_tags_and_stays_as_it_is_where_it_would_have_more(ledger: Ledger) -> None:
    # Given one that has as many as it may
    full = tuple(f"t{i}" for i in range(MOST))
    submit(ledger, job("a", tags=full), job("b"))
    # When, Then
    with pytest.raises(InvalidJob, match="more than 16 tags") as refused:
        ledger.tag("a", ["one-more"])
    assert [one.loc for one in refused.value.errors] == ["add"]
    assert ledger.tag_all(["a", "b", "never"], ["one-more"]) == 1
    assert (ledger.job("a").tags, ledger.job("b").tags) == (full, ("one-more",))
    # When one is taken off for it
    ledger.tag("a", ["one-more"], ["t0"])
    assert ledger.job("a").tags == (*full[1:], "one-more")
    with pytest.raises(NotFound):
        ledger.tag("never", ["x"])


def test_a_tags_jobs_are_listed_by_state_owner_and_run(ledger: Ledger) -> None:
    # Given jobs of two owners, in and out of runs, in two states
    submit(ledger, job("a", owner="ada", run="r", tags=("x",)), job("b", owner="ada", run="r", tags=("x", "y")))
    submit(ledger, job("c", owner="ada", tags=("x",)), job("d", owner="ada"), job("f", tags=("x",)))
    submit(ledger, job("e", owner="bob", tags=("x",)))
    for name in "ac":
        ledger.cancel(name)
    # When, Then
    assert tagged(ledger, "x") == ["e", "f", "c", "b", "a"]
    assert tagged(ledger, "y") == ["b"]
    assert tagged(ledger, "X") == []
    assert tagged(ledger, "x", owner="ada") == ["c", "b", "a"]
    assert tagged(ledger, "x", run="r") == ["b", "a"]
    assert tagged(ledger, "x", state="cancelled") == ["c", "a"]
    assert tagged(ledger, "x", state="queued", owner="ada") == ["b"]
    assert tagged(ledger, "x", state="cancelled", run="r", owner="ada") == ["a"]
    # And nobody sees what is another's
    assert tagged(ledger, "x", run="r", owner="bob") == []
    # And each owner's are counted, the tag of the most jobs first
    assert list(ledger.tags().items()) == [("x", 5), ("y", 1)]
    assert (ledger.tags("ada"), ledger.tags("bob"), ledger.tags("eve")) == ({"x": 3, "y": 1}, {"x": 1}, {})


def test_pages_of_a_tag_hold_each_job_once_and_only_its_jobs_are_looked_at(ledger: Ledger, raw: redis.Redis) -> None:
    # Given more jobs with the tag than one call looks through, of which few are in the state, among others
    names = [f"j{i}" for i in range(1200)]
    ledger.submit([job(name, "same", tags=("x",)) for name in names])
    submit(ledger, *(job(f"o{i}", "same") for i in range(300)))
    few = [*names[0:400:150], names[900]]
    for name in few:
        ledger.pause(name)
    # When they are paged through
    for state, whole in product((None, "paused"), (False, True)):
        wanted, limit = list(reversed(names if state is None else few)), 250 if state is None else 3
        pages: list[list[str]] = []
        before = None
        while page := ledger.jobs(state=state, tag="x", limit=limit, before_ms=before, whole=whole):
            pages.append([one.job for one in page])
            before = page[-1].created_ms
        # Then none is short but the last
        assert list(chain(*pages)) == wanted
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    # And a page asks for no more than it shows, whatever else there is
    raw.config_resetstat()
    assert len(ledger.jobs(tag="x", limit=10)) == 10
    assert sum(row["calls"] for row in raw.info("commandstats").values()) < 60


# ------------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("how", ["delete", "forget", "retention", "untagged"])
def test_what_is_gone_leaves_no_list_behind(ledger: Ledger, raw: redis.Redis, how: str) -> None:
    # Given two of one tag, of which the first is alone with another
    submit(ledger, job("a", owner="ada", run="r", tags=("x", "y")), job("b", owner="ada", run="r", tags=("x",)))
    ledger.cancel("a")
    assert traces(raw, "a") == {"tag:x", "tag:x:owner:ada", "tag:x:run:r", "tag:y", "tag:y:owner:ada", "tag:y:run:r"}
    # When
    if how == "delete":
        ledger.delete("a")
    elif how == "forget":
        assert ledger.forget(["a"]) == []
    else:
        ledger.tag("a", remove=["x", "y"])
    assert raw.zscore(P + "kept", "a") is None
    if how == "retention":
        mature(raw, "ended", "a")
        ledger.reap("me")
        assert [one.job for one in ledger.jobs()] == ["b"]
    # Then
    assert traces(raw, "a") == set()
    assert ledger.tags() == ledger.tags("ada") == {"x": 1}
    assert tagged(ledger, "x") == ["b"]
    # And with the last of them nothing of tags is left
    ledger.tag("b", remove=["x"])
    assert traces(raw) == set()
    assert not raw.hexists(P + "job:b", "tags")


def test_a_tagged_job_outlives_its_retention(ledger: Ledger, raw: redis.Redis) -> None:
    # Given a done job with a tag, and one without, both past their retention; an earlier build's worker has ended them
    submit(ledger, job("a", tags=("starred",)), job("b", "a"))
    done(ledger, take(ledger))
    assert [ledger.job(name).state for name in "ab"] == ["done", "done"]
    raw.hset(P + "job:a", "ended_ms", PAST)
    raw.zrem(P + "kept", "a")
    raw.zadd(P + "ended", dict.fromkeys("ab", PAST))
    # When
    ledger.reap("me")
    ledger.reap("me")
    # Then the tagged one is still there, whole, and nothing waits for its turn
    assert [one.job for one in ledger.jobs()] == tagged(ledger, "starred", state="done") == ["a"]
    assert ledger.job("a").stages[-1].output == "out"
    assert raw.zcard(P + "ended") == 0
    assert raw.zscore(P + "kept", "a") == PAST
    # And once its last tag is taken off it has its whole retention before it
    ledger.tag("a", remove=["starred"])
    ledger.reap("me")
    assert ledger.job("a").tags == ()
    mature(raw, "ended", "a")
    ledger.reap("me")
    assert ledger.jobs() == []


def test_an_open_job_without_its_last_tag_has_not_ended(ledger: Ledger, raw: redis.Redis) -> None:
    submit(ledger, job("a", tags=("x", "y")))
    ledger.tag("a", remove=["x", "y"])
    assert raw.zcard(P + "ended") == raw.zcard(P + "kept") == 0
    # And one that ended and keeps another tag is not counted anew
    submit(ledger, job("b", tags=("x", "y")))
    ledger.cancel("b")
    before = ledger.job("b").ended_ms
    ledger.tag("b", remove=["x"])
    assert (raw.zscore(P + "kept", "b"), raw.zcard(P + "ended")) == (before, 0)


def test_no_reaper_of_any_build_finds_a_tagged_job(ledger: Ledger, raw: redis.Redis) -> None:
    # Given jobs that were tagged before and after their end, and one that was not: reapers look into `ended` alone
    submit(ledger, job("a", tags=("x",)), job("b"), job("c"))
    for name in "abc":
        ledger.cancel(name)
    ledger.tag("b", ["x"])
    # Then
    assert raw.zrange(P + "ended", 0, -1) == ["c"]
    assert raw.zscore(P + "kept", "b") == ledger.job("b").ended_ms
    # And who was away learns of all that have ended, the earliest first, or of the newest
    raw.zadd(P + "kept", {"a": 10, "b": 30})
    raw.zadd(P + "ended", {"c": 20})
    assert [ledger.ended(0), ledger.ended(11), ledger.ended(0, 2)] == [["a", "c", "b"], ["c", "b"], ["c", "b"]]
    # And one that is open again has not ended
    ledger.retry("a")
    assert ledger.ended(0) == ["c", "b"]


def test_very_many_tagged_jobs_past_their_retention_keep_nobody_waiting(ledger: Ledger, raw: redis.Redis) -> None:
    # Given more tagged ones, longer past it, than one round looks at
    submit(ledger, *(job(f"k{i}", tags=("x",)) for i in range(250)), job("last"))
    for i in range(250):
        ledger.cancel(f"k{i}")
        raw.zadd(P + "ended", {f"k{i}": PAST})
    ledger.cancel("last")
    raw.zadd(P + "ended", {"last": 7})
    # When
    ledger.reap("me")
    ledger.reap("me")
    # Then
    assert ledger.gone(["last", "k0"]) == ["last"]
    assert len(tagged(ledger, "x", limit=1000)) == 250
