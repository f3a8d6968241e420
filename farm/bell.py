"""Which messages of a doorbell list reach a worker, and how does a deaf one listen again?

Stock kombu ends the whole process on a list element that is no JSON, and the list may hold anything: it is open to
whoever may write to Redis. Here only doorbells come through; all else is dropped, which is harmless, as a lost doorbell
is. Source: measured on Celery 5.7 and kombu 5.7, "Unrecoverable error: JSONDecodeError".
"""

from __future__ import annotations

import base64
import socket
import time
import uuid
from contextlib import suppress
from typing import Any

import kombu
import structlog
from kombu.transport import redis as stock
from kombu.transport.virtual.base import Empty
from redis.exceptions import ConnectionError, ResponseError

from farm.broker import RING

RETRY_S = 2.0
"""Longest pause between two tries to reach Redis, seconds."""
_log = structlog.get_logger(__name__)
_NO_ARGUMENTS = base64.b64encode(
    b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
).decode()


class Channel(stock.Channel):
    """A channel that survives whatever lies in a list, and looks at no other key."""

    def _queue_bind(self, *_: Any) -> None:
        """Queues are reached by their names alone."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:
            _log.warning("no_doorbell", why=type(error).__name__)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                # As if the connection were lost: it is made anew, with a pause.
                self.client.connection.disconnect()
                raise ConnectionError(str(error)) from error
            # The key holds no list. Whoever looks at it next (`Broker.outstanding`) replaces it, once a second.
            _log.warning("no_doorbell", why="the key holds no list")
            time.sleep(0.1)
        raise Empty


class Transport(stock.Transport):
    """kombu's Redis transport for doorbells alone."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if is_ring(message):
            super()._deliver(doorbell(queue), queue)
        else:
            _log.warning("no_doorbell", why="foreign")

    def hang_up(self) -> None:
        """Ends the connections that wait for doorbells, from any thread: their consumer makes new ones.

        A half-open connection never ends by itself, and its consumer would wait on it for ever.
        """
        for sock in list(self.cycle._chan_to_sock.values()):
            with suppress(OSError, AttributeError):
                sock.shutdown(socket.SHUT_RDWR)


class Connection(kombu.Connection):
    """A connection that a consumer makes again soon: stock kombu would wait for up to 30 s after a longer outage."""

    def _ensure_connection(self, *args: Any, **options: Any) -> Any:
        return super()._ensure_connection(
            *args, **{**options, "interval_start": RETRY_S / 4, "interval_step": RETRY_S / 4, "interval_max": RETRY_S}
        )


def is_ring(message: Any) -> bool:
    """Whether a list element, decoded, asks for the one task there is."""
    try:
        return bool(message["headers"]["task"] == RING)
    except (KeyError, TypeError):
        return False


def doorbell(queue: str) -> dict[str, Any]:
    """A ring on `queue` as kombu reads it from Redis. What the sender's held beside its task is of no use to anybody.

    Source: Celery's message protocol 2 (docs, internals/protocol), in the envelope of kombu's virtual transports.
    """
    name = str(uuid.uuid4())
    return {
        "body": _NO_ARGUMENTS,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": RING, "id": name, "root_id": name},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": name,
            "delivery_tag": name,
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
