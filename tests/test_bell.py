"""What comes through a doorbell list, and how soon is a lost connection made again?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from farm.bell import RETRY_S, Connection, doorbell, is_ring
from farm.broker import RING, bell_queue, make_app
from farm.settings import Settings
from tests.conftest import free_port


class Enough(Exception):
    """Ends the tries."""


def test_a_lost_connection_is_tried_again_every_two_seconds() -> None:
    # Given a port where nobody listens
    pauses: list[float] = []

    def tell(_error: Exception, pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 6:
            raise Enough

    # When a connection is to be made there
    with pytest.raises(Enough):
        Connection(f"redis://127.0.0.1:{free_port()}/0").ensure_connection(tell)
    # Then
    assert pauses == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert max(pauses) == RETRY_S


def test_a_true_doorbell_is_one(settings: Settings) -> None:
    # Given what the broker sends
    import redis

    queue = bell_queue(settings, "spare")
    app = make_app(settings)
    app.send_task(RING, queue=queue, ignore_result=True)
    app.close()
    (sent,) = redis.Redis.from_url(settings.redis_url.get_secret_value()).lrange(queue.name, 0, -1)  # type: ignore[misc]
    # Then it is heard, and what a worker makes of it has the same envelope
    assert is_ring(json.loads(sent))
    assert is_ring(doorbell("q"))
    assert set(doorbell("q")) == set(json.loads(sent))


@pytest.mark.parametrize(
    "message", [None, 1, "x", [], {}, {"headers": None}, {"headers": {}}, {"headers": {"task": "os.system"}}, [RING]]
)
def test_nothing_else_is(message: Any) -> None:
    assert not is_ring(message)
