"""Would ComfyUI take a graph?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from farm.comfy_nodes import NODES

VALUES: dict[str, tuple[type, ...]] = {
    "INT": (int,), "FLOAT": (int, float), "STRING": (str,), "COMBO": (str,), "BOOLEAN": (bool,),
}  # fmt: skip
"""Types of inputs that are values; those of all other types are links."""


def wrongs(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What ComfyUI would refuse of a graph in its API format: classes, inputs, links and their types."""
    for name, node in nodes.items():
        known = NODES.get(node["class_type"])
        if known is None:
            yield f"{name}: there is no node {node['class_type']}"
            continue
        asked = {**known.inputs, **(known.optional or {})}
        for missing in sorted(known.inputs.keys() - node["inputs"].keys()):
            yield f"{name}: {node['class_type']} needs {missing}"
        for field, value in node["inputs"].items():
            if field not in asked:
                yield f"{name}: {node['class_type']} has no input {field}"
            elif told := _wrong(nodes, asked[field], value):
                yield f"{name}.{field}: {told}"


def _wrong(nodes: Mapping[str, Mapping[str, Any]], wanted: str, value: Any) -> str | None:
    """What is wrong with the value of an input of the type `wanted`."""
    if wanted in VALUES:
        plain = isinstance(value, VALUES[wanted]) and isinstance(value, bool) == (wanted == "BOOLEAN")
        return None if plain else f"{value!r} is no {wanted}"
    if not (isinstance(value, list) and len(value) == 2):
        return f"{value!r} is no link"
    other = nodes.get(value[0])
    if other is None:
        return f"there is no node {value[0]}"
    outputs = NODES[other["class_type"]].outputs if other["class_type"] in NODES else ()
    if not (isinstance(value[1], int) and 0 <= value[1] < len(outputs)):
        return f"{other['class_type']} has no output {value[1]}"
    given = outputs[value[1]]
    return None if given == wanted else f"{given} is no {wanted}"
