"""Are runs, limits, deletion, places and times told over HTTP as the ledger has them?"""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import redis

from farm.errors import Failure
from tests.api.conftest import Json, Site, locs, made, open_site, problem, txt
from tests.api.listener import Listener
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS, RUNS = "/api/v1/jobs", "/api/v1/runs"
QUEUE = "text2img.tiny"


def limited(site: Site, owner: str, most: int | None) -> httpx2.Client:
    """A caller who may have so many open jobs."""
    text = site.tokens.create(owner, ("read", "submit"), max_open_jobs=most)[1]
    return site.anonymous(Authorization=f"Bearer {text}")


# ------------------------------------------------------------------------------------------- runs


def test_a_run_is_steered_as_a_whole(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a run with a job that is done and one that failed
    run = made(ada.post(JOBS, json=txt(count=4)))["run"]
    hand.serve(hand.claim(QUEUE))
    site.farm.ledger.fail([hand.claim(QUEUE)], Failure.DETERMINISTIC, "nan_output", "")
    # When, Then
    for verb, states, progress in (
        ("pause", {"paused": 2, "done": 1, "failed": 1}, 0.5),
        ("resume", {"queued": 2, "done": 1, "failed": 1}, 0.5),
        ("retry", {"queued": 3, "done": 1}, 0.25),
        ("cancel", {"done": 1, "cancelled": 3}, 1),
        ("retry", {"queued": 3, "done": 1}, 0.25),
    ):
        found = ada.post(f"{RUNS}/{run}/{verb}").json()
        assert (found["states"], found["progress"], found["count"]) == (states, progress, 4), verb
        assert ada.get(f"{RUNS}/{run}").json() == found
    assert found["created"] == ada.get(JOBS, params={"run": run}).json()["jobs"][-1]["created"]


def test_runs_are_listed_page_by_page(ada: httpx2.Client, site: Site) -> None:
    # Given runs of two owners
    mine = []
    with site.client() as bob:
        for _ in range(5):
            mine.append(made(ada.post(JOBS, json=txt(count=2)))["run"])
            made(bob.post(JOBS, json=txt(count=2)))
        # When
        seen: list[str] = []
        asked: Json = {"limit": 2}
        while True:
            page = ada.get(RUNS, params=asked).json()
            seen += [run["id"] for run in page["runs"]]
            if page["next"] is None:
                break
            asked["cursor"] = page["next"]
        # Then
        assert seen == mine[::-1]
        # And an admin sees all of them
        with site.client("root", "admin") as root:
            assert len(root.get(RUNS).json()["runs"]) >= 10
        # And nobody steers another's
        for method, path in (("GET", ""), *(("POST", f"/{verb}") for verb in ("cancel", "pause", "resume", "retry"))):
            problem(bob.request(method, f"{RUNS}/{mine[0]}{path}"), 404, "not_found")
        assert bob.get(JOBS, params={"run": mine[0]}).json()["jobs"] == []
    assert ada.get(f"{RUNS}/{mine[0]}").json()["states"] == {"queued": 2}
    problem(ada.get(f"{RUNS}/nobody's"), 404, "not_found")
    assert locs(problem(ada.get(RUNS, params={"cursor": "x"}), 422, "invalid_field"))


# ------------------------------------------------------------------------------------------- limits


def test_an_owner_has_so_many_open_jobs(site: Site) -> None:
    # Given a token for three
    with limited(site, "quentin", 3) as caller:
        made(caller.post(JOBS, json=txt(count=2), headers={"Idempotency-Key": "two"}))
        # When two more are asked for
        answer = caller.post(JOBS, json=txt(count=2))
        # Then it is told when to try again, and what is there already
        found = problem(answer, 429, "quota_exceeded")
        assert int(answer.headers["Retry-After"]) == found["retry_after"] > 0
        assert "2 of at most 3 jobs are open" in found["detail"]
        assert len(caller.get(JOBS).json()["jobs"]) == 2
        # And one more is taken, and a repeat is answered though there is no room
        key, ask = {"Idempotency-Key": "one"}, txt()
        first = made(caller.post(JOBS, json=ask, headers=key))
        again = caller.post(JOBS, json=ask, headers=key)
        assert (again.status_code, again.json()) == (200, first)
        # And a key of what was refused is free for another body
        refused = {"Idempotency-Key": "refused"}
        problem(caller.post(JOBS, json=txt(), headers=refused), 429, "quota_exceeded")
        # And room comes back with what ends
        caller.post(f"{first['jobs'][0]['url']}/cancel")
        made(caller.post(JOBS, json=txt(), headers=refused))
    # And another token of the same owner, without a limit of its own, has that of the settings
    with limited(site, "quentin", None) as caller:
        made(caller.post(JOBS, json=txt(count=5)))
    with limited(site, "quentin", 0) as caller:
        made(caller.post(JOBS, json=txt(count=5)))


def test_the_settings_limit_owners_and_the_farm(site: Site) -> None:
    # Given a farm that takes four jobs, three of one owner
    name = f"{site.settings.namespace}-small"
    small = site.settings.model_copy(update={"namespace": name, "max_pending": 4, "max_open_jobs": 3})
    with open_site(small) as other, other.client("ada") as ada, other.client("bob") as bob:
        made(ada.post(JOBS, json=txt(count=3)))
        problem(ada.post(JOBS, json=txt()), 429, "quota_exceeded")
        # When there is no room for two more in all
        answer = bob.post(JOBS, json=txt(count=2))
        # Then it is the farm's matter, and nothing is stored
        found = problem(answer, 503, "farm_full")
        assert int(answer.headers["Retry-After"]) == found["retry_after"] > 0
        assert bob.get(JOBS).json()["jobs"] == []
        made(bob.post(JOBS, json=txt()))


# ------------------------------------------------------------------------------------------- delete


def test_a_deleted_job_is_gone_with_its_results(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a job that runs, then is done
    (job,) = made(ada.post(JOBS, json=txt(), headers={"Idempotency-Key": "gone"}))["jobs"]
    problem(ada.delete(job["url"]), 409, "conflict")
    hand.serve(hand.claim(QUEUE))
    (result,) = site.farm.job(job["id"]).results
    store = site.farm.store
    assert store.results_of(job["id"]) == [result.key.removesuffix(".png") + ".json", result.key]
    # When somebody else, then its owner deletes it
    with site.client() as bob:
        problem(bob.delete(job["url"]), 404, "not_found")
    with site.client("eve", "read") as reader:
        problem(reader.delete(job["url"]), 403, "forbidden")
    answer = ada.delete(job["url"])
    # Then it is nowhere, but for the picture that its recipe made
    assert (answer.status_code, answer.content) == (204, b"")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/artifacts"), ("GET", "/events"), ("POST", "/cancel")):
        problem(ada.request(method, job["url"] + path), 404, "not_found")
    assert ada.get(JOBS).json()["jobs"] == []
    assert store.results_of(job["id"]) == []
    assert store.exists(result.sha256)
    raw = redis.Redis.from_url(site.settings.redis_url.get_secret_value(), decode_responses=True)
    assert [key for key in raw.scan_iter("{" + site.settings.namespace + "}*") if job["id"] in key] == []


def test_whoever_listens_hears_of_a_deletion(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given listeners of a run, of everything, and of somebody else's
    asked = made(ada.post(JOBS, json=txt(count=2)))
    job = asked["jobs"][0]["id"]
    ada.post(f"{JOBS}/{job}/cancel")
    with (
        site.client() as bob,
        Listener(ada, f"{RUNS}/{asked['run']}/events") as of_run,
        Listener(ada, "/api/v1/events") as of_all,
        Listener(bob, "/api/v1/events") as of_bob,
    ):
        of_run.hears(job, "cancelled")
        last = site.farm.ledger.events(None)[-1].id
        # When
        assert ada.delete(f"{JOBS}/{job}").status_code == 204
        # Then they are told, and the other is not
        of_run.hears(job, "deleted")
        of_all.hears(job, "deleted")
        assert of_bob.heard == []
    # And who was away hears of it when coming back
    with Listener(ada, f"{RUNS}/{asked['run']}/events", last) as again:
        again.hears(job, "deleted")


# ------------------------------------------------------------------------------------------- places and times


def test_a_snapshot_tells_place_and_time_left(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a stage that was measured, and a worker
    first = made(ada.post(JOBS, json=txt()))["jobs"][0]["url"]
    hand.serve(hand.claim(QUEUE))
    site.farm.ledger.register("w-eta", "boot", [QUEUE], "idle", {})
    jobs = made(ada.post(JOBS, json=txt(count=3)))["jobs"]
    # When
    seen = [ada.get(job["url"]).json() for job in jobs]
    # Then each stands behind the other, and is done later
    assert [one["position"] for one in seen] == [0, 1, 2]
    assert [one["waits_for"] for one in seen[:2]] == [f"next in {QUEUE}", f"1 ahead in {QUEUE}"]
    left = [one["eta_s"] for one in seen]
    assert 0 < left[0] <= left[1] <= left[2]
    assert ada.get(first).json()["eta_s"] is None
    # And the list and the stream tell the same
    listed = {one["id"]: one for one in ada.get(JOBS).json()["jobs"]}
    with Listener(ada, f"{JOBS}/{jobs[2]['id']}/events") as ear:
        until(lambda: ear.heard, 30)
        for name in ("position", "waits_for", "eta_s"):
            assert [listed[job["id"]][name] for job in jobs] == [one[name] for one in seen]
            assert ear.heard[0].data[name] == seen[2][name]
    (queue,) = [one for one in ada.get("/api/v1/queues").json() if one["queue"] == QUEUE]
    assert queue["mean_s"] == queue["wall_s"] > 0
    site.farm.ledger.unregister("w-eta", "boot")


def test_a_dry_run_tells_cost_and_time_where_they_are_known(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given one measured stage
    made(ada.post(JOBS, json=txt()))
    hand.serve(hand.claim(QUEUE))
    mean = next(one["mean_s"] for one in ada.get("/api/v1/queues").json() if one["queue"] == QUEUE)

    def asked(**given: Any) -> tuple[Any, Any]:
        found = ada.post(f"{JOBS}/dry-run", json=given).json()
        return found["cost_s"], found["eta_s"]

    # When, Then
    assert asked(chain="txt", count=4) == (pytest.approx(4 * mean, abs=0.01), None)
    assert asked(chain="hires") == (None, None)
    site.farm.ledger.register("w-dry", "boot", [QUEUE], "idle", {})
    cost, eta = asked(chain="txt", count=4)
    assert eta >= cost - 0.01
    # And what is made already costs nothing
    done = txt()
    made(ada.post(JOBS, json=done))
    hand.serve(hand.claim(QUEUE))
    assert asked(**done) == (0, 0)
    site.farm.ledger.unregister("w-dry", "boot")
