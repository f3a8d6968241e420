"""Are pictures that look alike found, all of them, and none that do not?"""

from __future__ import annotations

import tracemalloc
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from farm.dataset import quality
from farm.dataset.quality import MAX_DISTANCE, duplicates, measure
from farm.errors import InvalidJob
from tests.dataset.made import drawn


def brute(values: list[int], distance: int) -> list[int]:
    """What `duplicates` gives, by comparing all with all."""
    found: list[int] = []
    for place, value in enumerate(values):
        kept = (other for other in range(place) if found[other] == other)
        found.append(next((other for other in kept if (value ^ values[other]).bit_count() <= distance), place))
    return found


near = st.lists(st.integers(0, 63), max_size=12).map(lambda bits: sum({1 << bit for bit in bits}))


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 3), near), max_size=60),
    distance=st.integers(0, MAX_DISTANCE),
    small=st.sampled_from([1, 8, 1000]),
    pairs=st.sampled_from([0, 10, 1000]),
)
@settings(max_examples=400, deadline=None)
def test_it_finds_what_comparing_all_with_all_finds(
    seeds: list[int], steps: list[tuple[int, int]], distance: int, small: int, pairs: int
) -> None:
    # Given hashes near to a few, so that many are alike
    values = seeds + [seeds[which % len(seeds)] ^ change for which, change in steps]
    # When they are sought in whole, in halves, and in the halves of these; then it is always the same
    with patch.multiple(quality, SMALL=small, PAIRS=pairs):
        found = duplicates([f"{value:016x}" for value in values], distance)
    assert found == brute(values, distance)


@pytest.mark.parametrize("distance", range(MAX_DISTANCE + 1))
def test_planted_ones_are_found_among_strangers(distance: int) -> None:
    # Given 20,000 strangers, then copies of the first fifty, each with as many bits turned as may be
    dice = np.random.default_rng(7)
    values = [int(one) for one in dice.integers(0, 2**64, 20_000, dtype=np.uint64)]
    for place in range(50):
        turned = sum(1 << int(bit) for bit in dice.choice(64, distance, replace=False))
        values.append(values[place] ^ turned)
    # When
    found = duplicates([f"{value:016x}" for value in values], distance)
    # Then
    assert found[20_000:] == list(range(50))
    assert found[:20_000] == list(range(20_000))


def test_the_first_is_kept_and_a_drift_is_cut() -> None:
    # Given each one bit further from the first
    values = [(1 << bits) - 1 for bits in range(10)]
    # Then a kept one stands for the next three
    assert duplicates([f"{value:016x}" for value in values], 3) == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_memory_does_not_grow_with_the_pairs() -> None:
    # Given all hashes of 13 bits: 33 million pairs, of which a million and a half are alike, by three masks each
    values = np.random.default_rng(3).permutation(1 << 13)
    hashes = [f"{value:016x}" for value in values]
    # When a hundred thousand may be listed
    tracemalloc.start()
    with patch.object(quality, "PAIRS", 100_000):
        found = duplicates(hashes, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Then what is kept are words of a code: few, and each other one is near to the one that it is said to repeat
    kept = sorted(set(found))
    assert len(kept) < 400
    assert all((int(values[a]) ^ int(values[b])).bit_count() > 3 for a, b in combinations(kept, 2))
    assert all((int(values[i]) ^ int(values[first])).bit_count() <= 3 for i, first in enumerate(found))
    assert peak < 16_000_000  # the pairs alone would take three times that


def test_many_equal_ones_cost_no_more() -> None:
    assert duplicates(["00000000000000ff"] * 200_000, 8) == [0] * 200_000


def test_none_are_alike_in_nothing() -> None:
    assert duplicates([], 3) == []


@pytest.mark.parametrize("distance", [-1, 9])
def test_a_distance_that_is_not_offered_is_refused(distance: int) -> None:
    with pytest.raises(InvalidJob, match="distance: 0 to 8"):
        duplicates(["0" * 16], distance)


@pytest.mark.parametrize("wrong", ["", "xyz", "1" + "0" * 16])
def test_what_is_no_hash_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidJob, match="phash"):
        duplicates(["0" * 16, wrong], 3)


def test_a_picture_is_measured() -> None:
    # Given one half black, one half white
    image = Image.new("RGB", (64, 64))
    image.paste("white", (0, 0, 32, 64))
    # Then
    found = measure(image)
    assert (found.luma_mean, found.luma_std, found.luma_top) == (127.5, 127.5, 0.5)


def test_a_uniform_picture_shows() -> None:
    found = measure(Image.new("RGB", (64, 64), "teal"))
    assert (found.luma_std, found.luma_top) == (0, 1)


def test_a_picture_scaled_is_near_and_another_is_not() -> None:
    def bits(one: Image.Image, other: Image.Image) -> int:
        return (int(measure(one).phash, 16) ^ int(measure(other).phash, 16)).bit_count()

    assert bits(drawn(1), drawn(1).resize((256, 256))) <= 3
    assert bits(drawn(1), drawn(2)) > MAX_DISTANCE
