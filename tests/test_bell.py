"""What comes through a doorbell list, and how soon is a lost connection made again?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis

from farm.bell import RETRY_S, Connection, doorbell, is_ring
from farm.broker import RING, bell_queue, make_app
from farm.settings import Settings
from tests.conftest import free_port
from tests.e2e.rig import until

NAMED = ("correlation_id", "delivery_tag")
"""The properties that tell one doorbell from another."""


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
    queue = bell_queue(settings, "spare")
    app = make_app(settings)
    app.send_task(RING, queue=queue, ignore_result=True)
    app.close()
    (sent,) = redis.Redis.from_url(settings.redis_url.get_secret_value()).lrange(queue.name, 0, -1)  # type: ignore[misc]
    true: dict[str, Any] = json.loads(sent)
    # Then it is heard
    assert is_ring(true)
    # And what a worker makes of it is the same, but for what only the sender's has
    made, again = doorbell(queue.name), doorbell(queue.name)
    for part in ("body", "content-encoding", "content-type"):
        assert made[part] == true[part]
    (name,) = {made["headers"]["id"], made["headers"]["root_id"], *(made["properties"][key] for key in NAMED)}
    (other,) = {again["headers"]["id"], again["properties"]["delivery_tag"]}
    assert UUID(name) != UUID(other)
    for part, its_own in (("headers", ("id", "root_id")), ("properties", NAMED)):
        rest = {key: value for key, value in made[part].items() if key not in its_own}
        assert rest == {key: true[part][key] for key in rest}
        assert len(rest) == 2


@pytest.mark.parametrize(
    "message", [None, 1, "x", [], {}, {"headers": None}, {"headers": {}}, {"headers": {"task": "os.system"}}, [RING]]
)
def test_nothing_else_is(message: Any) -> None:
    assert not is_ring(message)


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[tuple[Connection, list[Any], redis.Redis]]:
    """A consumer of the queue `q`, what it heard, and the server of its list."""
    app, heard = make_app(settings, ["q"]), list[Any]()
    raw = redis.Redis.from_url(settings.redis_url.get_secret_value())
    with app.connection_for_read() as connection, app.amqp.TaskConsumer(connection, on_message=heard.append):
        yield connection, heard, raw
    app.close()
    raw.close()


def listen(connection: Connection) -> None:
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=1)


@pytest.mark.parametrize(
    "garbage", [b"{", b"\xff", b"[" * 100_000, b"null", b'{"headers": {"task": "os.system"}}', "no list"]
)
def test_a_consumer_hears_the_doorbell_after_garbage(settings: Settings, garbage: bytes | str) -> None:
    key = bell_queue(settings, "q").name
    with listening(settings) as (connection, heard, raw):
        # Given garbage in the list, or a key that is none
        if garbage == "no list":
            raw.set(key, "x")
            listen(connection)
            raw.delete(key)
        else:
            raw.lpush(key, garbage)
        # When a doorbell comes after it
        raw.lpush(key, json.dumps({**doorbell("q"), "body": "W1tdXQ=="}))
        until(lambda: listen(connection) or heard, 60)  # type: ignore[func-returns-value]
    # Then it is heard, without what its sender put in
    (message,) = heard
    assert (message.headers["task"], message.payload[:2]) == (RING, [[], {}])


def test_a_consumer_that_is_hung_up_notices(settings: Settings) -> None:
    with listening(settings) as (connection, _, _):
        # Given a consumer that waits
        listen(connection)
        # When
        connection.transport.hang_up()
        # Then
        with pytest.raises(connection.recoverable_connection_errors):
            connection.drain_events(timeout=30)
