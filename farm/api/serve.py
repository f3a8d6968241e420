"""How does the API run as a process, and whom does it let in at first?"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn

from farm.api.app import make_app
from farm.api.wire import listening
from farm.errors import FarmError
from farm.ledger import FAN
from farm.log import log_to_stderr
from farm.parent import die_with_parent
from farm.scripts import Server
from farm.settings import Settings
from farm.tokens import Tokens

GRACE_S = 5
"""How long open calls may go on when the API stops, seconds; event streams end at once and go on elsewhere."""
Say = Callable[[str], None]


def serve(settings: Settings, host: str, port: int, *, auth: bool, say: Say) -> None:
    """Serves until SIGINT or SIGTERM. The first time it says an admin's token, once.

    Raises:
        FarmError: (`usage`) `host` is not this machine alone, and nobody would be asked for a token, or nobody has one.
        Unavailable: the ledger does not answer.
    """
    first = admit(settings, host, auth=auth)
    if first:
        say("The first token, with every scope; it is not shown again:")
        say(first)
    config = _config(settings, host, port, auth=auth)
    try:
        listener = config.bind_socket()
    except SystemExit:  # uvicorn's word for a port that is taken
        raise FarmError(f"port {port} of {host} cannot be had", code="conflict", hint="--port gives another") from None
    say(f"The API is at http://{host}:{listener.getsockname()[1]}/api/v1/openapi.json. Ctrl+C stops it.")
    _run(config, listener)


def main(argv: Sequence[str] | None = None) -> None:
    """The API of a farm on this machine: on a socket that its parent listens on, and no longer than that lives."""
    parser = argparse.ArgumentParser(prog="farm.api.serve", description=main.__doc__)
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of the socket")
    parser.add_argument("--parent", type=int, required=True, help="pid of the process to end with, as by SIGTERM")
    given = parser.parse_args(argv)
    die_with_parent(given.parent, signal.SIGTERM)
    settings = Settings.load()
    log_to_stderr(settings.log_level)
    listener = socket.socket(fileno=given.socket)
    _run(_config(settings, *listener.getsockname()[:2], auth=True), listener)


def _config(settings: Settings, host: str, port: int, *, auth: bool) -> uvicorn.Config:
    app = make_app(settings, auth=auth)
    return listening(app, host, port, log_level="warning", timeout_graceful_shutdown=GRACE_S)


def _run(config: uvicorn.Config, listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises what stopped it once more, for whoever handled it before; unhandled, it would kill.
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


def admit(settings: Settings, host: str, *, auth: bool) -> str:
    """The text of the first token, made where there was none and only this machine can call; else "".

    Raises:
        FarmError: (`usage`) see `serve`.
    """
    local = is_local(host)
    if not auth:
        if not local:
            raise FarmError(
                f"{host} can be reached from elsewhere, and --no-auth lets everybody in", code="usage",
                hint="leave --no-auth out, or serve on 127.0.0.1",
            )  # fmt: skip
        return ""
    server = Server(settings, FAN)
    try:
        server.ping()
        tokens = Tokens(server)
        if not local and not tokens.all():
            raise FarmError(
                f"{host} can be reached from elsewhere, and there is no token yet", code="usage",
                hint="`farm token create --owner NAME --scope admin` makes one",
            )  # fmt: skip
        return tokens.first()
    finally:
        server.close()


def is_local(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        raise FarmError(f"{host} is no address of this machine", code="usage", hint="--host 127.0.0.1") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


if __name__ == "__main__":
    main()
