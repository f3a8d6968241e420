"""What is to be said of a stage kind: what it takes and gives, and its parameters, for people and for programs?"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from farm.stage import Stage


def about(kind: str, stage: type[Stage]) -> dict[str, Any]:
    """A stage kind as data. `fields` has name, type, default and meaning of each parameter, in words."""
    return {
        "kind": kind,
        "about": (stage.__doc__ or "").strip().partition("\n")[0],
        "takes": sorted(stage.takes),
        "gives": sorted(stage.gives),
        "scale": stage.scale,
        "multiple": stage.multiple,
        "schema": stage.model_json_schema(),
        "fields": [list(row) for row in fields(stage)],
    }


def fields(cls: type[BaseModel], before: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each field, and of those that lie in it."""
    for name, field in cls.model_fields.items():
        if not before and name == "kind":
            continue
        inner = _inner(field.annotation)
        # Of what has fields of its own, those say theirs.
        plain = inner is None and not field.is_required() and field.default is not None
        default = str(field.get_default(call_default_factory=True)) if plain else ""
        yield f"{before}{name}", _type(field.annotation), default, field.description or ""
        if inner is not None:
            yield from fields(inner, f"{before}{name}.")


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds one or several of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner, get_args(annotation))), None)


def _type(annotation: Any) -> str:
    """A field's type in a few words; what may be left out is not said."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inside)
    if origin in (Union, UnionType):
        return " | ".join(_type(each) for each in inside if each is not type(None))
    if origin in (list, tuple):
        return f"list of {_type(inside[0])}"
    return str(getattr(annotation, "__name__", annotation))
