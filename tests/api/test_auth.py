"""Who is let in, for what, and what do others see of it?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
import redis

from farm.errors import InvalidJob, NotFound, Unauthorized
from farm.ledger import FAN
from farm.scripts import Server
from farm.servers import environment
from farm.settings import Settings
from farm.tokens import Tokens
from tests.api.conftest import PNG, Site, made, open_site, picture, problem, txt
from tests.e2e.rig import ROOT, until
from tests.test_cli import Run, run  # noqa: F401 — a fixture

JOBS = "/api/v1/jobs"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic YTpi",
        "Bearer farm_000000000000_" + "A" * 43,
        "Bearer farm_*_x",
        "bearer \u00e9",
    ],
)
def test_without_a_token_that_holds_nothing_is_told(site: Site, header: str) -> None:
    with site.anonymous() as client:
        headers = {"Authorization": header.encode("utf-8")} if header else {}
        for method, path in (("GET", JOBS), ("POST", JOBS), ("GET", "/api/v1/events"), ("GET", "/api/v1/catalog")):
            answer = client.request(method, path, headers=headers)
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


def test_the_body_of_a_stranger_is_not_looked_at(site: Site) -> None:
    with site.anonymous() as client:
        problem(client.post(JOBS, content=b"{", headers={"Content-Type": "application/json"}), 401, "unauthorized")


def test_a_wrong_secret_an_old_token_and_a_removed_one_are_told_alike(site: Site) -> None:
    # Given
    good, gone = site.token("dot"), site.token("dot")
    site.tokens.remove(gone.split("_")[1])
    expired, old = site.tokens.create("dot", ["read"], 0.001)
    until(lambda: not expired.holds())
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    # When, Then
    for text in (wrong, old, gone):
        with site.anonymous(Authorization=f"Bearer {text}") as client:
            assert problem(client.get(JOBS), 401, "unauthorized")["detail"] == "the token is not known, or has expired"
    with site.anonymous(Authorization=f"Bearer {good}") as client:
        assert client.get(JOBS).status_code == 200


def test_only_a_hash_is_kept(site: Site) -> None:
    # Given
    text = site.token("eve")
    secret = text.rpartition("_")[2] if text.count("_") == 2 else text.split("_", 2)[2]
    # When all that Redis holds is looked at
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    kept = client.hgetall("{" + site.settings.namespace + "}:callers")
    # Then
    assert text.split("_")[1].encode() in kept
    assert not [value for value in kept.values() if secret.encode() in value]
    assert secret not in repr(site.tokens.all())


def test_scopes_are_what_a_token_may(site: Site) -> None:
    with site.client("fay", "read") as reader, site.client("fay", "submit") as submitter:
        # Given a job
        url = made(submitter.post(JOBS, json=txt()))["jobs"][0]["url"]
        # Then who submits may not look, and who looks may not submit or steer
        problem(submitter.get(url), 403, "forbidden")
        problem(submitter.get(JOBS), 403, "forbidden")
        assert reader.get(url).status_code == 200
        problem(reader.post(JOBS, json=txt()), 403, "forbidden")
        problem(reader.post("/api/v1/uploads", content=picture(), headers=PNG), 403, "forbidden")
        for call in ("cancel", "pause", "resume", "retry"):
            problem(reader.post(f"{url}/{call}"), 403, "forbidden")
        problem(reader.patch(url, json={"priority": 1}), 403, "forbidden")
        submitter.post(f"{url}/cancel")


def test_a_job_from_past_the_api_is_an_admins(site: Site, ada: httpx2.Client) -> None:
    # Given a job from the command line
    job = site.farm.render("a pear", chain="txt")
    # When, Then
    problem(ada.get(f"{JOBS}/{job.id}"), 404, "not_found")
    with site.client("root", "admin") as root:
        assert root.get(f"{JOBS}/{job.id}").json()["owner"] == ""
    job.cancel()


@pytest.mark.parametrize(
    ("owner", "scopes", "life_s"),
    [
        ("", ["read"], None),
        ("a/b", ["read"], None),
        ("A", ["read"], None),
        ("a" * 33, ["read"], None),
        ("a", [], None),
        ("a", ["root"], None),
        ("a", ["read"], 0),
        ("a", ["read"], 1e12),
    ],
)
def test_an_impossible_token_is_refused(site: Site, owner: str, scopes: list[str], life_s: float | None) -> None:
    with pytest.raises(InvalidJob):
        site.tokens.create(owner, scopes, life_s)
    with pytest.raises(InvalidJob, match="max_open_jobs"):
        site.tokens.create("ada", ["read"], max_open_jobs=-1)


def test_tokens_are_listed_and_removed(site: Site) -> None:
    # Given
    kept, text = site.tokens.create("gus", ["read", "admin"])
    old, _ = site.tokens.create("gus", ["read"], 0.001)
    until(lambda: not old.holds())
    # When, Then: one that has expired is gone
    assert [token for token in site.tokens.all() if token.owner == "gus"] == [kept]
    assert site.tokens.find(text) == kept
    site.tokens.remove(kept.id)
    with pytest.raises(Unauthorized):
        site.tokens.find(text)
    with pytest.raises(NotFound):
        site.tokens.remove(kept.id)


# ------------------------------------------------------------------------------------------- without tokens


@pytest.fixture(scope="module")
def open_farm(site_settings: Settings, site: Site) -> Iterator[Site]:
    """The same farm, served to whoever is on this machine."""
    with open_site(site_settings, auth=False) as found:
        yield found


def test_without_tokens_this_machine_may_do_all(open_farm: Site) -> None:
    with open_farm.anonymous() as client:
        url = made(client.post(JOBS, json=txt()))["jobs"][0]["url"]
        assert client.get(url).json()["owner"] == "local"
        assert client.post(f"{url}/cancel").json()["state"] == "cancelled"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8400"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_without_tokens_no_web_page_of_elsewhere_may_call(open_farm: Site, headers: dict[str, str]) -> None:
    with open_farm.anonymous(**headers) as client:
        problem(client.get(JOBS), 403, "forbidden")
        problem(client.post(f"{JOBS}/{'0' * 36}/cancel"), 403, "forbidden")


# ------------------------------------------------------------------------------------------- the command line


@contextmanager
def served(settings: Settings, *words: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """`farm serve` as a process: itself, its URL, and what it said."""
    env = {**os.environ, **environment(settings), "FARM_NAMESPACE": settings.namespace, "PYTHONUNBUFFERED": "1"}
    code = "import sys; from farm.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", *words],
        env=env, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    said: list[str] = []
    try:
        assert process.stderr
        for line in process.stderr:
            said.append(line.rstrip())
            if found := re.search(r"http://[\d.]+:\d+", line):
                with httpx2.Client(base_url=found[0], trust_env=False) as client:
                    until(lambda: _answers(client), 60, "an answer")
                yield process, found[0], said
                return
        raise AssertionError(said)
    finally:
        process.terminate()
        process.wait(30)


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def test_farm_serve_says_the_first_token_once(settings: Settings, s3_settings: Settings) -> None:
    # Given a farm that nobody has a token for
    from farm.store import Store

    Store(s3_settings).ensure_bucket()
    keys = ("bucket", "s3_endpoint", "s3_access_key", "s3_secret_key")
    settings = settings.model_copy(update={name: getattr(s3_settings, name) for name in keys})
    # When it is served, and served again
    with served(settings) as (process, url, said):
        (text,) = [line for line in said if line.startswith("farm_")]
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {text}"}, trust_env=False) as client:
            assert client.get(JOBS).json() == {"jobs": [], "next": None}
            assert client.get("/api/v1/queues").status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    with served(settings) as (_, _, again):
        # Then
        assert not [line for line in again if line.startswith("farm_")]


def test_other_addresses_need_tokens(
    run: Run,  # noqa: F811
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a farm without tokens
    monkeypatch.setenv("FARM_REDIS_URL", settings.redis_url.get_secret_value())
    # When it is to be served to other machines
    for words in (["--host", "::"], ["--host", "::", "--no-auth"], ["--host", "192.0.2.1", "--no-auth"]):
        found = run("--json", "serve", "--port", "0", *words)
        # Then it is refused
        assert (found.status, found.code) == (2, "usage")
    assert run("--json", "serve", "--host", "no.such.host.invalid").code == "usage"


def test_with_a_token_other_machines_may_call(settings: Settings, s3_settings: Settings) -> None:
    # Given a farm that somebody has a token for
    from farm.store import Store

    Store(s3_settings).ensure_bucket()
    keys = ("bucket", "s3_endpoint", "s3_access_key", "s3_secret_key")
    settings = settings.model_copy(update={name: getattr(s3_settings, name) for name in keys})
    server = Server(settings, FAN)
    text = Tokens(server).create("ada", ["read"])[1]
    server.close()
    # When it is served on every address of this machine
    with served(settings, "--host", "0.0.0.0") as (_, url, said):  # noqa: S104
        # Then no token is made, and the one that there is lets in, by whatever name the farm is called
        assert not [line for line in said if line.startswith("farm_")]
        with httpx2.Client(base_url=url, headers={"Host": "farm.example"}, trust_env=False) as client:
            problem(client.get(JOBS), 401, "unauthorized")
            assert client.get(JOBS, headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_tokens_share_no_key_with_the_ledger(site: Site) -> None:
    # A claim counts its tokens under a key of its own
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    site.token("ida")
    site.farm.ledger.claim(["none.none"], "w", "b")
    assert client.type("{" + site.settings.namespace + "}:callers") == b"hash"
    assert isinstance(site.tokens, Tokens)
