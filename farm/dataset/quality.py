"""What is measured of a picture, and which pictures are alike?

All of it is cheap beside making a picture, so all of it is measured of every picture, and nothing is left out here:
what is too much alike, or too flat, is for an export to say, as often as somebody likes.

Alike are two pictures whose perceptual hashes differ in at most so many bits. Not all pairs of them can be compared, so
they are looked for by the pigeonhole principle: cut the 64 bits into `d + m` blocks; `d` bits that differ lie in at
most `d` of them, so at least `m` blocks are equal. For every choice of `m` blocks, the hashes that agree on these are
brought together by sorting, and only they are compared. With `m = ⌈d / 3⌉` those blocks hold 16 bits or more, and there
are C(d + m, m) choices: 4 for d = 3 (each of four 16-bit bands), 28 for d = 6, 165 for d = 8. Source: Manku, Jain, Das
Sarma, "Detecting Near-Duplicates for Web Crawling" (2007), 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from farm.errors import InvalidJob

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Numbers = np.ndarray[Any, Any]

BITS = 64
SMALL, PAIRS = 1024, 1 << 24
"""So few hashes are all compared with all; of alike pairs so many are listed at once, 8 bytes each."""
MAX_DISTANCE = 8
"""Bits in which alike pictures may differ. Source: beyond some ten bits a 64-bit phash calls strangers alike."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What is known of a picture by looking at it alone.

    `phash`: the 64 bits of its perceptual hash as 16 hex digits. `luma_mean`, `luma_std`: of its brightness, 0 to 255.
    `luma_top`: the share of its pixels that have the most frequent brightness, 0 to 1; 1 of a uniform picture.
    """

    phash: str
    luma_mean: float
    luma_std: float
    luma_top: float


def measure(image: Image) -> Measures:
    """The measures of an RGB picture, rounded so that the last bit of a machine's arithmetic does not show."""
    import imagehash
    from PIL import ImageStat

    luma = image.convert("L")
    counts = luma.histogram()
    brightness = ImageStat.Stat(counts)
    return Measures(
        phash=str(imagehash.phash(luma)),
        luma_mean=round(brightness.mean[0], 3),
        luma_std=round(brightness.stddev[0], 3),
        luma_top=round(max(counts) / brightness.count[0], 5),
    )


def duplicates(hashes: Sequence[str], distance: int) -> list[int]:
    """For each hash the place of the kept one that it repeats; its own place where it is kept.

    In their order the first is kept, and each one that is within `distance` bits of none that was kept. So what is kept
    has no two alike, and of a slow drift from one picture to another a few remain.

    Raises:
        InvalidJob: `distance` is not 0 to 8, or a hash is not 16 hex digits.
    """
    import numpy as np

    if not 0 <= distance <= MAX_DISTANCE:
        raise InvalidJob(f"distance: 0 to {MAX_DISTANCE} bits of {BITS}; more calls strangers alike")
    try:
        values = np.array([int(one, 16) for one in hashes], np.uint64)
    except (ValueError, OverflowError):
        raise InvalidJob("phash: a perceptual hash has 16 hex digits", code="bad_file") from None
    unique, first, which = np.unique(values, return_index=True, return_inverse=True)
    del values
    # Equal ones stand for each other; the others in the order of their first.
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    kept = np.arange(len(order))
    if distance:
        _settle(kept, unique[order], kept.copy(), distance)
    found: list[int] = first[order][kept][rank[which]].tolist()
    return found


def _settle(found: Numbers, values: Numbers, places: Numbers, distance: int) -> None:
    """Sets `found` at `places` (ascending, their values all different) to the place of the kept one, or to its own.

    Where so many pairs are alike that listing them would fill the memory, the first half is settled, then what of the
    second is alike to something kept there is out, then the rest: no list is longer than `PAIRS`.
    """
    import numpy as np

    held = values[places]
    pairs = _pairs(held, distance)
    if pairs is not None:
        # later << 32 | earlier: sorted, every hash comes after all that it may repeat
        for pair in np.unique(pairs).tolist():
            later, earlier = places[pair >> 32], places[pair & 0xFFFFFFFF]
            if found[later] == later and found[earlier] == earlier:
                found[later] = earlier
        return
    first, second = np.array_split(places, 2)
    _settle(found, values, first, distance)
    kept = first[found[first] == first]
    repeated = _first_alike(values[kept], values[second], distance)
    out = repeated < len(kept)
    found[second[out]] = kept[repeated[out]]
    _settle(found, values, second[~out], distance)


def _pairs(values: Numbers, distance: int) -> Numbers | None:
    """The pairs within `distance`, some more than once, each as later << 32 | earlier; None where they are too many."""
    import numpy as np

    if len(values) <= SMALL:
        later, earlier = np.nonzero(np.bitwise_count(values[:, None] ^ values) <= distance)
        return (later << 32 | earlier)[earlier < later]
    found, count = [np.empty(0, np.int64)], 0
    for mask in _masks(distance):
        cut = values & mask
        order = np.argsort(cut, kind="stable")
        cut, ordered = cut[order], values[order]
        # Within a group of equal cuts each one is compared with the next, then with the next but one, and so on.
        left, step = np.arange(len(values)), 1
        while left.size:
            left = left[left + step < len(values)]
            left = left[cut[left] == cut[left + step]]
            near = left[np.bitwise_count(ordered[left] ^ ordered[left + step]) <= distance]
            # The sort is stable, so the later of the two has the later place.
            found.append(order[near + step] << 32 | order[near])
            count, step = count + near.size, step + 1
            if count > PAIRS:
                return None
    return np.concatenate(found)


def _first_alike(kept: Numbers, values: Numbers, distance: int) -> Numbers:
    """For each of `values` the place of the first of `kept` within `distance`; the length of `kept` where none is."""
    import numpy as np

    first = np.full(len(values), len(kept))
    for mask in _masks(distance):
        cut = kept & mask
        order = np.argsort(cut, kind="stable")
        low, high = (np.searchsorted(cut[order], values & mask, side) for side in ("left", "right"))
        live = np.nonzero(low < high)[0]
        while live.size:
            at = order[low[live]]
            near = np.bitwise_count(kept[at] ^ values[live]) <= distance
            first[live[near]] = np.minimum(first[live[near]], at[near])
            low[live] += 1
            live = live[low[live] < high[live]]
    return first


def _masks(distance: int) -> Iterator[np.uint64]:
    """The bits that are looked at together: of any two hashes within `distance`, some mask's bits are equal."""
    import numpy as np

    matched = -(-distance // 3)
    count = distance + matched
    edges = [BITS * place // count for place in range(count + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return (np.uint64(sum(chosen)) for chosen in combinations(blocks, matched))
