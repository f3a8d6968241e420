"""What of connections that are slow, or talk no HTTP?"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from farm.api import guard, wire
from tests.api.conftest import PNG, Site, made, open_site, picture, txt
from tests.e2e.rig import until

JOBS = "/api/v1/jobs"


@pytest.fixture(scope="module")
def site(site_settings) -> Iterator[Site]:  # type: ignore[no-untyped-def]
    """A farm whose API has little patience."""
    patience = pytest.MonkeyPatch()
    patience.setattr(wire, "HEAD_S", 1.0)
    patience.setattr(guard, "BODY_S", 1.0)
    with open_site(site_settings, heartbeat_s=0.5) as found:
        yield found
    patience.undo()


class Raw:
    """A connection on which a test writes bytes."""

    def __init__(self, site: Site) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2])))
        self._socket.settimeout(10)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends it, if anybody still listens."""
        with suppress(OSError):
            self._socket.sendall(data)

    def trickle(self, data: bytes = b"a") -> bytes:
        """What comes while `data` is sent over and over, slowly, until the other side hangs up."""
        found = b""
        self._socket.settimeout(0.1)

        def over() -> bool:
            nonlocal found
            self.send(data)
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                return False
            except OSError:
                return True
            found += part
            return not part

        until(over, 30, "an end")
        return found

    def rest(self) -> bytes:
        """What comes until the other side hangs up."""
        found = b""
        with suppress(ConnectionResetError):
            while part := self._socket.recv(65536):
                found += part
        return found


def head(site: Site, method: str, path: str, *lines: str) -> bytes:
    """The head of a call by somebody with a token, still open."""
    told = [f"{method} {path} HTTP/1.1", "Host: farm", f"Authorization: Bearer {site.token('sid')}", *lines]
    return "\r\n".join(told).encode() + b"\r\n"


def refused(answer: bytes, *statuses: int) -> None:
    """What came is a problem, and nothing of the request is in it."""
    found = re.match(rb"HTTP/1.1 (\d+)", answer)
    assert found, answer
    assert int(found[1]) in statuses
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in top.lower()
    assert b"default-src 'none'" in top
    assert json.loads(body)["status"] == int(found[1])
    assert b"evil" not in answer


@pytest.mark.parametrize("begun", [b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: "])
def test_a_head_that_trickles_is_not_waited_for(site: Site, begun: bytes) -> None:
    with Raw(site) as raw:
        raw.send(begun)
        assert raw.trickle(b"X: y\r\n" if begun.endswith(b"\n") else b"a") == b""


def test_nor_is_one_after_a_call_that_was_answered(site: Site) -> None:
    with Raw(site) as raw:
        raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert raw.trickle().count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        (JOBS, ("Content-Type: application/json", "Content-Length: 1000")),
        ("/api/v1/uploads", ("Content-Type: image/png", "Content-Length: 100000")),
        ("/api/v1/session", ("Content-Type: application/json", "Content-Length: 1000")),
    ],
)
def test_a_body_that_trickles_is_refused(site: Site, path: str, lines: tuple[str, ...]) -> None:
    with Raw(site) as raw:
        raw.send(head(site, "POST", path, *lines) + b"\r\n")
        answer = raw.trickle(b" ")
    refused(answer, 408)
    assert b"body_too_slow" in answer


def test_a_body_that_nobody_reads_holds_no_connection(site: Site) -> None:
    # Given a call that takes none
    with Raw(site) as raw:
        raw.send(head(site, "GET", JOBS, "Content-Length: 100000") + b"\r\n")
        # When one trickles, Then the call is answered and the connection ends
        assert raw.trickle().startswith(b"HTTP/1.1 200")


def test_a_stream_whose_body_never_comes_ends(site: Site) -> None:
    with Raw(site) as raw:
        raw.send(head(site, "GET", "/api/v1/events", "Content-Length: 100000") + b"\r\n")
        assert b"text/event-stream" in raw.trickle()


def test_a_steady_upload_may_take_its_time(site: Site) -> None:
    # Given a line that is slower than a body may be late, and faster than the slowest line
    data = picture() + bytes(1 << 20)

    def parts() -> Iterator[bytes]:
        for place in range(0, len(data), 1 << 17):
            time.sleep(0.2)  # the line is what is slow: there is nothing to wait for
            yield data[place : place + (1 << 17)]

    # When, Then
    with site.client() as client:
        assert client.post("/api/v1/uploads", content=parts(), headers=PNG).status_code == 201


def test_who_is_quick_may_be_quiet_afterwards(site: Site) -> None:
    # A stream goes on long after the time that a head or a body may take
    with site.client() as client, client.stream("GET", "/api/v1/events", timeout=30) as stream:
        alive = 0
        for line in stream.iter_lines():
            alive += line.startswith(": alive")
            if alive == 5:
                return
    raise AssertionError("the stream ended")


BAD_HEADS = {
    "10,000 headers": b"".join(b"X-%d: 1\r\n" % number for number in range(10_000)),
    "64 KiB header": b"X-Long: " + b"a" * 65536 + b"\r\n",
    "line break in a value": b"X-Evil: a\rSet-Cookie: evil=1\r\n",
    "NUL in a value": b"X-Evil: a\0b\r\n",
    "no name": b": evil\r\n",
    "space in a name": b"X Evil: 1\r\n",
    "folded": b"X-Evil: a\r\n\tb\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "length below nothing": b"Content-Length: -5\r\n",
    "no length": b"Content-Length: evil\r\n",
    "unknown coding": b"Transfer-Encoding: evil\r\n",
    "two hosts": b"Host: evil\r\n",
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_head_that_is_none_is_refused(site: Site, name: str) -> None:
    with Raw(site) as raw:
        raw.send(head(site, "GET", JOBS) + BAD_HEADS[name] + b"\r\n")
        answer = raw.rest()
    if name == "folded":  # which HTTP/1.1 lets a server join
        assert answer.startswith(b"HTTP/1.1 ")
        return
    refused(answer, *((431,) if name in ("10,000 headers", "64 KiB header") else (400, 501)))


@pytest.mark.parametrize("line", [b"evil", b"GET  /evil", b"GET /\xff HTTP/1.1", b"\x16\x03\x01\x02evil"])
def test_what_is_no_request_is_refused(site: Site, line: bytes) -> None:
    with Raw(site) as raw:
        raw.send(line + b"\r\nHost: x\r\n\r\n")
        refused(raw.rest(), 400, 505)


@pytest.mark.parametrize("body", [b"zz\r\nevil", b"5\r\nabcdefgh\r\n", b"-1\r\n", b"f" * 40 + b"\r\n"])
def test_chunks_that_are_none_end_the_call(site: Site, body: bytes) -> None:
    with Raw(site) as raw:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        raw.send(head(site, "POST", JOBS, *lines) + b"\r\n" + body)
        refused(raw.rest(), 400)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
    ],
)
@pytest.mark.parametrize("path", [JOBS, "/api/v1/session", "/healthz"])
def test_no_call_is_hidden_in_the_body_of_another(site: Site, path: str, lines: tuple[str, ...]) -> None:
    # Given a body that ends in two ways, and behind its one end what would be a call of its own
    hidden = head(site, "GET", JOBS) + b"\r\n"
    with Raw(site) as raw:
        # When
        raw.send(head(site, "POST", path, "Content-Type: application/json", *lines) + b"\r\n0\r\n\r\n" + hidden)
        answer = raw.rest()
    # Then it is refused, and nothing behind it is answered
    assert answer.count(b"HTTP/1.1 ") == 1
    refused(answer, 400)


def test_a_length_that_lies_ends_the_call(site: Site) -> None:
    # Given less than was said, and then nothing more
    with Raw(site) as raw:
        raw.send(head(site, "POST", JOBS, "Content-Type: application/json", "Content-Length: 50") + b"\r\n{}")
        refused(raw.trickle(b""), 408)
    # And more than was said: what is left is no request
    with Raw(site) as raw:
        raw.send(
            head(site, "POST", JOBS, "Content-Type: application/json", "Content-Length: 2") + b"\r\n{}evil\r\n\r\n"
        )
        answers = raw.rest()
    assert answers.count(b"HTTP/1.1") == 2
    refused(answers[answers.rindex(b"HTTP/1.1") :], 400)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "OPTIONS", "PROPFIND", "EVIL", "CONNECT"])
def test_odd_methods_are_refused(site: Site, method: str) -> None:
    with site.client() as client:
        for path in (JOBS, "/healthz", "/api/v1/events", f"{JOBS}/dry-run", "/api/v1/uploads"):
            answer = client.request(method, path)
            assert answer.status_code == 405, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_head_is_a_get_without_its_body(site: Site) -> None:
    with site.client() as client:
        # Given every kind of answer: a list, what is not there, what needs a token, and one that would go on for ever
        job = made(client.post(JOBS, json=txt()))["jobs"][0]["id"]
        for path in (JOBS, "/healthz", f"{JOBS}/{job}", f"{JOBS}/0", f"{JOBS}?evil=1", "/api/v1/openapi.json"):
            told, whole = client.head(path), client.get(path)
            assert (told.status_code, told.content) == (whole.status_code, b""), path
            assert told.headers["content-type"] == whole.headers["content-type"]
        told = client.head("/api/v1/events")
        assert (told.status_code, told.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert client.head(f"{JOBS}/dry-run").status_code == 404
        assert client.head("/api/v1/uploads").status_code == 405
        assert "HEAD" in client.put(JOBS).headers["allow"]
        # And the connection goes on
        assert client.get(JOBS).status_code == 200
        client.post(f"{JOBS}/{job}/cancel")
    with site.anonymous() as stranger:
        assert stranger.head(JOBS).status_code == 401


def test_no_header_steers_an_address_that_is_told(site: Site) -> None:
    evil = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    with site.client() as client:
        job = made(client.post(JOBS, json=txt(), headers=evil))
        assert "evil" not in json.dumps(job)
        url = job["jobs"][0]["url"]
        for path in (url, f"{url}/artifacts", JOBS, "/api/v1/openapi.json"):
            assert "evil" not in client.get(path, headers=evil).text
        assert "evil" not in str(client.get(f"{url}/", headers=evil).headers)
        client.post(f"{url}/cancel")


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-0", "bytes=" + ",".join("0-" for _ in range(4000)), "evil"])
def test_ranges_are_not_looked_at(site: Site, value: str) -> None:
    with site.client() as client:
        answer = client.get("/api/v1/chains", headers={"Range": value})
        assert (answer.status_code, len(answer.json()) > 0) == (200, True)
