"""In which parameters do the samples of a dataset differ, and how does a shard hold their values?

Those of the axes and of the columns that give one, by the names that they have there: `guidance_scale`, `1.strength`.
Every sample has all of them, each of one kind that the chain's fields decide: loaders take types from the first few
samples. A sample whose row gave none has the value that its stage ran with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from farm.chain import Chain
from farm.dataset.spec import DatasetSpec, Sample
from farm.job import canonical, stage_of
from farm.stage import ALIASES, Size, kinds

Kind = Literal["truth", "integer", "number", "text"]
Kinds = Mapping[str, Kind]
"""The kind of each parameter, by name. What is none of the first three is text: a list or an object as JSON."""
NONE: Kinds = MappingProxyType({})
SETTLED = ("checkpoint", "seed", "width", "height")
"""Fields that may be left open in a chain, and never in a recipe."""


def kinds_of(spec: DatasetSpec, given: Mapping[str, int], samples: int) -> dict[str, Kind]:
    """The kinds of the parameters that were `given`, each to so many of the `samples`, sorted by name."""
    return {name: _kind(spec, name, given[name] >= samples) for name in sorted(given)}


def values_of(
    sample: Sample, spec: DatasetSpec, kinds: Kinds, recipes: Sequence[Mapping[str, Any]]
) -> dict[str, bool | int | float | str]:
    """The value of each of these parameters, of its kind, for a sample that `recipes` made."""
    found = {}
    for name, kind in kinds.items():
        value = sample.changes.get(name)
        found[name] = as_kind(kind, _ran(spec, name, recipes) if value is None else value)
    return found


def as_kind(kind: Kind, value: Any) -> Any:
    """A value as every sample has it: a whole number among others is one of them, nothing is "" in text."""
    if kind == "number":
        return float(value)
    if kind == "text":
        return value if isinstance(value, str) else "" if value is None else canonical(value)
    return value


def _kind(spec: DatasetSpec, name: str, always: bool) -> Kind:
    """The kind of a parameter; a number that some samples are without is text, in which nothing has a place."""
    picked, field = _place(name, spec.chain["stages"])
    if name in Chain.model_fields:
        types = _types(Chain.model_fields[name].annotation)
    else:
        fields = [kinds()[stage["kind"]].model_fields for stage in picked]
        types = {one for known in fields if field in known for one in _types(known[field].annotation)}
    if NoneType in types and not always and field not in SETTLED:
        return "text"
    match sorted(one.__name__ for one in types - {NoneType}):
        case ["bool"]:
            return "truth"
        case ["int"]:
            return "integer"
        case ["float"] | ["float", "int"]:
            return "number"
    return "text"


def _ran(spec: DatasetSpec, name: str, recipes: Sequence[Mapping[str, Any]]) -> Any:
    """What the first stage that has this parameter ran with; None where it was left to the checkpoint."""
    picked, field = _place(name, recipes)
    if name in Chain.model_fields:
        return spec.chain.get(name, Chain.model_fields[name].default)
    for recipe in picked:
        stage = stage_of(recipe)
        cls = kinds()[recipe["kind"]]
        if field in ("width", "height") and field in cls.model_fields:
            return getattr(cls.model_validate(stage).given_size(Size(*recipe["size"])), field)
        if field in stage:
            return stage[field]
    return None


def _place(name: str, stages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The stages that a name speaks of, as `farm.chain.override` reads it, and their field."""
    where, _, rest = (f"0.{name}" if name in ("width", "height") else name).partition(".")
    picked, field = (stages[int(where) : int(where) + 1], rest) if where.isdigit() and rest else (stages, name)
    return picked, ALIASES.get(field, field)


def _types(annotation: Any) -> set[type]:
    """The classes of the values that a field takes."""
    origin = get_origin(annotation)
    if origin is Literal:
        return {type(one) for one in get_args(annotation)}
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {one for each in get_args(annotation) for one in _types(each)}
    return {origin or annotation}
