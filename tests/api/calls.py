"""Which calls does the API know? Read from its own document, so that a new one is in every table that goes by it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from farm.api.app import make_app
from farm.settings import Settings

DOCUMENT: dict[str, Any] = json.loads(json.dumps(make_app(Settings()).openapi()))
BODIES: dict[str, Any] = {
    "jobs.move": {"priority": 1},
    "jobs.fork": {"from_stage": 1},
    "jobs.tag": {"add": ["x"]},
    "datasets.move": {"priority": 1},
    "farm.save_chain": {"chain": {"stages": [{"kind": "none"}]}},
}
"""A body for each call with an id that needs one."""


@dataclass(frozen=True)
class Call:
    """One call of the document."""

    id: str
    method: str
    path: str
    known: bool
    """Whether it asks who calls."""

    @property
    def names(self) -> list[str]:
        """The ids in its address."""
        return re.findall(r"{(\w+)}", self.path)

    def at(self, values: Mapping[str, str]) -> str:
        """Its address with the ids filled in."""
        return re.sub(r"{(\w+)}", lambda found: values[found[1]], self.path)

    @property
    def body(self) -> Any:
        """A body that it takes, None where it takes none."""
        told = DOCUMENT["paths"][self.path][self.method.lower()]
        if "application/json" not in (content := told.get("requestBody", {}).get("content", {})):
            return None
        needed = whole(content["application/json"]["schema"]).get("required") if self.names else None
        assert self.id in BODIES or not needed, f"say in BODIES what {self.id} takes"
        return BODIES.get(self.id, {})


def whole(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that `schema` points to, or is."""
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def calls() -> Iterator[Call]:
    """All of them."""
    for path, methods in DOCUMENT["paths"].items():
        for method, told in methods.items():
            yield Call(told["operationId"], method.upper(), path, "security" in told)


def text_fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Where a text may stand in what the schema describes; "0" is the first entry of a list."""
    schema = whole(schema)
    for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        yield from text_fields(option)
    if schema.get("type") == "string" and "const" not in schema:
        yield ()
    for name, inner in schema.get("properties", {}).items():
        yield from ((name, *path) for path in text_fields(inner))
    if "items" in schema:
        yield from (("0", *path) for path in text_fields(schema["items"]))


def placed(path: tuple[str, ...], text: str, beside: Mapping[str, str]) -> Any:
    """A value with `text` at the path, and `beside` in each object on the way."""
    if not path:
        return text
    inner = placed(path[1:], text, {"name": "tiny-lora", "image": "sha256:" + "0" * 64} if path[0] == "0" else {})
    if path[0] == "0":
        return [inner]
    needed = {name: value for name, value in beside.items() if name != path[0]}
    return {**needed, path[0]: inner}
