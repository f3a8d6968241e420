"""Does a seat end with who has left it?"""

from __future__ import annotations

import threading

import pytest

from farm.dataset.seats import Seats
from farm.settings import Settings


def test_a_seat_that_is_left_while_it_is_renewed_stays_free(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that holds two seats, and leaves one while it renews the other
    mine, other = Seats(settings), Seats(settings)
    real, renewed, left = mine._server.call, list[str](), list[threading.Thread]()

    def call(script: str, key: str, *given: str | int) -> object:
        if threading.current_thread().name == "seats":
            renewed.append(key)
            if not left:
                name = {"dataset:a:feeder": "b", "dataset:b:feeder": "a"}[key]
                left.append(threading.Thread(target=mine.leave, args=(name,), name=name))
                left[0].start()
                left[0].join(0.3)  # for as long as it may take where nothing holds it back
        return real(script, key, *given)

    class Rounds(threading.Event):
        """Lets one renewal follow the other at once, until there were some."""

        def wait(self, timeout: float | None = None) -> bool:
            return len(renewed) > 3

    for name in ("a", "b"):
        assert mine.take(name)
    monkeypatch.setattr(mine._server, "call", call)
    renewing = threading.Thread(target=mine._renew, args=(Rounds(),), name="seats")
    renewing.start()
    renewing.join()
    left[0].join()
    # Then another one may have that seat, and only that
    assert other.take(left[0].name)
    assert not other.take(({"a", "b"} - {left[0].name}).pop())
    mine.close()
    other.close()
