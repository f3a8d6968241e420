"""Does whatever is sent get an answer that is no failure of the farm's?"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.stage import kinds
from tests.api.conftest import Site, post_raw

CALM = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
EDGES = st.sampled_from(
    [0, -1, 1, 2**53, 2**63, -(2**70), 0.0, -0.0, 1e-320, 1e308, True, False, None, "", "x", "\ud800", "\x00", "../..",
     "sha256:" + "0" * 64, "txt", "hires", "http://169.254.169.254/", "file:///etc/passwd", "bytes:" + "0" * 64, [], {}]
)  # fmt: skip
JSON = st.recursive(
    EDGES | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "chain", "prompt", "negative_prompt", "seed", "fit", "exact", "reuse", "parameters", "image", "count", "sweep",
    "lane", "priority", "deadline_s", "self", "idempotency_key",
]  # fmt: skip
FIELDS = sorted({name for kind in kinds().values() for name in kind.model_fields} | {"0.seed", "9.seed", "steps", "."})
STAGE = st.fixed_dictionaries(
    {"kind": st.sampled_from([*kinds(), "nope"])}, optional={name: JSON for name in FIELDS if name not in (".", "kind")}
)
SOME_STAGE = st.one_of(STAGE, st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), JSON)
CHAIN = st.dictionaries(st.sampled_from([*NAMES, "stages"]), JSON, max_size=2).flatmap(
    lambda rest: st.lists(SOME_STAGE, max_size=3).map(lambda stages: {**rest, "stages": stages})
)
ASK = st.fixed_dictionaries(
    {"chain": st.one_of(st.just("txt"), CHAIN, JSON)},
    optional={
        **{name: JSON for name in NAMES if name not in ("chain", "count")},
        "parameters": st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3) | JSON,
        "sweep": st.lists(st.dictionaries(st.sampled_from(FIELDS), st.lists(JSON, max_size=2), max_size=2), max_size=2),
        "count": st.sampled_from([1, 2, 0, "1", 10**9]),
    },
)


@CALM
@given(ask=ASK)
def test_no_request_makes_the_farm_fail(ada: httpx2.Client, ask: dict[str, Any]) -> None:
    for path in ("/api/v1/jobs/dry-run", "/api/v1/jobs"):
        answer = post_raw(ada, path, json.dumps(ask))
        assert answer.status_code in (200, 201, 400, 409, 413, 422), (answer.text, ask)
        if answer.status_code > 299:
            assert answer.headers["content-type"] == "application/problem+json"


def is_object(body: bytes) -> bool:
    """Whether it is JSON that asks for something, if only for what nothing is said of: `{}` is a whole ask."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


@CALM
@given(body=st.binary(max_size=200).filter(lambda body: not is_object(body)))
def test_no_body_makes_the_farm_fail(ada: httpx2.Client, body: bytes) -> None:
    for path in ("/api/v1/jobs", "/api/v1/uploads"):
        kind = "application/json" if path.endswith("jobs") else "image/png"
        assert post_raw(ada, path, body, **{"Content-Type": kind}).status_code in (400, 415, 422)


@CALM
@given(name=st.text(max_size=40), value=st.text(max_size=40))
def test_no_address_makes_the_farm_fail(ada: httpx2.Client, name: str, value: str) -> None:
    part, query = (quote(text.encode("utf-8", "surrogatepass"), safe="") for text in (name, value))
    for path in (
        f"/api/v1/jobs/{part}",
        f"/api/v1/jobs/{part}/artifacts/{query}",
        f"/api/v1/runs/{part}",
        f"/api/v1/stages/{part}",
        f"/api/v1/jobs?cursor={query}",
        f"/api/v1/jobs?run={query}&state={part}",
        f"/api/v1/jobs?run={query}",
        f"/{part}",
    ):
        assert ada.get(path).status_code in (200, 404, 422), path
    for path in (f"/api/v1/workers/{part}/drain", f"/api/v1/jobs/{part}/cancel"):
        assert ada.post(path).status_code in (403, 404), path


@pytest.mark.parametrize(
    "name", ["Idempotency-Key", "Last-Event-ID", "Range", "If-None-Match", "Accept", "X-Forwarded-For"]
)
def test_no_header_makes_the_farm_fail(site: Site, ada: httpx2.Client, name: str) -> None:
    for value in (b"x", b"\xff\xfe", b"a" * 4000, b"bytes=0-" + b"0-," * 500):
        answer = ada.get("/api/v1/jobs", headers={name.encode(): value})
        assert answer.status_code in (200, 422), (name, value, answer.text)
