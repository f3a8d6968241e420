"""The real API on a free port, over a real Valkey and a real S3, and callers with tokens."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx2
import pytest
import redis
import uvicorn
from PIL import Image

from farm.api.app import make_app
from farm.api.wire import listening
from farm.client import Farm
from farm.ledger import FAN
from farm.scripts import Server
from farm.settings import Settings
from farm.tokens import Tokens
from tests.conftest import Valkey, free_port, own_bucket
from tests.e2e.rig import until
from tests.test_cli import Hand, record_tiny

Json = dict[str, Any]
PNG = {"Content-Type": "image/png"}


@dataclass
class Site:
    """A served farm. `farm` reaches it past the API."""

    url: str
    settings: Settings
    farm: Farm
    tokens: Tokens

    def token(self, owner: str, *scopes: str) -> str:
        """A token's text."""
        return self.tokens.create(owner, scopes or ("read", "submit"))[1]

    def client(self, owner: str = "", *scopes: str) -> httpx2.Client:
        """A caller with a token of its own."""
        text = self.token(owner or f"o{secrets.token_hex(4)}", *scopes)
        return self.anonymous(Authorization=f"Bearer {text}")

    def empty(self) -> None:
        """Cancels whatever waits."""
        for state in ("queued", "running", "paused"):
            for record in self.farm.jobs(state=state, limit=1000):
                self.farm.ledger.cancel(record.job)

    def anonymous(self, **headers: str) -> httpx2.Client:
        """A caller without a token."""
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)


@contextmanager
def serving(settings: Settings, port: int = 0, **how: Any) -> Iterator[str]:
    """The URL of the API while it runs, in a thread of this process. It has to end by itself, whoever listens."""
    port = port or free_port()
    app = make_app(settings, **how)
    config = listening(app, "127.0.0.1", port, log_level="error", timeout_graceful_shutdown=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), 60)
        assert server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def open_site(settings: Settings, through: Settings | None = None, **how: Any) -> Iterator[Site]:
    """A served farm on the servers of `settings`, which the API reaches by `through`."""
    server = Server(settings, FAN)
    with Farm(settings) as farm, own_bucket(farm.store):
        if not farm.settings.models_dir.exists():
            record_tiny(farm.catalog)
        with serving(through or settings, **how) as url:
            yield Site(url, settings, farm, Tokens(server))
    server.close()


@pytest.fixture(scope="module")
def site_settings(shared_valkey: Valkey, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the module's farm, with a namespace and a bucket of its own."""
    name = secrets.token_hex(6)
    data = tmp_path_factory.mktemp("site")
    free = {"rate_per_s": 0, "login_failures": 0}
    return Settings.load(redis_url=shared_valkey.url, namespace=name, bucket=f"test-{name}", data=data, **free, **s3)


@pytest.fixture(scope="module")
def site(site_settings: Settings) -> Iterator[Site]:
    """The module's served farm; event streams show twice a second that they are alive."""
    with open_site(site_settings, heartbeat_s=0.5) as found:
        yield found


@pytest.fixture
def ada(site: Site) -> Iterator[httpx2.Client]:
    """A caller who may read and submit."""
    with site.client() as client:
        yield client


@pytest.fixture
def hand(site: Site) -> Iterator[Hand]:
    """A worker by hand, on a farm where nothing else waits, also afterwards."""
    site.empty()
    yield Hand(site.settings, site.farm.store)
    site.empty()


def txt(**given: Any) -> Json:
    """A request for one picture that nobody asked for before."""
    return {"chain": "txt", "prompt": "a pear", "seed": secrets.randbits(40), **given}


def made(answer: httpx2.Response) -> Json:
    """What a submit that succeeded made."""
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()
    return found


def problem(answer: httpx2.Response, status: int, code: str) -> Json:
    """The problem that an answer tells, with everything that each problem has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: Json = answer.json()
    assert (found["status"], found["code"]) == (status, code), found
    assert found["type"] == f"urn:latent-farm:problem:{code}"
    assert found["title"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert "127.0.0.1" not in answer.text
    return found


def keys_in_redis(site: Site) -> set[bytes]:
    """Every key of the farm's in Redis, but what the API writes by itself from time to time."""
    client = redis.Redis.from_url(site.settings.redis_url.get_secret_value())
    found = set(client.keys("*" + site.settings.namespace + "*"))
    return {key for key in found if not re.search(b":(webhooks|reap):", key)}


def locs(found: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Which fields a problem names, each with its code."""
    return {(one["loc"], one["code"]) for one in found["errors"]}


def picture(colour: str = "teal", size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    """An image file."""
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def post_raw(client: httpx2.Client, path: str, body: bytes | str, **headers: str) -> httpx2.Response:
    """A call with a body as it is."""
    content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    return client.post(path, content=content, headers={"Content-Type": "application/json", **headers})
