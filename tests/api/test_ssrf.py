"""Does no text that a caller sends, wherever it stands, make the farm open a connection?

There are no URL inputs. A listener waits where the addresses lead, and Python's own audit events tell of every address
that any code of this process, the API's among it, looks up or connects to.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.api.calls import DOCUMENT, placed, text_fields, whole
from tests.api.conftest import Site, post_raw

HOSTS = [
    "127.0.0.1", "localhost", "127.1", "0", "0.0.0.0", "0177.0.0.1", "2130706433", "0x7f000001", "127.0.0.1.",  # noqa: S104
    "[::1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::7f00:1]", "[fc00::1]",
    "169.254.169.254", "100.64.0.1", "198.18.0.1", "224.0.0.1", "%31%32%37.0.0.1", "169.254.169%2e254",
    "ⓛocalhost", "user:pass@127.0.0.1", "evil.example\\@127.0.0.1", "127.0.0.1#@evil.example", "evil.example",
]  # fmt: skip
"""Source: the reliability reference, 4.3."""
OTHERS = [
    "file:///etc/passwd", "gopher://127.0.0.1:{port}/_INFO", "data:image/png;base64,AAAA", "redis://127.0.0.1:{port}/0",
    "//127.0.0.1:{port}/x.png", "s3://farm/x", "\\\\127.0.0.1\\share\\x.png", "ftp://127.0.0.1:{port}/x",
    "jar:http://127.0.0.1:{port}/x!/", "bytes:" + "0" * 64,
]  # fmt: skip
FORMS = [f"http://{host}:{{port}}/x.png" for host in HOSTS] + OTHERS
KINDS = DOCUMENT["components"]["schemas"]["Stage"]["discriminator"]["mapping"]
FIELDS = [
    (kind, path)
    for kind, ref in KINDS.items()
    for path in sorted(set(text_fields(whole({"$ref": ref}))))
    if path[0] != "kind"
]
"""Each field of each kind in which a text may stand, from the document."""


class Watch:
    """What is looked up and connected to while it watches."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[tuple[str, Any]]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self.on and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            self.seen.append((event, given[1] if event in ("socket.connect", "socket.sendto") else given[:2]))
        elif self.on and event in ("urllib.Request", "subprocess.Popen", "os.system"):
            self.seen.append((event, given))


WATCH = Watch()
"""One for the process: an audit hook cannot be taken away."""


@contextmanager
def quiet(site: Site, port: int) -> Iterator[None]:
    """Fails where anything but the farm's own servers, and the API itself, is reached inside."""
    urls = [site.url, site.settings.s3_endpoint, site.settings.redis_url.get_secret_value()]
    own = {urlsplit(str(url)).port for url in urls}
    WATCH.seen.clear()
    WATCH.on = True
    try:
        yield
    finally:
        WATCH.on = False
    strange = [
        (event, to)
        for event, to in WATCH.seen
        if not (isinstance(to, tuple) and to[0] in ("127.0.0.1", b"127.0.0.1") and int(to[1] or 0) in own)
    ]
    assert strange == []
    assert port not in own


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[int, list[Any]]]:
    """The port of a server on all addresses of this machine, and who has come."""
    came: list[Any] = []
    server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    def accept() -> None:
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            came.append(address)
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1], came
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(10)


@pytest.fixture
def sender(site: Site) -> Iterator[httpx2.Client]:
    """A caller."""
    with site.client() as client:
        client.get("/api/v1/jobs")
        yield client


def send(client: httpx2.Client, ask: dict[str, Any]) -> None:
    """Submits it, and cancels what comes of it."""
    answer = post_raw(client, "/api/v1/jobs", json.dumps(ask))
    assert answer.status_code in (200, 201, 422), answer.text
    for job in answer.json()["jobs"] if answer.is_success else ():
        client.post(f"{job['url']}/cancel")


def test_the_watch_sees_what_it_is_to_see(site: Site, listener: tuple[int, list[Any]]) -> None:
    # Given a call to where it must not go, by the library that the API has for such
    port, came = listener
    before = len(came)
    with pytest.raises(AssertionError, match=str(port)), quiet(site, port), pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False)
    assert len(came) == before + 1


def test_the_list_is_as_long_as_it_must_be() -> None:
    assert len(set(FORMS)) >= 35
    assert len(FIELDS) > 40
    names = {path[-1] for _, path in FIELDS}
    assert {"prompt", "checkpoint", "mask", "depth", "image", "name", "scheduler"} <= names


@pytest.mark.parametrize("form", FORMS)
def test_no_packet_leaves(site: Site, sender: httpx2.Client, listener: tuple[int, list[Any]], form: str) -> None:
    port, came = listener
    text, before = form.replace("{port}", str(port)), len(came)
    with quiet(site, port):
        # In each field of a request
        for name in ("chain", "prompt", "negative_prompt", "image", "fit", "lane", text):
            send(sender, {"chain": "txt", name: text})
        # In each field of each kind's stage, first and after another
        for kind, path in FIELDS:
            stage = {"kind": kind, **placed(path, text, {})}
            send(sender, {"chain": {"stages": [stage]}})
        # As a parameter, and along an axis
        for name in sorted({path[0] for _, path in FIELDS}):
            send(sender, {"chain": "hires", "parameters": {name: text}})
            send(sender, {"chain": "img", "sweep": [{name: [text]}]})
        send(sender, {"chain": {"stages": [{"kind": text}]}})
        # As an upload, in its type, in headers, as a token, in an address
        headers = {"Content-Type": "image/png"}
        assert sender.post("/api/v1/uploads", content=text.encode(), headers=headers).status_code == 422
        for name in (
            "Content-Type",
            "Idempotency-Key",
            "Last-Event-ID",
            "Referer",
            "Host",
            "X-Forwarded-For",
            "Cookie",
        ):
            sender.post("/api/v1/jobs/dry-run", content=b"{}", headers={name.encode(): text.encode()})
        sender.post("/api/v1/session", json={"token": text})
        sender.get("/api/v1/jobs", params={"run": text, "cursor": text})
    assert len(came) == before
