"""Which variants of a chain does a sweep mean?

A sweep is a list of axes, each a mapping of names to lists of values. Within an axis the lists go side by side (zip),
axes multiply (product)::

    [{"prompt": ["a pear", "a plum"]}, {"0.guidance_scale": [3, 7], "seed": [1, 2]}]

are four variants. The names are the chain's own fields and stage parameters, as `Farm.chain` takes them. Where a list
stands, a text is a range of whole numbers, both ends in it: `{"seed": "0..9"}` is ten seeds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from farm.plan import wrong

Sweep = Sequence[Mapping[str, Sequence[Any]]]
MAX_AXES = 8
"""Axes of one sweep: with two values each, 256 variants."""
MAX_RANGED = 10_000
"""Values that the ranges of one sweep mean together: as many as one row of a dataset has samples."""
RANGE = re.compile(r"(-?[0-9]{1,16})\.\.(-?[0-9]{1,16})")


def listed(sweep: Any) -> Any:
    """A sweep whose ranges are lists; what is no sweep stays as it is.

    Raises:
        InvalidJob: a text is no range, or the ranges mean too many values; names the axis.
    """
    if not isinstance(sweep, list | tuple):
        return sweep
    found, left = list[Any](), MAX_RANGED
    for index, axis in enumerate(sweep):
        if isinstance(axis, Mapping):
            axis = dict(axis)
            for name, values in axis.items():
                if isinstance(values, str):
                    axis[name] = _ranged(f"sweep.{index}.{name}"[:100], values, left)
                    left -= len(axis[name])
        found.append(axis)
    return found


Listed = Annotated[
    list[dict[str, list[Any]]],
    BeforeValidator(
        listed,
        json_schema_input_type=Annotated[
            list[dict[str, list[Any] | Annotated[str, Field(pattern=f"^{RANGE.pattern}$")]]], Field(max_length=MAX_AXES)
        ],
    ),
]
"""A field that takes a sweep, and has its ranges as lists."""


def count_of(sweep: Sweep) -> int:
    """How many variants there are; 1 without an axis.

    Raises:
        InvalidJob: an axis is none; names it.
    """
    sweep = listed(sweep)
    if not isinstance(sweep, list | tuple) or len(sweep) > MAX_AXES:
        raise wrong("sweep", f"a list of at most {MAX_AXES} axes, each a mapping of names to lists of values")
    return prod(_length(index, axis) for index, axis in enumerate(sweep))


def variants(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What each variant changes: one place of every axis, the last axis turning fastest."""
    sweep = listed(sweep)
    for places in product(*(range(_length(index, axis)) for index, axis in enumerate(sweep))):
        yield {name: axis[name][place] for axis, place in zip(sweep, places, strict=True) for name in axis}


def refuse_several(given: Mapping[str, Any]) -> None:
    """Refuses the words for several jobs where one is submitted."""
    if {"count", "sweep"} & set(given):
        raise wrong("count", "render submits one job; run submits several")


def _ranged(loc: str, text: str, most: int) -> list[int]:
    """The whole numbers that a range means, at most so many."""
    if not (ends := RANGE.fullmatch(text)):
        raise wrong(loc, "a list of values, or a range of whole numbers: A..B, such as 0..9")
    low, high = int(ends[1]), int(ends[2])
    if low > high:
        raise wrong(loc, f"{text} goes down; write {high}..{low}")
    if high - low >= most:
        told = f"{high - low + 1:,} values, and all ranges of a sweep mean at most {MAX_RANGED:,}"
        raise wrong(loc, f"{told}; have a shorter range, or two datasets or runs")
    return list(range(low, high + 1))


def _length(index: int, axis: Mapping[str, Sequence[Any]]) -> int:
    """How many values an axis has."""
    lists = list(axis.values()) if isinstance(axis, Mapping) else []
    lengths = {len(values) if isinstance(values, list | tuple) else 0 for values in lists}
    if len(lengths) != 1 or 0 in lengths:
        raise wrong(f"sweep.{index}", "an axis has one or more names, each with a list, all of one length")
    return lengths.pop()
