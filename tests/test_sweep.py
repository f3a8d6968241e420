"""Does a range mean the same at every door, and is one that means too much refused?"""

from __future__ import annotations

from typing import Any

import pytest

from farm.api.asks import JobAsk
from farm.api.dataset_asks import RowsAsk
from farm.cli.submit import axes
from farm.dataset.spec import DatasetSpec
from farm.errors import InvalidJob
from farm.remote.asks import sweep_ask
from farm.sweep import MAX_RANGED, count_of, listed, variants

TEN = [{"seed": list(range(10))}]


def asked(sweep: Any) -> Any:
    """What is sent for a sweep that needs nothing of the farm elsewhere."""
    with pytest.raises(StopIteration) as ended:
        next(sweep_ask(sweep, {"stages": []}))
    return ended.value.value


@pytest.mark.parametrize(
    "taken",
    [
        listed,
        asked,
        lambda sweep: JobAsk(sweep=sweep).sweep,
        lambda sweep: RowsAsk(file="0" * 64 + "/a.csv", sweep=sweep).sweep,
        lambda sweep: DatasetSpec(name="some", chain={}, sweep=sweep).sweep,
    ],
)
def test_a_range_is_its_whole_numbers_at_every_door(taken: Any) -> None:
    assert taken([{"seed": "0..9"}]) == TEN
    assert taken([{"seed": "-1..1", "prompt": ["0..9", "b", "c"]}]) == [
        {"seed": [-1, 0, 1], "prompt": ["0..9", "b", "c"]}
    ], "a text in a list is a text"
    assert taken(TEN) == TEN
    for wrong, loc in (("9..0", "sweep.0.seed"), ("a..b", "sweep.0.seed"), ("7", "sweep.0.seed"), ("", "sweep.0.seed")):
        with pytest.raises(InvalidJob) as caught:
            taken([{"seed": wrong}])
        assert [one.loc for one in caught.value.errors] == [loc]


def test_a_range_counts_and_varies() -> None:
    sweep: Any = [{"seed": "0..4"}, {"steps": "2..3", "strength": [0.5, 0.6]}]
    assert count_of(sweep) == 10
    found = list(variants(sweep))
    assert found[0] == {"seed": 0, "steps": 2, "strength": 0.5}
    assert found[-1] == {"seed": 4, "steps": 3, "strength": 0.6}
    with pytest.raises(InvalidJob, match="of one length"):
        count_of([{"seed": "0..4", "strength": [0.5]}])


def test_ranges_that_mean_too_much_are_refused_and_never_made() -> None:
    assert count_of([{"seed": f"1..{MAX_RANGED}"}]) == MAX_RANGED
    for sweep in (
        [{"seed": f"0..{MAX_RANGED}"}],
        [{"seed": f"0..{10**15}"}],
        [{"seed": "0..5000"}, {"steps": "1..5000"}],
        [{f"{number}.steps": f"1..{MAX_RANGED}" for number in range(100_000)}],
    ):
        with pytest.raises(InvalidJob, match="at most 10,000") as caught:
            listed(sweep)
        assert caught.value.errors[0].loc.startswith("sweep.")


def test_the_command_line_takes_ranges_beside_lists() -> None:
    found = axes(["seed=0..9", "steps=2,3", '{"seed": "0..1", "prompt": ["a", "b"]}', 'prompt=["0..9"]', "seed=-2..-1"])
    assert found == [
        {"seed": "0..9"}, {"steps": [2, 3]}, {"seed": "0..1", "prompt": ["a", "b"]}, {"prompt": ["0..9"]},
        {"seed": "-2..-1"},
    ]  # fmt: skip
