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

BITS = 64
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
    kept = _kept(unique[order], distance)
    places = first[order][kept]
    found: list[int] = places[rank[which]].tolist()
    return found


def _kept(values: np.ndarray[Any, Any], distance: int) -> np.ndarray[Any, Any]:
    """For each of these hashes, no two equal, the place of the kept one that it repeats, or its own."""
    import numpy as np

    found = np.arange(len(values))
    if not distance:
        return found
    pairs = np.concatenate([np.empty(0, np.int64), *_alike(values, distance)])
    # later << 32 | earlier: sorted, every hash comes after all that it may repeat
    for pair in np.unique(pairs).tolist():
        later, earlier = pair >> 32, pair & 0xFFFFFFFF
        if found[later] == later and found[earlier] == earlier:
            found[later] = earlier
    return found


def _alike(values: np.ndarray[Any, Any], distance: int) -> Iterator[np.ndarray[Any, Any]]:
    """The pairs within `distance`, some more than once, each as later << 32 | earlier."""
    import numpy as np

    matched = -(-distance // 3)
    count = distance + matched
    edges = [BITS * place // count for place in range(count + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    for chosen in combinations(blocks, matched):
        cut = values & np.uint64(sum(chosen))
        order = np.argsort(cut, kind="stable")
        cut, sorted_values = cut[order], values[order]
        # Within a group of equal cuts each one is compared with the next, then with the next but one, and so on.
        left, step = np.arange(len(values)), 1
        while left.size:
            left = left[left + step < len(values)]
            left = left[cut[left] == cut[left + step]]
            near = left[np.bitwise_count(sorted_values[left] ^ sorted_values[left + step]) <= distance]
            if near.size:
                # The sort is stable, so the later of the two has the later place.
                yield order[near + step] << 32 | order[near]
            step += 1
