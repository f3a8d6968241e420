"""Are the chain and the axes of a dataset possible, whatever stands in its rows?

Looked at before any row is read, and told once each: a million rows that are all refused for the same value of an axis
take a minute to say less.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from farm.chain import value_errors
from farm.dataset.moulds import Moulds
from farm.dataset.spec import DatasetSpec
from farm.errors import FieldError, InvalidJob
from farm.stage import ALIASES

MAX_SHAPES = 200
"""So many places of axes are tried: some milliseconds each."""
TRIED_S = 5.0
"""So long they are tried, seconds: their images are read for it. What is left then, rows tell."""
MAX_TOLD = 50
"""So many wrong values are told."""
OF_ROW = ("prompt", "negative_prompt", "seed")
"""What an axis may give that is no part of a mould."""


def check_values(spec: DatasetSpec, check_own: Callable[[str, Any], bool]) -> None:
    """Refuses values of axes that are wrong whatever the other parameters are.

    `check_own` checks what is no parameter of a stage, and says whether it is so.

    Raises:
        InvalidJob: names each axis and value.
    """
    found = dict[FieldError, None]()
    for axis in spec.sweep:
        for name, value in ((name, value) for name, values in axis.items() for value in values):
            told: tuple[FieldError, ...] = ()
            try:
                if not check_own(name, value):
                    told = tuple(value_errors(spec.chain["stages"], name, value))
            except InvalidJob as error:
                told = error.errors
            found |= {FieldError(f"sweep.{name}", f"{_short(value)}: {one.msg}", one.code): None for one in told}
    if found:
        raise InvalidJob(errors=tuple(found)[:MAX_TOLD])


def check_shapes(spec: DatasetSpec, moulds: Moulds) -> None:
    """Refuses a chain, or places of its axes, that rows which give no parameter cannot run.

    Each axis is tried with the first places of the others; what only two of them together make impossible, rows tell.

    Raises:
        InvalidJob: names the axis that brought it, or the chain's own field.
    """
    plain = {name: values[0] for axis in spec.sweep for name, values in axis.items()}
    own = _errors(moulds, plain)
    found = {FieldError(_axis_of(spec, one.loc) or one.loc, one.msg, one.code): None for one in own}
    places = [(axis, place) for axis in spec.sweep for place in range(len(next(iter(axis.values()))))]
    until = time.monotonic() + TRIED_S
    for axis, place in places[:MAX_SHAPES]:
        if time.monotonic() > until:
            break
        swept = {name: values[place] for name, values in axis.items()}
        for one in _errors(moulds, {**plain, **swept}):
            if one not in own:
                told = ", ".join(f"{name} {_short(value)}" for name, value in swept.items())
                loc = _axis_of(spec, one.loc) or f"sweep.{next(iter(axis))}"
                found[FieldError(loc, f"{told}: {one.msg}", one.code)] = None
    if found:
        raise InvalidJob(errors=tuple(found)[:MAX_TOLD])


def names_of(name: str) -> set[str]:
    """What a parameter may be called, in the same place."""
    place, dot, last = name.rpartition(".")
    field = ALIASES.get(last, last)
    return {place + dot + one for one in (field, *(alias for alias, known in ALIASES.items() if known == field))}


def _errors(moulds: Moulds, changes: Mapping[str, Any]) -> list[FieldError]:
    """Why the chain is not possible with these changes. That its input image is missing is none: rows name it."""
    try:
        moulds.of({name: value for name, value in changes.items() if name not in OF_ROW})
    except InvalidJob as error:
        found = error.errors or (FieldError("chain", error.message, error.code),)
        return [one for one in found if one.code != "no_image"]
    return []


def _axis_of(spec: DatasetSpec, loc: str) -> str:
    """Where an axis stands that gives the field at `loc`; "" where none does."""
    field = loc.removeprefix("stages.")
    ours = names_of(field) | names_of(field.rpartition(".")[2])
    return next((f"sweep.{name}" for axis in spec.sweep for name in axis if name in ours), "")


def _short(value: Any) -> str:
    """A value of an axis, as it is told."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
