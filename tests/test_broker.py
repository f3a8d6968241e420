"""Does a doorbell cost its ringer nothing, and does nobody owe an answer for it?"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import redis

from farm.broker import Broker, make_app
from farm.settings import Settings
from tests.conftest import Valkey
from tests.e2e.rig import until


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    made = Broker(settings)
    yield made
    made.close()


def test_a_ring_holds_nobody(valkey: Valkey) -> None:
    # Given a server that accepts and never answers
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        broker = Broker(Settings.load(redis_url=f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"))
        # When it is rung for five queues, for each of which a caller would wait two seconds
        began = time.monotonic()
        broker.ring("abcde")
        # Then
        assert time.monotonic() - began < 5
        broker.close(timeout_s=0)


def test_no_more_doorbells_wait_than_were_asked_for(broker: Broker) -> None:
    # When
    for wanted in (2, 2, 1):
        broker.ring_up_to("q", wanted)
    broker.ring(["q", "other"])
    # Then: the broker rings in the order in which it is asked
    until(lambda: broker.outstanding("other"), 30)
    assert broker.outstanding("q") == 2


def test_a_doorbell_that_is_heard_owes_no_answer(settings: Settings, broker: Broker, valkey: Valkey) -> None:
    # Given
    broker.ring_up_to("q", 2)
    until(lambda: broker.outstanding("q") == 2, 30)
    # When one of two is heard, as a worker hears it
    app, heard = make_app(settings, ["q"]), list[object]()
    with app.connection_for_read() as connection, app.amqp.TaskConsumer(connection, on_message=heard.append):
        while not heard:
            connection.drain_events(timeout=30)
        # Then nothing is noted of it: an acknowledgement that is lost would leave its worker deaf
        assert not redis.Redis.from_url(valkey.url).keys("*unacked*")
