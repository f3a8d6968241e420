"""How does the API run as a process, and whom does it let in at first?"""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable

import uvicorn

from farm.api.app import make_app
from farm.api.wire import listening
from farm.errors import FarmError
from farm.ledger import FAN
from farm.scripts import Server
from farm.settings import Settings
from farm.tokens import Tokens

GRACE_S = 5
"""How long open calls may go on when the API stops, seconds; event streams go on by themselves elsewhere."""
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
    app = make_app(settings, auth=auth)
    config = listening(app, host, port, log_level="warning", timeout_graceful_shutdown=GRACE_S)
    try:
        listener = config.bind_socket()
    except SystemExit:  # uvicorn's word for a port that is taken
        raise FarmError(f"port {port} of {host} cannot be had", code="conflict", hint="--port gives another") from None
    say(f"The API is at http://{host}:{listener.getsockname()[1]}/api/v1/openapi.json. Ctrl+C stops it.")
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
        if tokens.all():
            return ""
        if not local:
            raise FarmError(
                f"{host} can be reached from elsewhere, and there is no token yet", code="usage",
                hint="`farm token create --owner NAME --scope admin` makes one",
            )  # fmt: skip
        return tokens.create("admin", ["admin"])[1]
    finally:
        server.close()


def is_local(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        raise FarmError(f"{host} is no address of this machine", code="usage", hint="--host 127.0.0.1") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
