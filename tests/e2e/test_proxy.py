"""The fault proxy does what it says: otherwise the tests behind it show nothing."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.e2e.proxy import Proxy
from tests.e2e.rig import until


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes, and remembers it."""

    heard: list[bytes]

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.heard.append(data)
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before an echo."""
    Echo.heard = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy = Proxy(server.server_address[1])
        yield proxy
        proxy.stop()
        server.shutdown()


def call(proxy: Proxy, timeout_s: float = 10) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)
    found.sendall(b"hello")
    return found


def heard(connection: socket.socket) -> bytes:
    return connection.recv(1024)


def test_it_forwards_and_delays(proxy: Proxy) -> None:
    connection = call(proxy)
    assert heard(connection) == b"hello"
    proxy.delay_s = 0.2
    began = time.monotonic()
    connection.sendall(b"slow")
    assert heard(connection) == b"slow"
    assert time.monotonic() - began >= 0.4
    connection.close()


def test_a_reset_ends_open_connections_and_no_others(proxy: Proxy) -> None:
    connection = call(proxy)
    assert heard(connection) == b"hello"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        heard(connection)
    assert heard(call(proxy)) == b"hello"


def test_a_cut_refuses_until_it_is_mended(proxy: Proxy) -> None:
    proxy.cut()
    with pytest.raises(OSError):
        heard(call(proxy))
    proxy.mend()
    assert heard(call(proxy)) == b"hello"


def test_half_open_connections_stay_silent_and_new_ones_speak(proxy: Proxy) -> None:
    connection = call(proxy)
    assert heard(connection) == b"hello"
    assert proxy.hush() == 1
    connection.sendall(b"anybody?")
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        heard(connection)
    assert heard(call(proxy)) == b"hello"


def test_a_hole_swallows_new_connections_too(proxy: Proxy) -> None:
    proxy.hole()
    swallowed = call(proxy, 0.3)
    with pytest.raises(TimeoutError):
        heard(swallowed)
    proxy.mend()
    assert heard(call(proxy)) == b"hello"


def test_a_dropped_reply_is_that_of_a_request_which_was_carried_out(proxy: Proxy) -> None:
    connection = call(proxy)
    assert heard(connection) == b"hello"
    # When
    proxy.drop_reply(b"commit")
    connection.sendall(b"please commit")
    # Then
    with pytest.raises(ConnectionResetError):
        heard(connection)
    assert Echo.heard[-1] == b"please commit"
    until(lambda: proxy.dropped == 1)
    # And only that one
    assert heard(call(proxy)) == b"hello"
