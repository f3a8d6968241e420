"""Does a doorbell cost its ringer nothing, and does nobody owe an answer for it?"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

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


def test_a_doorbell_that_is_heard_owes_no_answer(settings: Settings, broker: Broker) -> None:
    # Given two doorbells, and a worker that takes one at a time
    broker.ring_up_to("q", 2)
    until(lambda: broker.outstanding("q") == 2, 30)
    app, heard = make_app(settings, ["q"]), list[object]()
    with app.connection_for_read() as connection, app.amqp.TaskConsumer(connection, on_message=heard.append) as one:
        one.qos(prefetch_count=1)

        # When its answer to the first is lost, for it gives none
        def hears_both() -> bool:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=1)
            return len(heard) == 2

        # Then it hears the second all the same
        until(hears_both, 20)
    app.close()
