"""Does a browser stay known by its cookie alone, and does no other page get anything by it?"""

from __future__ import annotations

from collections.abc import Iterator
from http.cookies import SimpleCookie

import httpx2
import pytest
import redis

from farm.api import sessions
from farm.api.door import COOKIE
from tests.api.conftest import Site, made, open_site, problem, txt
from tests.api.listener import Listener
from tests.e2e.rig import until

SESSION, JOBS = "/api/v1/session", "/api/v1/jobs"


def kept(site: Site) -> set[bytes]:
    """The keys of all sessions."""
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    return set(client.keys("{" + site.settings.namespace + "}:session:*"))


@pytest.fixture
def page(site: Site) -> Iterator[httpx2.Client]:
    """A browser that is logged in; it sends what the farm's own pages send."""
    with site.anonymous() as client:
        answer = client.post(SESSION, json={"token": site.token("pia")})
        assert answer.status_code == 201, answer.text
        client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        yield client


def test_a_session_does_what_its_token_may(site: Site, page: httpx2.Client) -> None:
    # Who one is
    told = page.get(SESSION).json()
    assert (told["owner"], told["scopes"]) == ("pia", ["read", "submit"])
    assert told["csrf_token"] == page.headers["X-CSRF-Token"]
    assert told["last_event"] == site.farm.ledger.last_event()
    # Writes, reads, and follows, without another header
    url = made(page.post(JOBS, json=txt()))["jobs"][0]["url"]
    del page.headers["X-CSRF-Token"]
    assert page.get(url).json()["owner"] == "pia"
    with Listener(page, f"{url}/events") as listener:
        until(lambda: listener.heard, 30, "a snapshot")
    # But nothing more
    problem(page.post("/api/v1/workers/w/drain"), 403, "forbidden")


def test_the_cookie_is_kept_from_scripts_and_other_sites(site: Site) -> None:
    token = site.token("quin")
    for forwarded, name in (("http", COOKIE), ("https", f"__Host-{COOKIE}"), ("https, http", f"__Host-{COOKIE}")):
        # When one logs in, behind TLS or not
        with site.anonymous(**{"X-Forwarded-Proto": forwarded}) as client:
            answer = client.post(SESSION, json={"token": token})
        # Then
        (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
        assert cookie.key == name
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
        assert (bool(cookie["secure"]), cookie["domain"]) == (name != COOKIE, "")
        assert cookie.value not in answer.text
        # And behind TLS only the name that no other host can set counts
        with site.anonymous(**{"X-Forwarded-Proto": forwarded, "Cookie": f"{COOKIE}={cookie.value}"}) as client:
            assert client.get(SESSION).status_code == (200 if name == COOKIE else 401)


def test_only_a_hash_of_a_session_is_kept(site: Site, page: httpx2.Client) -> None:
    secret = page.cookies[COOKIE]
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    for key in kept(site):
        assert secret.encode() not in key + client.get(key)
        assert 0 < client.ttl(key) <= sessions.LIFE_S


@pytest.mark.parametrize("word", [None, "", "x", "\u00e9", "0" * 64])
def test_without_its_second_word_a_session_changes_nothing(site: Site, page: httpx2.Client, word: str | None) -> None:
    # Given
    url = made(page.post(JOBS, json=txt()))["jobs"][0]["url"]
    del page.headers["X-CSRF-Token"]
    sent = {} if word is None else {"X-CSRF-Token": word.encode()}
    # When, Then
    problem(page.post(JOBS, json=txt(), headers=sent), 403, "forbidden")
    problem(page.post(f"{url}/cancel", headers=sent), 403, "forbidden")
    problem(page.patch(url, json={"priority": 1}, headers=sent), 403, "forbidden")
    problem(page.delete(SESSION, headers=sent), 403, "forbidden")
    assert page.get(url).json()["state"] == "queued"


def test_the_second_word_of_another_session_is_a_wrong_one(site: Site, page: httpx2.Client) -> None:
    with site.anonymous() as other:
        page.headers["X-CSRF-Token"] = other.post(SESSION, json={"token": site.token("pia")}).json()["csrf_token"]
    problem(page.post(JOBS, json=txt()), 403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_no_page_of_elsewhere_uses_a_session(site: Site, page: httpx2.Client, headers: dict[str, str]) -> None:
    problem(page.get(JOBS, headers=headers), 403, "forbidden")
    problem(page.post(JOBS, json=txt(), headers=headers), 403, "forbidden")
    problem(page.post(SESSION, json={"token": site.token("pia")}, headers=headers), 403, "forbidden")
    # Nor is it told that it could
    asked = page.options(JOBS, headers={**headers, "Access-Control-Request-Method": "POST"})
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_the_farms_own_page_does(site: Site, page: httpx2.Client) -> None:
    for headers in ({"Sec-Fetch-Site": "same-origin", "Origin": site.url}, {"Origin": site.url}):
        made(page.post(JOBS, json=txt(), headers=headers))
    # An address that one types in is no page's, but what writes is never typed in
    assert page.get(JOBS, headers={"Sec-Fetch-Site": "none"}).status_code == 200
    problem(page.post(JOBS, json=txt(), headers={"Sec-Fetch-Site": "none"}), 403, "forbidden")


def test_a_session_ends_when_it_is_ended(site: Site, page: httpx2.Client) -> None:
    # Given
    before, cookie = kept(site), page.cookies[COOKIE]
    # When
    answer = page.delete(SESSION)
    # Then the cookie is taken back, and would not help
    assert answer.status_code == 204
    assert COOKIE not in page.cookies
    assert len(kept(site)) == len(before) - 1
    with site.anonymous(Cookie=f"{COOKIE}={cookie}") as client:
        problem(client.get(SESSION), 401, "unauthorized")


def test_a_session_ends_with_its_token(site: Site) -> None:
    # Given
    removed, expired = site.tokens.create("rex", ["read"]), site.tokens.create("rex", ["read"], 3600)
    with site.anonymous() as one, site.anonymous() as two:
        for client, (_, text) in ((one, removed), (two, expired)):
            assert client.post(SESSION, json={"token": text}).status_code == 201
        # When
        site.tokens.remove(removed[0].id)
        over = expired[0].model_copy(update={"expires_ms": 1}).model_dump_json()
        raw = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
        raw.hset("{" + site.settings.namespace + "}:callers", expired[0].id, over)
        # Then
        for client in (one, two):
            problem(client.get(JOBS), 401, "unauthorized")


def test_a_session_that_is_used_goes_on(site: Site, page: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a session of which little is left
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    key = "{" + site.settings.namespace + "}:" + sessions._key(page.cookies[COOKIE])
    client.expire(key, 100)
    # When it is used within the minute, it is left as it is
    page.get(SESSION)
    assert client.ttl(key) <= 100
    # And afterwards it is prolonged
    monkeypatch.setattr(sessions, "SLIDE_S", -1)
    page.get(SESSION)
    assert client.ttl(key) > 100
    # And one that nobody used in time is over
    client.pexpire(key, 1)
    until(lambda: not client.exists(key))
    problem(page.get(SESSION), 401, "unauthorized")


@pytest.mark.parametrize("token", ["x", "farm_000000000000_" + "A" * 43, "é"])
def test_a_wrong_token_begins_no_session(site: Site, token: str) -> None:
    before = kept(site)
    with site.anonymous() as client:
        answer = client.post(SESSION, json={"token": token})
        problem(answer, 401, "unauthorized")
        assert "set-cookie" not in answer.headers
        problem(client.post(SESSION, json={"token": ""}), 422, "invalid_field")
        problem(client.post(SESSION, json={}), 422, "invalid_field")
        problem(client.post(SESSION, data={"token": token}), 415, "bad_media_type")
    assert kept(site) == before


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "a*b", "\u00e9" * 43])
def test_a_wrong_cookie_is_nobodys(site: Site, cookie: str) -> None:
    with site.anonymous() as client:
        problem(client.get(JOBS, headers={"Cookie": f"{COOKIE}={cookie}".encode()}), 401, "unauthorized")


def test_a_token_beside_the_cookie_decides(site: Site, page: httpx2.Client) -> None:
    # A program's calls need no second word, whatever cookies its library keeps
    del page.headers["X-CSRF-Token"]
    answer = page.get(SESSION, headers={"Authorization": f"Bearer {site.token('sue')}"})
    assert (answer.json()["owner"], answer.json()["csrf_token"]) == ("sue", None)
    problem(page.delete(SESSION, headers={"Authorization": f"Bearer {site.token('sue')}"}), 404, "not_found")


def test_without_tokens_everybody_is_this_machines_user(site: Site) -> None:
    with open_site(site.settings, auth=False) as open_farm, open_farm.anonymous() as client:
        for answer in (client.get(SESSION), client.post(SESSION, json={"token": "whatever"})):
            assert (answer.json()["owner"], answer.json()["csrf_token"]) == ("local", None)
            assert "set-cookie" not in answer.headers
