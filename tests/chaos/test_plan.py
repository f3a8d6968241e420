"""A seed decides the plan, and a plan holds enough of every kind of fault to show something."""

from __future__ import annotations

import pytest

from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import SCALES, make_plan


def test_a_seed_decides_the_plan() -> None:
    assert make_plan(1, "full") == make_plan(1, "full")
    assert make_plan(1, "full").lanes != make_plan(2, "full").lanes


@pytest.mark.parametrize("scale", SCALES)
def test_every_fault_of_a_plan_is_one_that_the_nemesis_knows(scale: str) -> None:
    faults = {fault.partition(" ")[0] for lane in make_plan(1, scale).lanes.values() for fault in lane}
    assert all(callable(getattr(Nemesis, f"_{fault}", None)) for fault in faults)


def test_both_scales_have_every_kind_of_fault() -> None:
    full, short = (
        {fault for lane in make_plan(1, scale).lanes.values() for fault in lane} for scale in ("full", "short")
    )
    assert full == short
