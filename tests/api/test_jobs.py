"""Are jobs made, found, steered and collected over HTTP as through Python?"""

from __future__ import annotations

import secrets
import threading
from typing import Any

import httpx2
import pytest
import redis

from farm.errors import Failure
from tests.api.calls import calls
from tests.api.conftest import Json, Site, locs, made, problem, txt
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"


def work_off(site: Site, hand: Hand, *ids: str) -> None:
    """Serves the one-stage jobs until they are done."""
    while any(site.farm.job(job).state != "done" for job in ids):
        hand.serve(hand.claim("text2img.tiny"))


@pytest.fixture(autouse=True)
def _emptied(site: Site) -> Any:
    yield
    site.empty()


# ------------------------------------------------------------------------------------------- submit


def test_a_job_is_what_python_would_make(site: Site, ada: httpx2.Client) -> None:
    # Given
    ask = txt(seed=7, parameters={"steps": 3}, priority=60, lane="bulk", deadline_s=60)
    # When
    found = made(ada.post(JOBS, json=ask))
    # Then
    (job,) = found["jobs"]
    assert (found["count"], found["run"], job["seed"]) == (1, None, 7)
    record = site.farm.job(job["id"]).record
    chain = site.farm.chain("txt", "a pear", seed=7, num_inference_steps=3)
    (same,) = site.farm.jobs_of(chain)
    assert record.stages[0].exec == same.execution(0)
    assert (record.priority, record.lane, record.state) == (60, "bulk", "queued")
    assert record.deadline_ms - record.created_ms == pytest.approx(60_000, abs=1)
    # And it can be looked at
    seen = ada.get(job["url"]).json()
    assert (seen["state"], seen["seed"], seen["prompt"], seen["progress"]) == ("queued", 7, "a pear", 0)
    assert (seen["stage"], seen["stage_count"], seen["kind"]) == (0, 1, "text2img")
    assert seen["stages"][0]["checkpoint"] == "tiny"
    assert seen["waits_for"] == "no worker serves text2img.tiny"
    assert seen["urls"]["events"] == f"{JOBS}/{job['id']}/events"


def test_a_chain_may_be_written_out(site: Site, ada: httpx2.Client) -> None:
    # When
    stages = [{"kind": "text2img", "steps": 2}, {"kind": "img2img", "strength": 0.9}]
    found = made(ada.post(JOBS, json={"chain": {"stages": stages, "prompt": "x"}, "parameters": {"1.strength": 0.4}}))
    # Then
    record = site.farm.job(found["jobs"][0]["id"]).record
    assert [stage.queue for stage in record.stages] == ["text2img.tiny", "img2img.tiny"]
    assert ada.get(found["jobs"][0]["url"]).json()["chain"]["stages"][1]["strength"] == 0.4


def test_a_count_is_a_run_with_rising_seeds(site: Site, ada: httpx2.Client) -> None:
    # When
    found = made(ada.post(JOBS, json=txt(seed=10, count=3)))
    # Then
    assert [job["seed"] for job in found["jobs"]] == [10, 11, 12]
    run = ada.get(f"/api/v1/runs/{found['run']}").json()
    assert (run["count"], run["states"], run["progress"]) == (3, {"queued": 3}, 0)
    page = ada.get(JOBS, params={"run": found["run"]}).json()["jobs"]
    assert [job["id"] for job in page] == [job["id"] for job in found["jobs"]][::-1]
    # And all of it can be cancelled
    run = ada.post(f"/api/v1/runs/{found['run']}/cancel").json()
    assert (run["states"], run["progress"]) == ({"cancelled": 3}, 1)


def test_a_sweep_multiplies_its_axes(site: Site, ada: httpx2.Client) -> None:
    # Given two axes, one of two fields side by side
    sweep = [{"prompt": ["a pear", "a plum"]}, {"guidance_scale": [3.0, 7.0], "0.steps": [2, 4]}]
    # When
    found = made(ada.post(JOBS, json={"chain": "txt", "sweep": sweep, "count": 2}))
    # Then it is one run, of 2 × 2 variants with two seeds each
    chains = [ada.get(job["url"]).json() for job in found["jobs"]]
    told = [
        (one["prompt"], one["chain"]["stages"][0]["guidance_scale"], one["chain"]["stages"][0]["num_inference_steps"])
        for one in chains
    ]
    expected = [(prompt, scale, steps) for prompt in ("a pear", "a plum") for scale, steps in ((3.0, 2), (7.0, 4))]
    assert told == [one for one in expected for _ in range(2)]
    first = chains[0]["seed"]
    assert [one["seed"] for one in chains] == [first, first + 1] * 4
    assert {one["run"] for one in chains} == {found["run"]}


def test_a_wrong_variant_is_named_and_nothing_is_made(site: Site, ada: httpx2.Client) -> None:
    before = len(site.farm.jobs(limit=1000))
    answer = ada.post(JOBS, json=txt(sweep=[{"num_inference_steps": [2, 0]}]))
    found = problem(answer, 422, "invalid_field")
    assert locs(found) == {("stages.0.num_inference_steps", "invalid_field")}
    assert "variant 1" in found["detail"]
    assert len(site.farm.jobs(limit=1000)) == before


def test_a_dry_run_tells_what_would_be_made(site: Site, ada: httpx2.Client) -> None:
    # Given
    before = len(site.farm.jobs(limit=1000))
    # When
    found = ada.post(f"{JOBS}/dry-run", json={"chain": "x2", "count": 3, "parameters": {"steps": 5}}).json()
    # Then
    assert (found["count"], found["seed"], found["steps"], found["pixels"]) == (3, None, 3 * 10, 3 * 128 * 128)
    assert [(stage["kind"], stage["size"]) for stage in found["stages"]] == [
        ("text2img", [64, 64]),
        ("upscale_latent", [128, 128]),
    ]
    assert len(site.farm.jobs(limit=1000)) == before


# ------------------------------------------------------------------------------------------- idempotency


def test_the_same_key_yields_the_same_jobs(site: Site, ada: httpx2.Client) -> None:
    # Given
    key, ask = {"Idempotency-Key": "mine"}, {"chain": "txt", "prompt": "a pear", "count": 3}
    first = made(ada.post(JOBS, json=ask, headers=key))
    assert first["idempotency_key"] == "mine"
    # When it is sent again
    again = ada.post(JOBS, json=ask, headers=key)
    # Then nothing new is made, and another body is refused, be it for the same chain
    assert (again.status_code, again.json()) == (200, first)
    for other in ({**ask, "prompt": "a plum"}, {**ask, "count": 4}, {**ask, "priority": 9}):
        problem(ada.post(JOBS, json=other, headers=key), 409, "idempotency_conflict")
    assert len(site.farm.jobs(run=first["run"], limit=1000)) == 3
    # And somebody else's key is another one
    with site.client() as bob:
        assert {job["id"] for job in made(bob.post(JOBS, json=ask, headers=key))["jobs"]}.isdisjoint(
            {job["id"] for job in first["jobs"]}
        )


def test_a_key_of_a_refused_request_may_be_used_again(ada: httpx2.Client) -> None:
    key = {"Idempotency-Key": "again"}
    problem(ada.post(JOBS, json=txt(seed=-1), headers=key), 422, "invalid_field")
    made(ada.post(JOBS, json=txt(), headers=key))


def test_only_a_key_that_was_given_is_kept_beside_its_jobs(site: Site, ada: httpx2.Client) -> None:
    raw = redis.Redis.from_url(site.settings.redis_url.get_secret_value())

    def kept() -> int:
        return len(raw.keys("{" + site.settings.namespace + "}:request:*"))

    # Given
    before = kept()
    # When nobody gave one, Then none is kept, though the one that was drawn finds the jobs
    ask = txt()
    first = made(ada.post(JOBS, json=ask))
    assert kept() == before
    again = ada.post(JOBS, json=ask, headers={"Idempotency-Key": first["idempotency_key"]})
    assert (again.status_code, again.json()) == (200, first)
    assert kept() == before + 1


@pytest.mark.parametrize("key", ["", "a" * 201, "a\u00e9"])
def test_an_impossible_key_is_refused(ada: httpx2.Client, key: str) -> None:
    answer = ada.post(JOBS, json=txt(), headers={"Idempotency-Key": key.encode("utf-8")})
    assert locs(problem(answer, 422, "invalid_field")) == {("header.idempotency-key", "invalid_field")}


def test_ten_at_once_are_one_job(site: Site, ada: httpx2.Client) -> None:
    # Given
    ask, answers = txt(), list[httpx2.Response]()
    begin = threading.Barrier(10)

    def send() -> None:
        begin.wait(10)
        answers.append(ada.post(JOBS, json=ask, headers={"Idempotency-Key": "ten"}))

    threads = [threading.Thread(target=send) for _ in range(10)]
    # When
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["jobs"][0]["id"] for answer in answers}) == 1
    mine = ada.get(JOBS).json()["jobs"]
    assert len(mine) == 1


# ------------------------------------------------------------------------------------------- look


def test_pages_go_on_where_the_last_one_ended(site: Site, ada: httpx2.Client) -> None:
    # Given jobs of two owners in turn
    mine = []
    with site.client() as bob:
        for _ in range(7):
            mine.append(made(ada.post(JOBS, json=txt()))["jobs"][0]["id"])
            made(bob.post(JOBS, json=txt(count=2)))
    # When they are read page by page
    seen: list[str] = []
    asked: Json = {"limit": 2}
    while True:
        page = ada.get(JOBS, params=asked).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        asked["cursor"] = page["next"]
    # Then each of the caller's own is seen once, the newest first
    assert seen == mine[::-1]


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ({"limit": 0}, "query.limit"),
        ({"limit": "x"}, "query.limit"),
        ({"limit": 1000}, "query.limit"),
        ({"state": "lost"}, "query.state"),
        ({"cursor": "x"}, "query.cursor"),
        ({"cursor": "\u0660"}, "query.cursor"),
        ({"cursor": "MQ"}, "query.cursor"),
    ],
)
def test_a_wrong_query_is_named(ada: httpx2.Client, query: Json, loc: str) -> None:
    assert (loc, "invalid_field") in locs(problem(ada.get(JOBS, params=query), 422, "invalid_field"))


def test_a_parameter_that_no_call_knows_is_named(site: Site) -> None:
    with site.client("ada", "admin") as ada:
        for call in calls():
            if call.known:
                values = dict.fromkeys(call.names, "0")
                answer = ada.request(call.method, call.at(values), params={"befor": "1"}, json=call.body)
                found = problem(answer, 422, "unknown_field")
                assert locs(found) == {("query.befor", "unknown_field")}, call.id
        told = problem(ada.get(JOBS, params={"before": 1, "<b>": 2}), 422, "unknown_field")
        assert {one["loc"] for one in told["errors"]} == {"query.before", "query.?b?"}
        assert told["errors"][0]["msg"] == "the call knows state, run, owner, tag, limit, cursor"


def test_a_list_may_be_of_one_owner(site: Site) -> None:
    # Given jobs and runs of two
    owners = [f"o{secrets.token_hex(4)}" for _ in range(2)]
    with site.client(owners[0]) as one, site.client(owners[1]) as two, site.client("ops", "admin") as admin:
        made(two.post(JOBS, json=txt(count=2)))
        ids = {job["id"] for job in made(one.post(JOBS, json=txt(count=2)))["jobs"]}
        # When an admin asks for one's, or one for one's own, Then just those are there
        for client in (admin, one):
            found = client.get(JOBS, params={"owner": owners[0]}).json()["jobs"]
            assert {job["id"] for job in found} == ids
            assert len(client.get("/api/v1/runs", params={"owner": owners[0]}).json()["runs"]) == 1
        # And somebody else's nobody else lists
        for path in (JOBS, "/api/v1/runs"):
            problem(two.get(path, params={"owner": owners[0]}), 403, "forbidden")
            problem(two.get(path, params={"owner": "*"}), 422, "invalid_field")
            assert admin.get(path, params={"owner": "nobody"}).json()[path.rpartition("/")[2]] == []


def test_a_held_job_keeps_its_progress(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a job that is half done
    url = made(ada.post(JOBS, json=txt()))["jobs"][0]["url"]
    claim = hand.claim("text2img.tiny")
    site.farm.ledger.beat([claim], "step", 2, 4)
    # When it is paused, and its stage goes on, Then so does its progress
    paused = ada.post(f"{url}/pause").json()
    assert (paused["state"], paused["progress"], paused["step"], paused["steps"]) == ("paused", 0.5, 2, 4)
    site.farm.ledger.beat([claim], "step", 3, 4)
    assert ada.get(url).json()["progress"] == 0.75
    # And what is cancelled stays where it was
    assert ada.post(f"{url}/cancel").json()["progress"] == 0.75


@pytest.mark.usefixtures("hand")
def test_only_an_admin_lifts_a_quarantine(site: Site, ada: httpx2.Client) -> None:
    # Given a run of a job that kills its workers, and of one more of the same recipe that was cancelled before
    found = made(ada.post(JOBS, json=txt(count=2, prompt="a plum")))
    (dead, other), run = (job["url"] for job in found["jobs"]), f"/api/v1/runs/{found['run']}"
    twin = made(ada.post(JOBS, json=txt(prompt="a plum", seed=found["jobs"][0]["seed"])))["jobs"][0]["url"]
    for url in (twin, other):
        assert ada.post(f"{url}/cancel").json()["state"] == "cancelled"
    for name in ("w1", "w2", "w3"):
        claims = until(lambda name=name: site.farm.ledger.claim(["text2img.tiny"], name, "boot")[0], 30, "work")
        site.farm.ledger.fail(claims, Failure.CRASH, "internal", "died")
    assert ada.get(dead).json()["state"] == "quarantined"
    # When its owner tries again, by whichever of them, Then it is told why not
    for url in (dead, twin):
        assert "an admin" in problem(ada.post(f"{url}/retry"), 403, "forbidden")["detail"]
    for which in ([dead.rpartition("/")[2]], "failed"):
        assert ada.post(f"{JOBS}/steer", json={"act": "retry", "jobs": which}).json()["count"] == 0
    # And of the run the others go on
    assert ada.post(f"{run}/retry").json()["states"] == {"queued": 1, "quarantined": 1}
    # And an admin lifts it
    with site.client("ops", "admin") as admin:
        assert admin.post(f"{dead}/retry").json()["state"] == "queued"
    assert ada.post(f"{twin}/retry").json()["state"] == "queued"


@pytest.mark.parametrize("state", ["queued", "cancelled"])
def test_a_list_may_be_of_one_state(ada: httpx2.Client, state: str) -> None:
    # Given
    ids = {name: made(ada.post(JOBS, json=txt()))["jobs"][0]["id"] for name in ("queued", "cancelled")}
    ada.post(f"{JOBS}/{ids['cancelled']}/cancel")
    # When, Then
    assert [job["id"] for job in ada.get(JOBS, params={"state": state}).json()["jobs"]] == [ids[state]]


@pytest.mark.parametrize(
    "name",
    [
        "00000000-0000-7000-8000-000000000000",
        "0",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f",
        "..%252f",
        "..%5c",
        "%00",
        "a" * 4096,
        "\u0660" * 36,
        "019A0000-0000-7000-8000-000000000000",
        "00000000-0000-7000-8000-000000000000.",
        "00000000-0000-7000-8000-000000000000%20",
    ],
)
def test_what_is_no_job_is_not_found(ada: httpx2.Client, name: str) -> None:
    for method, path in (
        ("GET", name),
        ("GET", f"{name}/artifacts"),
        ("GET", f"{name}/events"),
        ("POST", f"{name}/cancel"),
    ):
        problem(ada.request(method, f"{JOBS}/{path}"), 404, "not_found")


# ------------------------------------------------------------------------------------------- steer, collect


def test_a_job_is_paused_resumed_moved_cancelled_and_retried(ada: httpx2.Client) -> None:
    # Given
    url = made(ada.post(JOBS, json=txt()))["jobs"][0]["url"]
    # When, Then
    assert ada.post(f"{url}/pause").json()["state"] == "paused"
    assert ada.post(f"{url}/resume").json()["state"] == "queued"
    moved = ada.patch(url, json={"priority": 90, "lane": "bulk"}).json()
    assert (moved["priority"], moved["lane"]) == (90, "bulk")
    assert ada.post(f"{url}/cancel").json()["state"] == "cancelled"
    assert ada.post(f"{url}/cancel").json()["state"] == "cancelled"
    problem(ada.post(f"{url}/pause"), 409, "conflict")
    assert ada.post(f"{url}/retry").json()["state"] == "queued"
    problem(ada.post(f"{url}/retry"), 409, "conflict")
    problem(ada.patch(url, json={"priority": 101}), 422, "invalid_field")


def test_a_failure_is_told_with_its_reason(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given
    url = made(ada.post(JOBS, json=txt()))["jobs"][0]["url"]
    # When
    site.farm.ledger.fail([hand.claim("text2img.tiny")], Failure.DETERMINISTIC, "nan_output", "")
    # Then
    found = ada.get(url).json()
    assert (found["state"], found["code"]) == ("failed", "nan_output")
    assert found["message"] == "The pipeline produced NaN or infinite values."
    assert ada.get(f"{url}/artifacts").json() == []


def test_a_result_is_reached_by_a_signed_url(site: Site, hand: Hand, ada: httpx2.Client) -> None:
    # Given a job that is done
    (job,) = made(ada.post(JOBS, json=txt()))["jobs"]
    assert ada.get(f"{job['url']}/artifacts").json() == []
    work_off(site, hand, job["id"])
    # When
    (artifact,) = ada.get(f"{job['url']}/artifacts").json()
    leads = ada.get(artifact["url"])
    # Then whoever has the URL it leads to needs no token, for this one object
    assert leads.status_code == 307
    assert leads.content == b""
    url = leads.headers["location"]
    got = httpx2.get(url, trust_env=False)
    assert got.content == site.farm.store.get_blob(artifact["sha256"], 1 << 20)
    assert (artifact["width"], artifact["height"]) == (64, 64)
    assert httpx2.get(url.replace(job["id"], "other"), trust_env=False).status_code == 403
    assert ada.get(job["url"]).json()["progress"] == 1
    problem(ada.get(f"{job['url']}/artifacts/1"), 404, "not_found")
    problem(ada.get(f"{job['url']}/artifacts/-1"), 404, "not_found")


# ------------------------------------------------------------------------------------------- the farm


def test_the_farm_is_described(site: Site, ada: httpx2.Client) -> None:
    # Catalog and chains
    found = ada.get("/api/v1/catalog").json()
    tiny = next(one for one in found["checkpoints"] if one["name"] == "tiny")
    assert tiny["pulled"]
    assert "text2img" in tiny["default_for"]
    assert {one["name"] for one in found["adapters"]} == set(site.farm.catalog.adapters)
    assert {one["name"] for one in ada.get("/api/v1/chains").json()} == set(site.farm.catalog.presets)
    # Stages
    kinds = {one["kind"]: one for one in ada.get("/api/v1/stages").json()}
    assert kinds["img2img"]["takes"] == ["image", "latents"]
    assert "strength" in ada.get("/api/v1/stages/img2img").json()["parameters"]["properties"]
    problem(ada.get("/api/v1/stages/nope"), 404, "not_found")


def test_queues_and_workers_are_told_and_drained(site: Site, ada: httpx2.Client) -> None:
    # Given a worker, and work
    site.farm.ledger.register("w-0", "boot", ["text2img.tiny"], "idle", {"host": "box", "pid": "7"})
    made(ada.post(JOBS, json=txt()))
    # When, Then
    (queue,) = [one for one in ada.get("/api/v1/queues").json() if one["queue"] == "text2img.tiny"]
    assert (queue["ready"], queue["workers"]) == (1, 1)
    (worker,) = ada.get("/api/v1/workers").json()
    assert (worker["name"], worker["host"], worker["state"]) == (None, None, "idle")
    # And an admin drains it
    problem(ada.post("/api/v1/workers/w-0/drain"), 403, "forbidden")
    with site.client("root", "admin") as root:
        assert root.get("/api/v1/workers").json()[0]["name"] == "w-0"
        assert root.post("/api/v1/workers/w-0/drain").json()["draining"]
        assert not root.post("/api/v1/workers/w-0/resume").json()["draining"]
        problem(root.post("/api/v1/workers/w-1/drain"), 404, "not_found")
    site.farm.ledger.unregister("w-0", "boot")
