"""Does whoever listens see the true state: from the start, late, again, slowly?"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from farm.api import hub
from farm.api.feed import Feed, Told
from tests.api.conftest import Site, made, problem, serving, txt
from tests.api.listener import Listener
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"
QUEUE = "text2img.tiny"


def submit(client: httpx2.Client, **given: object) -> str:
    """The id of a new job."""
    return str(made(client.post(JOBS, json=txt(**given)))["jobs"][0]["id"])


def test_a_job_is_followed_from_its_start_to_its_end(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a listener
    job = submit(ada)
    with Listener(ada, f"{JOBS}/{job}/events") as ear:
        ear.hears(job, "queued")
        # When the job runs, step by step
        claim = hand.claim(QUEUE)
        ear.hears(job, "running")
        for step in (1, 2, 3):
            site.farm.ledger.beat([claim], "step", step, 4)
            until(lambda step=step: ear.heard[-1].data["step"] == step, 30, f"step {step}")
        hand.serve(claim)
        assert ear.over.wait(30)
    # Then each event is a whole snapshot, the progress rises to 1, and the last one says that it is the last
    assert ear.states(job) == ["queued", "running", "done"]
    shares = [one.data["progress"] for one in ear.heard]
    assert shares == sorted(shares)
    assert {0.0, 0.25, 0.5, 0.75, 1.0} <= set(shares)
    assert all(one.data["run"] is None and one.data["stage_count"] == 1 for one in ear.heard)
    assert ear.heard[-1].event == "end"
    assert ear.heard[-1].data["state"] == "done"
    # And whoever comes back after it is told not to
    again = ada.get(f"{JOBS}/{job}/events", headers={"Last-Event-ID": ear.heard[-1].id})
    assert (again.status_code, again.content) == (204, b"")


def test_progress_goes_over_the_whole_chain(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a chain of two stages, the first of them done
    job = submit(ada, chain="x2")
    hand.serve(hand.claim(QUEUE))
    claim = hand.claim("upscale_latent.tiny-x2")
    site.farm.ledger.beat([claim], "step", 1, 2)
    # When, Then
    with Listener(ada, f"{JOBS}/{job}/events") as ear:
        ear.hears(job, "running")
        until(lambda: ear.heard[-1].data["progress"] == 0.75, 30)
        last = ear.heard[-1].data
        assert (last["stage"], last["kind"], last["phase"], last["step"]) == (1, "upscale_latent", "step", 1)


def test_a_late_listener_sees_where_the_job_is(hand: Hand, ada: httpx2.Client) -> None:
    # Given a job that has ended
    job = submit(ada)
    hand.serve(hand.claim(QUEUE))
    # When, Then
    with Listener(ada, f"{JOBS}/{job}/events") as ear:
        assert ear.over.wait(30)
    assert [(one.event, one.data["state"]) for one in ear.heard] == [("job", "done"), ("end", "done")]


def test_a_retried_job_is_followed_again(ada: httpx2.Client, hand: Hand) -> None:
    # Given a stream that has ended
    job = submit(ada)
    ada.post(f"{JOBS}/{job}/cancel")
    with Listener(ada, f"{JOBS}/{job}/events") as ear:
        assert ear.over.wait(30)
    # When
    ada.post(f"{JOBS}/{job}/retry")
    # Then
    with Listener(ada, f"{JOBS}/{job}/events", ear.heard[-1].id) as again:
        again.hears(job, "queued")


def test_a_run_is_followed_as_a_whole(hand: Hand, ada: httpx2.Client) -> None:
    # Given a run, and another job
    found = made(ada.post(JOBS, json=txt(count=4)))
    other = submit(ada)
    with Listener(ada, f"/api/v1/runs/{found['run']}/events") as ear:
        # When
        ids = [job["id"] for job in found["jobs"]]
        for _ in range(5):
            hand.serve(hand.claim(QUEUE))
        # Then
        for job in ids:
            ear.hears(job, "done")
    assert ear.states(other) == []


def test_the_farms_stream_tells_the_callers_own_jobs_in_order_and_whole(
    site: Site, hand: Hand, ada: httpx2.Client
) -> None:
    # Given a listener, and jobs of two owners
    with site.client() as bob, Listener(ada, "/api/v1/events") as ear:
        theirs = submit(bob)
        mine = [job["id"] for job in made(ada.post(JOBS, json=txt(count=40)))["jobs"]]
        # When some are cancelled, some paused and resumed, and all others served
        for job in mine[:10]:
            ada.post(f"{JOBS}/{job}/cancel")
        for job in mine[10:15]:
            ada.post(f"{JOBS}/{job}/pause")
            ada.post(f"{JOBS}/{job}/resume")
        for _ in range(31):
            hand.serve(hand.claim(QUEUE))
        # Then each is seen in its last state
        for job in mine:
            ear.hears(job, "cancelled" if job in mine[:10] else "done")
    # And never in another order than the ledger's
    for job in mine:
        rest = iter(event.state for event in site.farm.ledger.events(job))
        assert all(state in rest for state in ear.states(job)), (job, ear.states(job))
    assert ear.states(theirs) == []
    # An admin's has everybody's
    with site.client("root", "admin") as root, Listener(root, "/api/v1/events", ear.heard[0].id) as all_of_it:
        all_of_it.hears(theirs, "done")


def test_who_comes_back_is_told_what_changed_meanwhile(hand: Hand, ada: httpx2.Client) -> None:
    # Given a listener that leaves
    same, changed = submit(ada), submit(ada)
    with Listener(ada, "/api/v1/events") as ear:
        ear.hears(same, "queued")
        ear.hears(changed, "queued")
    last = [one.id for one in ear.heard if one.id][-1]
    # When something happens meanwhile
    ada.post(f"{JOBS}/{changed}/pause")
    ada.post(f"{JOBS}/{changed}/cancel")
    fresh = submit(ada)
    # Then it hears the newest of it, and not what it knows
    with Listener(ada, "/api/v1/events", last) as again:
        again.hears(changed, "cancelled")
        again.hears(fresh, "queued")
        assert again.states(changed) == ["cancelled"]
        assert again.states(same) == []


def test_who_comes_back_to_a_new_process_sees_steps_go_on(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a job that runs, and a listener that was told so
    job = submit(ada)
    claim = hand.claim(QUEUE)
    with Listener(ada, "/api/v1/events") as ear:
        ear.hears(job, "running")
        until(lambda: any(one.id for one in ear.heard), 30)
    last = [one.id for one in ear.heard if one.id][-1]
    # When it comes back to another process of the API, to which no event has told of the job
    with (
        serving(site.settings, heartbeat_s=0.5) as url,
        httpx2.Client(base_url=url, headers=ada.headers, timeout=30, trust_env=False) as client,
        Listener(client, "/api/v1/events", last) as again,
    ):
        # Then it hears of each step all the same
        for step in (1, 2):
            site.farm.ledger.beat([claim], "step", step, 4)
            until(lambda step=step: again.heard and again.heard[-1].data["step"] == step, 30, f"step {step}")
    hand.serve(claim)


@pytest.mark.parametrize("last", ["x", "1-0", "0-0", "99999999999999999999-0", "1.end", "-1"])
def test_an_id_that_the_stream_has_not_is_no_error(ada: httpx2.Client, hand: Hand, last: str) -> None:
    # Given a job that waits
    job = submit(ada)
    # When somebody comes with an id from elsewhere
    with Listener(ada, f"{JOBS}/{job}/events", last) as ear:
        # Then
        ear.hears(job, "queued")
    with Listener(ada, "/api/v1/events", last) as ear:
        assert ear.status == 200


def test_a_quiet_stream_shows_that_it_lives_and_ends_with_its_token(site: Site, hand: Hand) -> None:
    # Given
    text = site.token("cid")
    with site.anonymous(Authorization=f"Bearer {text}") as cid:
        job = submit(cid)
        with Listener(cid, f"{JOBS}/{job}/events") as ear:
            until(lambda: ear.comments >= 2, 30, "two heartbeats")
            # When
            site.tokens.remove(text.split("_")[1])
            # Then
            assert ear.over.wait(30)
        problem(cid.get(f"{JOBS}/{job}"), 401, "unauthorized")


def test_who_waits_sees_the_line_move(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a job that is the third in the line, and listeners of it, of its run and of everything
    site.farm.ledger.register("w-line", "boot", [QUEUE], "idle", {})
    found = made(ada.post(JOBS, json=txt(count=3)))
    first, second, third = (job["id"] for job in found["jobs"])
    paths = (f"{JOBS}/{third}/events", f"/api/v1/runs/{found['run']}/events", "/api/v1/events")

    def told(ear: Listener) -> list[tuple[Any, Any]]:
        """What an ear has heard of the third job: its place, and what it waits for."""
        seen = [(one.data["position"], one.data["waits_for"]) for one in ear.heard if one.data["id"] == third]
        return list(dict.fromkeys(seen))

    with ExitStack() as listening:
        ears = [listening.enter_context(Listener(ada, path)) for path in paths]
        expected: list[tuple[int, str]] = [(2, f"2 ahead in {QUEUE}")]
        # When nothing happens to it, but to those before it
        for gone, place in ((None, None), (first, (1, f"1 ahead in {QUEUE}")), (second, (0, f"next in {QUEUE}"))):
            if gone and place:
                site.farm.ledger.cancel(gone)
                expected.append(place)
            # Then all of them hear that it is further on
            for ear in ears:
                until(lambda ear=ear: told(ear) == expected, 30, f"{expected}; heard {told(ear)}")
    site.farm.ledger.unregister("w-line", "boot")


def test_a_long_beginning_comes_in_parts(hand: Hand, ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a run that is more than is read in one go
    monkeypatch.setattr(hub, "CHUNK", 3)
    found = made(ada.post(JOBS, json=txt(count=10)))
    ids = [job["id"] for job in found["jobs"]]
    # When somebody comes
    with Listener(ada, f"/api/v1/runs/{found['run']}/events") as ear:
        until(lambda: len(ear.heard) >= 10, 30, "the whole run")
        # Then each job is told, and the last one has an id: who breaks off before has not caught up
        assert [one.data["id"] for one in ear.heard[:10]] == ids
        assert [bool(one.id) for one in ear.heard[:10]] == [False] * 9 + [True]
        # And what happens is told as ever, and once
        ada.post(f"{JOBS}/{ids[0]}/cancel")
        ear.hears(ids[0], "cancelled")
        assert ear.states(ids[0]) == ["queued", "cancelled"]


def test_one_owner_has_so_many_streams_and_all_together(
    site: Site, hand: Hand, ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(ada)
    with site.client() as bob:
        # Given an owner with as many as one may have
        monkeypatch.setattr(hub, "MAX_FEEDS_EACH", 1)
        with Listener(ada, f"{JOBS}/{job}/events"):
            # When, Then
            answer = ada.get("/api/v1/events")
            assert int(answer.headers["retry-after"]) == problem(answer, 429, "too_many_streams")["retry_after"]
            with Listener(bob, "/api/v1/events") as ear:
                assert ear.status == 200
            # And when all together have as many as there may be
            monkeypatch.setattr(hub, "MAX_FEEDS", 1)
            until(lambda: bob.get("/api/v1/events").status_code == 503, 30, "the end of the other stream")
            problem(bob.get("/api/v1/events"), 503, "busy")
        monkeypatch.setattr(hub, "MAX_FEEDS", 1000)
        # Then there is room again once one has ended
        site.farm.ledger.cancel(job)
        until(lambda: ada.get(f"{JOBS}/{job}/events").status_code == 200, 30, "room")


def test_streams_end_with_the_api(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a stream that would never end, of an API of its own, which waits for open calls
    job = submit(ada)
    with serving(site.settings) as url:
        ear = Listener(ada, f"{url}{JOBS}/{job}/events")
        ear.__enter__()
        ear.hears(job, "queued")
        # When it is stopped, Then it ends (see `serving`), and the stream with it
    assert ear.over.wait(30)


def test_a_feed_holds_the_newest_of_each_job_and_no_more(site: Site, ada: httpx2.Client, hand: Hand) -> None:
    # Given two jobs, and a watcher that does not read
    one, two = (site.farm.job(submit(ada)).record for _ in range(2))
    feed = Feed(lambda record: True)
    # When very much happens
    for number in range(10_000):
        feed.offer(one.job, Told(f"{number}-1", "queued", str(number)))
        feed.offer(two.job, Told(f"{number}-2", "queued", str(number)))
        feed.offer(one.job, Told("", "queued", "a step"))
    # Then it has one snapshot of each, in the order of the stream, and a step took the id of what it replaced
    assert [(told.id, told.data) for told in feed.pending.values()] == [("9999-1", "a step"), ("9999-2", "9999")]
