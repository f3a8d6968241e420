"""Does a feeder take what is its own, and does nothing else keep it from feeding?"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from farm.client import Farm
from farm.dataset import serve
from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.leftovers import EVERY_S
from farm.dataset.seats import Seats
from farm.dataset.serve import Feeding
from farm.dataset.sources import source_of
from tests.dataset.farms import CHAIN
from tests.dataset.test_planning import farm, stocked  # noqa: F401
from tests.e2e.rig import until


@pytest.fixture
def feeding(stocked: Farm) -> Iterator[Feeding]:  # noqa: F811
    """A feeder that may feed one dataset of each owner, and whose rounds are the test's."""
    settings = stocked.settings.model_copy(update={"max_fed_datasets": 1})
    made = Feeding(settings, threading.Event(), None)
    yield made
    made.close()
    if made._clearing is not None:  # a daemon, which would find this test's bucket gone during another one
        made._clearing.join(60)
        assert not made._clearing.is_alive()


def running(stocked: Farm, folder: Path, name: str) -> Folder:  # noqa: F811
    """A dataset of ada's that is to be fed."""
    rows = folder / "rows.csv"
    rows.write_text("prompt\na fig\n")
    Datasets(stocked).plan(source_of(rows), name, CHAIN, owner="ada")
    found = Folder(stocked.store, name)
    found.steer(state="running")
    return found


@pytest.mark.parametrize("others", [True, False])
def test_a_feeder_at_its_limit_says_nothing_of_what_another_feeds(
    stocked: Farm,  # noqa: F811
    feeding: Feeding,
    tmp_path: Path,
    others: bool,
) -> None:
    # Given two datasets of an owner, of whose another process may feed the second
    running(stocked, tmp_path, "first")
    second, seats = running(stocked, tmp_path, "second"), Seats(stocked.settings)
    if others:
        assert seats.take("second")
    # When this one looks, which may feed one of them
    feeding._look()
    # Then it says that the second waits only where it does
    told = second.read("trouble.json")
    assert (told is None) == others
    assert others or json.loads(told or b"")["code"] == "busy"
    seats.close()


def test_those_that_are_done_are_looked_at_in_turn(
    stocked: Farm,  # noqa: F811
    feeding: Feeding,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given three datasets that are done, and a feeder that looks at two of such at once
    monkeypatch.setattr(serve, "DONE_AT_ONCE", 2)
    monkeypatch.setattr(serve, "LOOK_S", 0)
    folders = [running(stocked, tmp_path, f"done{number}") for number in range(3)]
    for folder in folders:
        folder.steer(state="done")
    read, real = list[str](), Folder.tagged

    def tagged(self: Folder, path: str) -> tuple[bytes, str] | None:
        if path in ("control.json", "plan.json"):
            read.append(f"{self.name}/{path}")
        return real(self, path)

    monkeypatch.setattr(Folder, "tagged", tagged)
    # Then each look costs one small object for each of them
    looks = []
    for _ in range(4):
        feeding._look()
        looks.append([path.removesuffix("/control.json") for path in read])
        read.clear()
    assert looks == [["done0", "done1", "done2"], ["done0", "done1"], ["done0", "done2"], ["done0", "done1"]]
    # And one that is to run again is found in its turn, one that is gone is forgotten
    folders[0].steer(state="running")
    folders[1].delete(folders[1].names(""))
    for _ in range(2):
        feeding._look()
    assert (list(feeding._feeders), list(feeding._done)) == (["done0"], ["done2"])


def test_what_is_left_is_cleared_beside_the_feeding(feeding: Feeding, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store in which that takes long, and then fails
    began: list[float] = []
    over = threading.Event()

    def slow(_: object, now: float) -> None:
        began.append(now)
        assert over.wait(30)
        raise KeyError("left")

    monkeypatch.setattr(serve, "clear", slow)
    with capture_logs() as logs:
        # When the feeder looks on meanwhile, for more than an hour, Then nothing waits, and it is done once at a time
        for _ in range(3):
            feeding._looked -= EVERY_S
            feeding._cleared -= EVERY_S
            feeding._look()
        until(lambda: began, 10)
        assert len(began) == 1
        # And what was wrong is told
        over.set()
        until(lambda: logs, 10)
    assert [(one["event"], one["error"]) for one in logs] == [("not_cleared", "KeyError")]
    # And after an hour it is done again
    feeding._look()
    assert len(began) == 1
    until(lambda: not any(one.name == "clearing" for one in threading.enumerate()), 10)
    feeding._looked -= EVERY_S
    feeding._cleared -= EVERY_S
    feeding._look()
    until(lambda: len(began) == 2, 10)
