"""How does a worker learn that there is work?

By a doorbell: a Celery message on the queue's own list that says only "look". It carries no state; the ledger holds
the truth. A lost, repeated or forged doorbell is harmless: a claim that finds nothing does nothing, and the reconciler
rings again while work is ready and nobody looks.

Queues are consumed without acknowledgements and published on the default exchange: an acknowledgement lost on a dropped
connection would leave its worker deaf, and a lost binding would swallow every message.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from typing import Any

import redis
import structlog
from celery import Celery
from kombu import Exchange, Queue

from farm.settings import Settings

RING = "farm.ring"
"""The name of the one task there is."""
_log = structlog.get_logger(__name__)


def make_app(settings: Settings, queues: Iterable[str] = ()) -> Celery:
    """The Celery application: JSON only, no results, no remote control, consuming the doorbells of `queues`."""
    app = Celery("farm", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        broker_transport="farm.bell:Transport",
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        task_queues=[bell_queue(settings, name) for name in queues] or None,
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            # A half-open connection is found out after one to two of these, and the second that a BRPOP takes.
            # Source: kombu 5.7, `maybe_check_brpop_health`; its default of 25 s would leave a worker deaf for 51.
            "health_check_interval": 2,
            "retry_on_timeout": False,
            # One list per queue: the ledger knows the priorities.
            "priority_steps": [0],
            # Nothing is acknowledged, so Redis needs to keep no account of it.
            "ack_emulation": False,
        },
    )
    return app


def bell_queue(settings: Settings, name: str) -> Queue:
    """The broker's queue for the ledger's queue `name`: the Redis list `<namespace>:<name>`."""
    full = f"{settings.namespace}:{name}"
    return Queue(full, exchange=Exchange(""), routing_key=full, no_ack=True)


class Broker:
    """Rings doorbells from a thread of its own: `ring` never blocks its caller, whatever the network does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = make_app(settings)
        self._redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=2, socket_connect_timeout=2
        )
        self._asked: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._thread.start()

    def ring(self, queues: Iterable[str]) -> None:
        """Asks for one doorbell on each of `queues` where none is outstanding. Returns at once; may be lost."""
        for name in queues:
            self._asked.put((name, 1))

    def ring_up_to(self, name: str, outstanding: int) -> None:
        """Asks for doorbells on `name` until `outstanding` of them wait there. Returns at once; may be lost."""
        self._asked.put((name, outstanding))

    def outstanding(self, name: str) -> int:
        """How many doorbells of `name` nobody has heard yet. Raises what redis-py raises.

        A key that is no list is deleted: nobody could ring or hear, and whatever it holds, it is no doorbell.
        """
        key = bell_queue(self._settings, name).name
        try:
            return int(self._redis.llen(key))
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            _log.error("doorbells_replaced", queue=name)
            self._redis.delete(key)
            return 0

    def close(self, timeout_s: float = 5) -> None:
        """Rings what was asked for, waiting up to `timeout_s`, and closes the connections."""
        self._asked.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            name, wanted = asked
            try:
                for _ in range(wanted - self.outstanding(name)):
                    self._send(name)
            except Exception as error:  # noqa: BLE001 — whatever it is, the reconciler rings again
                _log.warning("doorbell_lost", queue=name, error=type(error).__name__)
        self._app.close()
        self._redis.close()

    def _send(self, name: str) -> Any:
        return self._app.send_task(RING, queue=bell_queue(self._settings, name), retry=False, ignore_result=True)
