"""Does an admin give and take tokens over HTTP, and nobody else?"""

from __future__ import annotations

import pytest

from tests.api.conftest import Json, Site, problem

TOKENS = "/api/v1/tokens"


def test_a_token_is_made_used_and_ended(site: Site) -> None:
    with site.client("root", "admin") as root:
        # When
        answer = root.post(TOKENS, json={"owner": "cleo", "scopes": ["read"], "life_s": 3600, "max_open_jobs": 3})
        # Then it is told once, and holds
        assert answer.status_code == 201
        told = answer.json()
        assert (told["owner"], told["scopes"], told["max_open_jobs"]) == ("cleo", ["read"], 3)
        with site.anonymous(Authorization=f"Bearer {told['token']}") as cleo:
            assert cleo.get("/api/v1/session").json()["owner"] == "cleo"
            (listed,) = [one for one in root.get(TOKENS).json() if one["id"] == told["id"]]
            assert listed == {name: value for name, value in told.items() if name != "token"}
            # And its owner can make none
            problem(cleo.get(TOKENS), 403, "forbidden")
            problem(cleo.post(TOKENS, json={"owner": "eve", "scopes": ["admin"]}), 403, "forbidden")
            # When it is ended, Then it holds no more
            assert root.delete(f"{TOKENS}/{told['id']}").status_code == 204
            problem(cleo.get("/api/v1/session"), 401, "unauthorized")
        problem(root.delete(f"{TOKENS}/{told['id']}"), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"owner": "Ada", "scopes": ["read"]}, {"owner": "", "scopes": ["read"]}, {"owner": "ada", "scopes": []},
        {"owner": "ada", "scopes": ["root"]}, {"owner": "ada", "scopes": ["read"], "life_s": 0},
        {"owner": "ada", "scopes": ["read"], "life_s": 1e12}, {"owner": "ada", "scopes": ["read"], "max_open_jobs": -1},
        {"owner": "ada\n", "scopes": ["read"]},
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused(site: Site, body: Json) -> None:
    with site.client("root", "admin") as root:
        before = {one["id"] for one in root.get(TOKENS).json()}
        problem(root.post(TOKENS, json=body), 422, "invalid_field")
        assert {one["id"] for one in root.get(TOKENS).json()} == before


def test_the_page_is_there_for_everybody_and_says_nothing(site: Site) -> None:
    with site.anonymous() as client:
        for path in ("/", "/queue", "/jobs/x", "/gallery", "/sweeps", "/workers", "/settings"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "script-src 'self';" in answer.headers["content-security-policy"]
            assert answer.headers["content-type"].startswith("text/html")
        scripts = [part.partition('"')[0] for part in answer.text.split('src="')[1:]]
        assert scripts
        for path in scripts:
            packed = client.get(path)
            assert packed.headers["content-encoding"] == "gzip"
            assert "immutable" in packed.headers["cache-control"]
            plain = client.get(path, headers={"Accept-Encoding": "identity"})
            assert "content-encoding" not in plain.headers
            assert plain.content == packed.content
        # And nothing else lies there
        for path in ("/assets/nothing.js", "/assets/..%2f..%2fbuild.py", "/queue/x", "/index.html", "/package.json"):
            problem(client.get(path), 404, "not_found")
