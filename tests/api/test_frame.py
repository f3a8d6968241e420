"""What holds for every call: errors as problems, sizes, headers, and nothing repeated of what was sent?"""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import redis

from farm.api.guard import MAX_BODY_BYTES
from farm.stage import kinds
from tests.api.calls import DOCUMENT
from tests.api.conftest import Site, keys_in_redis, locs, post_raw, problem, txt

JOBS = "/api/v1/jobs"


def test_health_needs_no_token(site: Site) -> None:
    with site.anonymous() as client:
        for path in ("/healthz", "/readyz"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_api_describes_itself(site: Site) -> None:
    # When
    with site.anonymous() as client:
        found = client.get("/api/v1/openapi.json").json()
    # Then every call, and the error that it may answer with, is there
    assert {"/api/v1/jobs", "/api/v1/jobs/{job}/events", "/api/v1/uploads", "/healthz"} <= set(found["paths"])
    create = found["paths"]["/api/v1/jobs"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobAsk")
    assert "application/problem+json" in create["responses"]["422"]["content"]
    assert {"Problem", "JobAsk", "JobView"} <= set(found["components"]["schemas"])


def test_every_call_is_summed_up_in_a_few_words() -> None:
    told = [one["summary"] for known in DOCUMENT["paths"].values() for one in known.values()]
    assert len(told) == len(set(told))
    assert all(" " in one and len(one) < 90 for one in told), told


@pytest.mark.parametrize("path", ["/healthz", JOBS, "/nowhere", "/api/v1/openapi.json"])
def test_every_answer_has_the_strict_headers(site: Site, path: str) -> None:
    with site.anonymous() as client:
        headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "private, no-store"
    assert len(headers["x-request-id"]) == 16
    assert "server" not in headers
    # And over TLS that browsers stay there
    assert "strict-transport-security" not in headers
    with site.anonymous(**{"X-Forwarded-Proto": "https"}) as client:
        assert client.get(path).headers["strict-transport-security"].startswith("max-age=")


def test_unknown_addresses_and_methods_are_problems(site: Site, ada: httpx2.Client) -> None:
    for path in ("/nowhere", "/api/v1/nowhere"):
        problem(ada.get(path), 404, "not_found")
    # To a browser it is the page that says so, where that is built; the API's own addresses stay the API's
    problem(ada.get("/api/v1/nowhere", headers={"Accept": "text/html"}), 404, "not_found")
    problem(ada.put(JOBS), 405, "method_not_allowed")
    problem(ada.request("TRACE", JOBS), 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("", 400, "invalid_json"),
        ("{", 400, "invalid_json"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        ('{"seed": NaN}', 400, "invalid_json"),
        ('{"deadline_s": 1e999}', 400, "invalid_json"),
        ('{"deadline_s": -Infinity}', 400, "invalid_json"),
        ('{"seed": ' + "9" * 5000 + "}", 400, "invalid_json"),
        ("[" * 100_000, 400, "invalid_json"),
        ('{"chain": ' + "[" * 40 + "]" * 40 + "}", 400, "invalid_json"),
        ('{"seed": 1, "seed": 2}', 400, "duplicate_key"),
        ('{"prompt": "\\ud800"}', 422, "invalid_unicode"),
        ('{"prompt": "a\\u0000b"}', 422, "invalid_unicode"),
        ('{"\\u0007": 1}', 422, "invalid_unicode"),
        ("[]", 422, "invalid_field"),
        ("null", 422, "invalid_field"),
    ],
)
def test_bodies_that_are_no_json_are_refused(
    site: Site, ada: httpx2.Client, body: bytes | str, status: int, code: str
) -> None:
    before = keys_in_redis(site)
    problem(post_raw(ada, JOBS, body), status, code)
    assert keys_in_redis(site) == before


@pytest.mark.parametrize(
    ("given", "loc", "code"),
    [
        ({"nope": 1}, "nope", "unknown_field"),
        ({"seed": "7"}, "seed", "invalid_field"),
        ({"seed": True}, "seed", "invalid_field"),
        ({"seed": 2**70}, "seed", "invalid_field"),
        ({"seed": -1}, "seed", "invalid_field"),
        ({"count": 0}, "count", "invalid_field"),
        ({"count": 10**6}, "count", "invalid_field"),
        ({"priority": 101}, "priority", "invalid_field"),
        ({"lane": "fast"}, "lane", "invalid_field"),
        ({"deadline_s": 1e12}, "deadline_s", "invalid_field"),
        ({"chain": "nope"}, "chain", "unknown_preset"),
        ({"chain": "/etc/passwd"}, "chain", "unknown_preset"),
        ({"chain": "chain.yaml"}, "chain", "unknown_preset"),
        ({"chain": {}}, "stages", "bad_length"),
        ({"chain": {"stages": [{"kind": "nope"}]}}, "stages.0.kind", "unknown_kind"),
        ({"prompt": "a" * 2001}, "prompt", "invalid_field"),
        ({"parameters": {"width": 511}}, "stages.0.width", "bad_size"),
        ({"parameters": {"width": 2**63}}, "stages.0.width", "bad_size"),
        ({"parameters": {"num_inference_steps": 0}}, "stages.0.num_inference_steps", "invalid_field"),
        ({"parameters": {"checkpoint": "../x"}}, "stages.0.checkpoint", "unknown_checkpoint"),
        ({"parameters": {"loras": 1, "chain": 1}}, "chain", "unknown_field"),
        ({"parameters": {"self": 1}}, "self", "unknown_field"),
        ({"image": "sha256:" + "0" * 64}, "image", "bad_image"),
        ({"image": "/etc/passwd"}, "image", "bad_image"),
        ({"sweep": [{"prompt": ["a"], "seed": [1, 2]}]}, "sweep.0", "invalid_field"),
        ({"sweep": [{}]}, "sweep.0", "invalid_field"),
        ({"sweep": [{"prompt": []}]}, "sweep.0", "invalid_field"),
        ({"sweep": [{"seed": list(range(200))}, {"strength": [0.5] * 200}]}, "count", "invalid_field"),
        ({"sweep": [{"nope": [1]}]}, "nope", "unknown_field"),
        ({"sweep": [{"seed": "9..0"}]}, "sweep.0.seed", "invalid_field"),
        ({"sweep": [{"seed": "0..10000"}]}, "sweep.0.seed", "invalid_field"),
        ({"sweep": [{"seed": "0..199"}, {"strength": [0.5] * 200}]}, "count", "invalid_field"),
    ],
)
def test_wrong_fields_are_named_and_leave_no_trace(
    site: Site, ada: httpx2.Client, given: dict[str, Any], loc: str, code: str
) -> None:
    before = keys_in_redis(site)
    for path in (JOBS, f"{JOBS}/dry-run"):
        found = problem(ada.post(path, json=txt(**given)), 422, code)
        assert (loc, code) in locs(found), found
    assert keys_in_redis(site) == before


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("inpaint", {"mask": "/etc/passwd"}),
        ("inpaint", {"mask": "http://127.0.0.1:1/x.png"}),
        ("inpaint", {"mask": "bytes:" + "0" * 64}),
        ("inpaint", {"mask": "sha256:" + "0" * 64}),
    ],
)
def test_no_file_and_no_address_is_read(site: Site, ada: httpx2.Client, kind: str, given: dict[str, Any]) -> None:
    answer = ada.post(JOBS, json={"chain": {"stages": [{"kind": kind, **given}]}})
    assert ("stages.0.mask", "bad_image") in locs(problem(answer, 422, "bad_image"))


SECRET = "<script>alert('pwned')</script>"


@pytest.mark.parametrize(
    "given",
    [
        {"chain": SECRET},
        {"image": SECRET},
        {SECRET: 1},
        {"lane": SECRET},
        {"parameters": {"checkpoint": SECRET}},
        {"parameters": {SECRET: 1}},
        {"parameters": {"scheduler": SECRET}},
        {"chain": {"stages": [{"kind": SECRET}]}},
        {"chain": {"stages": [{"kind": "text2img", SECRET: SECRET}]}},
    ],
)
def test_what_was_sent_is_not_repeated(ada: httpx2.Client, given: dict[str, Any]) -> None:
    answer = ada.post(JOBS, json={"chain": "txt", **given})
    assert answer.status_code == 422
    # A field that nobody knows is named by its letters, so that its sender finds it
    assert not {"<", ">", "'", "(", ")"} & set(answer.json()["detail"].partition(":")[0])
    assert "script>" not in answer.text


def test_bodies_of_another_type_or_size_are_refused(ada: httpx2.Client) -> None:
    # A type that is not taken, one that is packed
    problem(post_raw(ada, JOBS, "{}", **{"Content-Type": "text/plain"}), 415, "bad_media_type")
    problem(post_raw(ada, JOBS, "{}", **{"Content-Encoding": "gzip"}), 415, "bad_media_type")
    # Too large, said before
    problem(post_raw(ada, JOBS, b" " * (MAX_BODY_BYTES + 1)), 413, "body_too_large")

    # Too large, not said before
    def parts() -> Any:
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    answer = ada.post(JOBS, content=parts(), headers={"Content-Type": "application/json"})
    problem(answer, 413, "body_too_large")


def test_a_failure_inside_tells_nothing_but_its_code(site: Site, ada: httpx2.Client) -> None:
    # Given a ledger whose keys hold what they cannot
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    client.set("{" + site.settings.namespace + "}:run:broken", "secret")
    # When
    found = problem(ada.get("/api/v1/runs/broken"), 500, "internal")
    # Then
    assert found["detail"] == found["title"] == "An error that nobody foresaw."


def test_what_needs_a_token_says_so_in_the_description(site: Site) -> None:
    with site.anonymous() as client:
        found = client.get("/api/v1/openapi.json").json()
    schemes = found["components"]["securitySchemes"]
    assert {name: one["in"] if one["type"] == "apiKey" else one["scheme"] for name, one in schemes.items()} == {
        "bearer": "bearer",
        "cookie": "cookie",
        "csrf": "header",
    }
    for path, calls in found["paths"].items():
        for method, call in calls.items():
            known = path.startswith("/api/") and call["operationId"] != "session.begin"
            beside = {"cookie": []} if method == "get" else {"cookie": [], "csrf": []}
            assert call.get("security") == ([{"bearer": []}, beside] if known else None), path


def test_the_document_knows_the_stages_and_what_else_is_sent(site: Site) -> None:
    with site.anonymous() as client:
        found = client.get("/api/v1/openapi.json").json()
    schemas = found["components"]["schemas"]
    # Each kind is one of the stages, told apart by its word
    assert set(schemas["Stage"]["discriminator"]["mapping"]) == set(kinds())
    for kind, ref in schemas["Stage"]["discriminator"]["mapping"].items():
        fields = schemas[ref.rpartition("/")[2]]
        assert fields["properties"]["kind"]["const"] == kind
        assert set(kinds()[kind].model_fields) <= set(fields["properties"])
        assert "kind" in fields["required"]
    assert schemas["Chain"]["properties"]["stages"]["items"] == {"$ref": "#/components/schemas/Stage"}
    assert {"$ref": "#/components/schemas/Chain"} in schemas["JobAsk"]["properties"]["chain"]["anyOf"]
    # Headers and streams
    create = found["paths"][JOBS]["post"]
    assert [one["name"] for one in create["parameters"]] == ["Idempotency-Key"]
    events = found["paths"]["/api/v1/events"]["get"]
    assert {one["name"]: one["in"] for one in events["parameters"]} == {"Last-Event-ID": "header", "last": "query"}
    assert set(events["responses"]["200"]["content"]) == {"text/event-stream"}
    assert create["responses"]["429"]["headers"]["Retry-After"]["required"]
    # And every call has a name of its own
    names = [call["operationId"] for calls in found["paths"].values() for call in calls.values()]
    assert len(names) == len(set(names))


def test_the_examples_of_the_document_are_possible(site: Site, ada: httpx2.Client) -> None:
    found = ada.get("/api/v1/openapi.json").json()
    examples = found["paths"][JOBS]["post"]["requestBody"]["content"]["application/json"]["examples"]
    counts = [ada.post(f"{JOBS}/dry-run", json=one["value"]).json()["count"] for one in examples.values()]
    assert counts == [1, 8, 1]


def test_an_integer_may_be_written_as_any_number(ada: httpx2.Client) -> None:
    told = post_raw(ada, f"{JOBS}/dry-run", '{"chain": "txt", "seed": 7.0, "count": 2e0, "parameters": {"steps": 3.0}}')
    assert (told.json()["seed"], told.json()["count"], told.json()["steps"]) == (7, 2, 6)
    problem(post_raw(ada, f"{JOBS}/dry-run", '{"chain": "txt", "seed": 7.5}'), 422, "invalid_field")


@pytest.mark.parametrize(
    ("path", "methods"),
    [(JOBS, "GET, POST"), (f"{JOBS}/x", "GET, PATCH"), (f"{JOBS}/dry-run", "POST"), ("/api/v1/openapi.json", "GET")],
)
def test_a_wrong_method_is_told_the_right_ones(ada: httpx2.Client, path: str, methods: str) -> None:
    answer = ada.put(path)
    problem(answer, 405, "method_not_allowed")
    assert set(methods.split(", ")) <= set(answer.headers["allow"].split(", "))
