"""How often may one caller write, and one address guess?

Counted in the ledger's Redis, for several API processes serve one farm. A count flows back by itself and its key goes
with it, so there are never more keys than callers of the last minute.
"""

from __future__ import annotations

import ipaddress

from farm.errors import RateLimited
from farm.scripts import Server
from farm.settings import Settings

GUESSES_S = 60.0
"""The time in which `login_failures` may come, seconds."""


class Limits:
    """The limits of one farm. Every call may raise Unavailable."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self._server, self._settings = server, settings

    def write(self, token: str) -> None:
        """Counts a call that may write, of the token of the id `token`.

        Raises:
            RateLimited: there were too many.
        """
        if rate := self._settings.rate_per_s:
            self._spend(f"token:{token}", 1000 / rate, self._settings.rate_burst)

    def failed(self, address: str) -> None:
        """Counts a wrong token that came from the address.

        Raises:
            RateLimited: there were too many.
        """
        if guesses := self._settings.login_failures:
            self._spend(f"failed:{_network(address)}", 1000 * GUESSES_S / guesses, guesses)

    def _spend(self, name: str, gap_ms: float, burst: int) -> None:
        if wait_ms := int(self._server.call("rate", name, f"{gap_ms:.3f}", burst)):
            raise RateLimited(retry_after_s=wait_ms / 1000)


def _network(address: str) -> str:
    """What of an address tells one host from another: of IPv6, a host has 64 bits to itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
