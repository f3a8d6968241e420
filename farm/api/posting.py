"""How is one message sent to one receiver?

Over TLS that is checked wherever the address says https; a redirect is not followed, and of the answer no more is read
than a person would.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass

import anyio
import httpx2

from farm import __version__
from farm.webhooks import Endpoint

TIMEOUT_S = 15.0
"""How long one attempt may take, to the end of the answer, seconds. Source: Standard Webhooks, 15 to 30."""
MAX_ANSWER = 4096
"""Bytes of an answer that are read."""
GONE = 410
"""The answer of a receiver that wants no more. Source: Standard Webhooks."""


@dataclass(frozen=True)
class Attempt:
    """What became of one attempt: the answer's status, 0 for none, and a word for people."""

    status: int
    said: str

    @property
    def arrived(self) -> bool:
        """Whether the receiver has taken the message."""
        return 200 <= self.status < 300


def open_client() -> httpx2.AsyncClient:
    """A client for messages: no redirect, no proxy, and one slow receiver keeps no connection from another."""
    return httpx2.AsyncClient(
        verify=ssl.create_default_context(), follow_redirects=False, trust_env=False, timeout=None,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )  # fmt: skip


async def post(
    client: httpx2.AsyncClient, endpoint: Endpoint, message: str, body: str, timeout_s: float = TIMEOUT_S
) -> Attempt:
    """Sends a message once, signed as of now."""
    data, now_s = body.encode(), int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"latent-farm/{__version__}",
        "webhook-id": message,
        "webhook-timestamp": str(now_s),
        "webhook-signature": endpoint.signature(message, now_s, data),
    }
    try:
        with anyio.fail_after(timeout_s):
            async with client.stream("POST", endpoint.url, content=data, headers=headers) as answer:
                read = 0
                async for part in answer.aiter_raw():
                    read += len(part)
                    if read >= MAX_ANSWER:
                        break
                return Attempt(answer.status_code, str(answer.status_code))
    except TimeoutError:
        return Attempt(0, f"no answer within {timeout_s:g} s")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return Attempt(0, f"no connection ({type(error).__name__})")
