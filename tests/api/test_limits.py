"""Is who calls too often told so, with a time, and nobody else?"""

from __future__ import annotations

import secrets
import time

import httpx2
import pytest
import redis

from farm.api import guard, limits
from farm.api.door import COOKIE
from farm.remote import RemoteFarm
from tests.api.conftest import PNG, Json, Site, made, open_site, picture, problem, txt

JOBS, SESSION = "/api/v1/jobs", "/api/v1/session"
BURST = 5


@pytest.fixture
def slow(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The same farm, served by another process's worth of API that lets one call in ten minutes write, and five at
    once, and as many wrong tokens come in half an hour as else in a minute: a slow machine waits for none of these."""
    few = {"rate_per_s": 1 / 600, "rate_burst": BURST, "login_failures": 3}
    monkeypatch.setattr(limits, "GUESSES_S", 30 * limits.GUESSES_S)
    with open_site(site.settings.model_copy(update={**few, "namespace": f"slow{secrets.token_hex(4)}"})) as found:
        yield found


def limited(answer: httpx2.Response) -> Json:
    """The answer to a call that came too often."""
    found = problem(answer, 429, "rate_limited")
    assert int(answer.headers["retry-after"]) == found["retry_after"] >= 1
    return found


def counts(site: Site) -> dict[bytes, int]:
    """The keys that count, each with how long it stays, milliseconds."""
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    return {key: client.pttl(key) for key in client.keys("{" + site.settings.namespace + "}:rate:*")}


def test_a_token_writes_in_bursts(slow: Site) -> None:
    with slow.client("ann") as ann, slow.client("ann") as second:
        # Given a burst of whatever may write
        url = made(ann.post(JOBS, json=txt()))["jobs"][0]["url"]
        assert ann.post(f"{JOBS}/dry-run", json=txt()).status_code == 200
        assert ann.post("/api/v1/uploads", content=picture(), headers=PNG).status_code == 201
        problem(ann.post(JOBS, json=txt(seed=-1)), 422, "invalid_field")
        assert ann.patch(url, json={"priority": 9}).status_code == 200
        # When one more comes, Then it is refused before its body is looked at, with a time
        told = limited(ann.post(JOBS, content=b"{", headers={"Content-Type": "application/json"}))
        assert 500 <= told["retry_after"] <= 601
        limited(ann.post(f"{url}/cancel"))
        # And who reads is not held up, nor is another token, be it of the same owner
        assert ann.get(url).json()["state"] == "queued"
        assert second.post(f"{url}/cancel").status_code == 200


def test_a_count_goes_by_itself(slow: Site) -> None:
    with slow.client("ben") as ben:
        made(ben.post(JOBS, json=txt()))
        (left_ms,) = counts(slow).values()
        assert 0 < left_ms <= 600_000
        for _ in range(3 * BURST):
            ben.post(f"{JOBS}/dry-run", json=txt())
        # Refused calls cost nothing
        (left_ms,) = counts(slow).values()
        assert (BURST - 1) * 600_000 < left_ms <= BURST * 600_000


def test_two_processes_count_together(slow: Site) -> None:
    with open_site(slow.settings) as other:
        text = slow.token("cid")
        with (
            slow.anonymous(Authorization=f"Bearer {text}") as one,
            other.anonymous(Authorization=f"Bearer {text}") as two,
        ):
            answers = [client.post(f"{JOBS}/dry-run", json=txt()).status_code for client in (one, two) * BURST]
    assert answers == [200] * BURST + [429] * BURST


def test_a_session_counts_as_its_token(slow: Site) -> None:
    text = slow.token("dee")
    with slow.anonymous() as page, slow.anonymous(Authorization=f"Bearer {text}") as program:
        page.headers["X-CSRF-Token"] = page.post(SESSION, json={"token": text}).json()["csrf_token"]
        assert page.cookies[COOKIE]
        for client in (page, program) * BURST:
            last = client.post(f"{JOBS}/dry-run", json=txt())
        limited(last)


def test_guesses_of_one_address_are_counted(slow: Site) -> None:
    wrong = {"Authorization": "Bearer farm_000000000000_" + "A" * 43}
    with slow.anonymous() as stranger, slow.client("eva") as eva:
        # Given as many as are let through, at either door
        problem(stranger.get(JOBS, headers=wrong), 401, "unauthorized")
        problem(stranger.get(JOBS, headers={"Authorization": "Bearer x"}), 401, "unauthorized")
        problem(stranger.post(SESSION, json={"token": "x"}), 401, "unauthorized")
        # When, Then
        assert limited(stranger.get(JOBS, headers=wrong))["retry_after"] <= 601
        limited(stranger.post(SESSION, json={"token": "x"}))
        limited(stranger.get("/api/v1/events", headers=wrong))
        # And who has a token, or sends none, is answered as ever
        assert eva.get(JOBS).status_code == 200
        problem(stranger.get(JOBS), 401, "unauthorized")
        assert stranger.post(SESSION, json={"token": slow.token("eva")}).status_code == 201
        # And one key counts, for a while
        (left_ms,) = [left for key, left in counts(slow).items() if b":failed:" in key]
        assert 0 < left_ms <= 1_800_000


def test_without_limits_nothing_is_counted(site: Site, ada: httpx2.Client) -> None:
    for _ in range(3):
        assert ada.post(f"{JOBS}/dry-run", json=txt()).status_code == 200
        problem(ada.get(JOBS, headers={"Authorization": "Bearer x"}), 401, "unauthorized")
    assert counts(site) == {}


def test_a_program_waits_as_it_is_told(site: Site) -> None:
    # Given a farm that takes one call a second
    one_a_second = {"rate_per_s": 1.0, "rate_burst": 1, "namespace": f"calm{secrets.token_hex(4)}"}
    calm_settings = site.settings.model_copy(update=one_a_second)
    with open_site(calm_settings) as calm, RemoteFarm(calm.url, calm.token("fin")) as farm:
        # When a program goes on at once, Then it is late, but nothing fails
        began = time.monotonic()
        for _ in range(3):
            farm.render("a pear", chain="txt", seed=1)
        assert time.monotonic() - began > 1


def test_more_calls_at_once_than_the_api_takes_are_told(
    site: Site, ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_CALLS", 0)
    answer = ada.get(JOBS)
    assert int(answer.headers["retry-after"]) == problem(answer, 503, "busy")["retry_after"]
