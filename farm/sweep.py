"""Which variants of a chain does a sweep mean?

A sweep is a list of axes, each a mapping of names to lists of values. Within an axis the lists go side by side (zip),
axes multiply (product)::

    [{"prompt": ["a pear", "a plum"]}, {"0.guidance_scale": [3, 7], "seed": [1, 2]}]

are four variants. The names are the chain's own fields and stage parameters, as `Farm.chain` takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from farm.plan import wrong

Sweep = Sequence[Mapping[str, Sequence[Any]]]
MAX_AXES = 8
"""Axes of one sweep: with two values each, 256 variants."""


def count_of(sweep: Sweep) -> int:
    """How many variants there are; 1 without an axis.

    Raises:
        InvalidJob: an axis is none; names it.
    """
    if not isinstance(sweep, list | tuple) or len(sweep) > MAX_AXES:
        raise wrong("sweep", f"a list of at most {MAX_AXES} axes, each a mapping of names to lists of values")
    return prod(_length(index, axis) for index, axis in enumerate(sweep))


def variants(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What each variant changes: one place of every axis, the last axis turning fastest."""
    for places in product(*(range(_length(index, axis)) for index, axis in enumerate(sweep))):
        yield {name: axis[name][place] for axis, place in zip(sweep, places, strict=True) for name in axis}


def refuse_several(given: Mapping[str, Any]) -> None:
    """Refuses the words for several jobs where one is submitted."""
    if {"count", "sweep"} & set(given):
        raise wrong("count", "render submits one job; run submits several")


def _length(index: int, axis: Mapping[str, Sequence[Any]]) -> int:
    """How many values an axis has."""
    lists = list(axis.values()) if isinstance(axis, Mapping) else []
    lengths = {len(values) if isinstance(values, list | tuple) else 0 for values in lists}
    if len(lengths) != 1 or 0 in lengths:
        raise wrong(f"sweep.{index}", "an axis has one or more names, each with a list, all of one length")
    return lengths.pop()
