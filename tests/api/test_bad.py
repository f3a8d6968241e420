"""Is every bad input refused over HTTP as everywhere else, without a trace, and without memory that stays?

The inputs are those of `tests/test_bad_inputs`, where they come through Python and the command line, and those that
only the network has.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import psutil
import pytest

from farm.api.guard import MAX_BODY_BYTES
from tests.api.conftest import Site, keys_in_redis, locs, post_raw, problem
from tests.api.test_auth import served
from tests.test_bad_inputs import FILES, IMAGES, OPTIONS, PARAMETERS
from tests.test_image import bomb
from tests.test_store import keys

JOBS, UPLOADS = "/api/v1/jobs", "/api/v1/uploads"
OWN = {"prompt", "negative_prompt", "seed", "fit", "exact", "reuse"}
MAX_GROWN_BYTES = 24 << 20
"""What a process may keep of 200 MiB of bad inputs: an allocator's slack."""


def trace(site: Site) -> tuple[set[bytes], set[str]]:
    """Every key of the farm's, in Redis and in S3."""
    return keys_in_redis(site), set(keys(site.farm.store))


@pytest.fixture(scope="module")
def vera(site: Site) -> Iterator[httpx2.Client]:
    """A caller."""
    with site.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _no_trace(site: Site, vera: httpx2.Client) -> Iterator[None]:
    """Nothing that a test of this module sends leaves anything."""
    before = trace(site)
    yield
    assert trace(site) == before


def ask(given: dict[str, Any]) -> dict[str, Any]:
    """The request that says what Python says as `run(**given)`."""
    own = {name: value for name, value in given.items() if name in OWN}
    return {"chain": "hires", **own, "parameters": {name: value for name, value in given.items() if name not in OWN}}


@pytest.mark.parametrize(("given", "code", "loc", "told"), PARAMETERS, ids=[str(row[0])[:40] for row in PARAMETERS])
def test_an_impossible_parameter_is_refused(
    vera: httpx2.Client, given: dict[str, Any], code: str, loc: str, told: str
) -> None:
    for path in (JOBS, f"{JOBS}/dry-run"):
        answer = post_raw(vera, path, json.dumps(ask(given)))
        if re.search("NaN|Infinity", json.dumps(given)):  # which JSON does not have
            problem(answer, 400, "invalid_json")
            continue
        found = problem(answer, 422, code)
        assert loc in {one for one, _ in locs(found)}
        assert told in found["detail"] or len(found["detail"]) >= 499


# 7.0 is an integer to JSON Schema, and so to the API.
@pytest.mark.parametrize("name", sorted(set(FILES) - {"seed float.json"}))
def test_a_bad_chain_file_is_refused_as_a_body(vera: httpx2.Client, name: str) -> None:
    # Given one of the files that are no chain, as what it would be over HTTP
    text = FILES[name][0]
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for body in (data, b'{"chain": ' + data + b"}"):
        answer = post_raw(vera, JOBS, body)
        assert answer.status_code in (400, 413, 422)
        problem(answer, answer.status_code, answer.json()["code"])


@pytest.mark.parametrize(("name", "values"), [row[:2] for row in OPTIONS if row[0] != "idempotency_key"])
def test_an_impossible_option_is_refused(vera: httpx2.Client, name: str, values: list[Any]) -> None:
    for value in values:
        if value is None:  # which says that nothing is asked
            continue
        answer = post_raw(vera, JOBS, json.dumps({"chain": "txt", name: value}))
        if isinstance(value, float) and not abs(value) < float("inf"):
            problem(answer, 400, "invalid_json")
        else:
            assert (name, "invalid_field") in locs(problem(answer, 422, "invalid_field")), value


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused(vera: httpx2.Client, name: str) -> None:
    data, code = IMAGES[name]
    status, told = (413, "body_too_large") if code == "too_large" else (422, code)
    for kind in ("image/png", "image/jpeg", "application/octet-stream"):
        problem(vera.post(UPLOADS, content=data, headers={"Content-Type": kind}), status, told)


@pytest.mark.parametrize(
    ("chain", "loc", "code"),
    [
        ([{"kind": "upscale"}, {"kind": "text2img"}], "image", "no_image"),
        ([{"kind": "img2img"}], "image", "no_image"),
        ([{"kind": "text2img"}] * 9, "stages", "bad_length"),
        ([], "stages", "bad_length"),
        ([{"kind": "text2img"}, {"kind": "text2img"}], "stages.1", "medium_mismatch"),
        ([{"kind": "text2img", "checkpoint": "tiny-x4"}], "stages.0.checkpoint", "wrong_checkpoint"),
        ([{"kind": "text2img", "webhook": "http://127.0.0.1"}], "stages.0.webhook", "unknown_field"),
    ],
)
def test_a_chain_that_does_not_fit_is_refused(
    vera: httpx2.Client, chain: list[dict[str, Any]], loc: str, code: str
) -> None:
    found = problem(vera.post(JOBS, json={"chain": {"stages": chain}}), 422, code)
    assert loc in {one for one, _ in locs(found)}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "line 1, column 1: the body ends too early"),
        (b'{"prompt": "a', "line 1, column 12: unterminated string"),
        (b'{\n "chain": {"stages": [', "line 2, column 23: the body ends too early"),
        (b'{"seed": 1, "seed" 2}', "line 1, column 20: expecting ':' delimiter"),
        (b'{"seed": "\\q-secret"}', "line 1, column 11: invalid \\escape"),
        (b'{"seed": "a\x01"}', "line 1, column 12: invalid control character"),
        (b"{} {}", "line 1, column 4: extra data"),
        (b'{"prompt": "\\"NaN", "a": [1,\n NaN]}', "line 2, column 2: the body has NaN, which is no JSON number"),
        (b'{"seed": -Infinity}', "line 1, column 10: the body has -Infinity, which is no JSON number"),
        (b'{"seed":\n 12, "x": 1e999-3}', "line 2, column 11: a number beyond what 64 bits hold"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "line 1, column 10: a number of too many digits"),
        (b"\xef\xbb\xbf{}", "line 1, column 1: a byte order mark; send UTF-8 without one"),
        ("{'ä".encode() + b"\xff", "line 1, column 4: the body is not UTF-8"),
        (b"[" * 100_000, "the body has more than 32 lists and objects within each other"),
    ],
)
def test_a_body_that_is_no_json_is_told_where_and_why(vera: httpx2.Client, body: bytes, told: str) -> None:
    assert problem(post_raw(vera, JOBS, body), 400, "invalid_json")["detail"] == told


def test_a_preset_that_is_none_is_told_the_closest(vera: httpx2.Client) -> None:
    for name, near in (("hirez", "; did you mean hires?"), ("nope", "")):
        found = problem(vera.post(JOBS, json={"chain": name}), 422, "unknown_preset")["detail"]
        assert found.startswith(f"chain: no chain of this name{near}; choose one of ")
        assert "txt" in found


def test_a_form_is_told_to_be_the_raw_file(vera: httpx2.Client) -> None:
    answer = vera.post(UPLOADS, files={"file": b"x"})
    assert "the raw file as the body, not a form" in problem(answer, 415, "bad_media_type")["detail"]


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\x7f", "\x85", "\r", "\ud800"])
@pytest.mark.parametrize("field", ["prompt", "chain", "image", "lane"])
def test_texts_that_are_none_are_refused(vera: httpx2.Client, field: str, text: str) -> None:
    answer = post_raw(vera, JOBS, json.dumps({"chain": "txt", field: f"a{text}b"}))
    assert (field, "invalid_unicode") in locs(problem(answer, 422, "invalid_unicode"))


@pytest.mark.parametrize("text", ["\u202egnp.exe", "\u2066x", "\ufeffx", "\u200b" * 500, "a" + "\u0301" * 1999, "שלום"])
def test_texts_that_people_write_are_taken(vera: httpx2.Client, text: str) -> None:
    assert vera.post(f"{JOBS}/dry-run", json={"chain": "txt", "prompt": text}).status_code == 200


def hostile() -> Iterator[tuple[str, bytes, str, int]]:
    """All of them: address, body, its type, and how it is refused (0: somehow)."""
    js = "application/json"
    for given, *_ in PARAMETERS:
        yield JOBS, json.dumps(ask(given)).encode(), js, 0
    for text in (row[0] for name, row in FILES.items() if name != "seed float.json"):
        yield JOBS, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), js, 0
    for data, _ in IMAGES.values():
        yield UPLOADS, data, "image/png", 0
    yield UPLOADS, bomb(8000, 8000), "image/png", 413
    yield UPLOADS, b"\x89PNG\r\n\x1a\n" + os.urandom(24 << 20), "image/png", 422
    yield UPLOADS, bytes(26 << 20), "image/png", 413
    yield JOBS, b"[" * MAX_BODY_BYTES, js, 400
    yield JOBS, b'{"a":' * (MAX_BODY_BYTES // 5), js, 400
    yield JOBS, b'{"prompt": "' + b"a" * (MAX_BODY_BYTES - 20) + b'"}', js, 422
    yield JOBS, b'{"parameters": {' + b",".join(b'"%d": 1' % n for n in range(80_000)) + b"}}", js, 400
    yield JOBS, b'{"parameters": {' + b",".join(b'"%d": 1' % n for n in range(1000)) + b"}}", js, 422
    yield JOBS, b'{"sweep": [{"seed": [' + b"1," * 400_000 + b"1]}]}", js, 422
    yield JOBS, b'{"seed": ' + b"9" * 1_000_000 + b"}", js, 400
    yield "/api/v1/session", b'{"token": "' + b"x" * 3000 + b'"}', js, 422
    yield "/api/v1/session", b'{"token": "' + b"x" * 1_000_000 + b'"}', js, 413


def test_what_is_refused_leaves_no_memory_behind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an API in a process of its own, which has seen all of it, so that its threads have their buffers
    monkeypatch.setenv("FARM_RATE_PER_S", "0")
    headers = {"Authorization": f"Bearer {site.token('wes')}"}
    with (
        served(site.settings) as (process, url, _),
        httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):

        def send() -> None:
            for path, body, kind, status in hostile():
                answer = client.post(path, content=body, headers={"Content-Type": kind})
                assert answer.status_code == status or (not status and 400 <= answer.status_code < 500), answer.text

        memory = psutil.Process(process.pid).memory_info
        send()
        # When it comes again and again, Then at some time no more is kept: the buffers of all threads are there by then
        held, grown = memory().rss, []
        while not grown or grown[-1] >= MAX_GROWN_BYTES:
            assert len(grown) < 6, grown
            send()
            held, before = memory().rss, held
            grown.append(held - before)
        assert client.get("/readyz").status_code == 200
