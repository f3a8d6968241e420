"""What does a graph of ComfyUI's, as a picture holds it, say of how that was drawn?

The chunk `prompt` is what ComfyUI ran: nodes by id, each with its `class_type` and its `inputs`, which are values or
links, `[id, slot]`. It is there whoever sent it; `workflow`, which the page alone adds, is not needed. Nodes are known
by what they take, not by their class, so those of extensions are read, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STARTS = ("latent_image", "samples", "latent")
"""Inputs from which a sampler starts."""
SAID = {"positive": ("positive", "conditioning"), "negative": ("negative",)}
"""Inputs by which a sampler or its guider is told what to draw, and what not."""
TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "prompt")
"""Inputs of a text encoder."""
VALUES = ("value", "text", "string", "int", "float", "number", "seed", "noise_seed", "Number", "Text")
"""Inputs of a node that holds one value for others."""
WEIGHTS = ("ckpt_name", "unet_name", "lora_name")
"""Inputs of a node that loads weights, which name their file."""
SETTINGS = ("seed", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "guidance")
"""Inputs that set a sampler, its own or those of a node before it."""
GUIDING = re.compile(r"(model|guider|positive|negative|conditioning|sampler|sigmas|noise)\w*")
"""Inputs by which nodes work on how a sampler draws."""
MAX_NODES = 5000
"""Nodes of one graph; real ones have hundreds."""
Node = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """How the first sampler of a graph was set; what it does not say is None or empty.

    `loras`: the name and weight of each. `samplers`: how many there are. `passed`: the classes of the nodes that worked
    on how it draws, and of which nothing is read.
    """

    prompt: str
    negative_prompt: str
    parameters: dict[str, Any]
    checkpoint: str
    loras: list[tuple[str, Any]]
    samplers: int
    passed: list[str]
    size: tuple[Any, Any] = field(default=(None, None))


def nodes_of(text: str) -> dict[str, Node]:
    """The nodes of a graph in ComfyUI's API format, as a chunk `prompt` holds it; none where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or len(found) > MAX_NODES:
        return {}
    return {str(name): node for name, node in found.items() if _is_node(node)}


def drawn(nodes: Mapping[str, Node]) -> Drawn | None:
    """What a graph says; None where nothing in it samples."""
    samplers = [name for name in nodes if _samples(nodes, name)]
    if not samplers:
        return None
    # The first: no other one's latents come to it.
    first = next((name for name in samplers if not _upstream_samplers(nodes, name)), samplers[0])
    parameters = {name: value for name in SETTINGS if (value := _nearest(nodes, first, name)) is not None}
    model = list(_walk(nodes, first, lambda name: name in ("model", "guider", "model_high_noise")))
    named = [_value(nodes, node["inputs"].get(name)) for node in model for name in ("ckpt_name", "unet_name")]
    return Drawn(
        prompt=_words(nodes, first, "positive"),
        negative_prompt=_words(nodes, first, "negative"),
        parameters=parameters,
        checkpoint=next((name for name in named if isinstance(name, str)), ""),
        loras=[
            (str(name), _value(nodes, node["inputs"].get("strength_model")))
            for node in model
            if (name := _value(nodes, node["inputs"].get("lora_name")))
        ],
        samplers=len(samplers),
        passed=list(
            dict.fromkeys(node["class_type"] for node in _walk(nodes, first, GUIDING.fullmatch) if _passed(node))
        ),
        size=_size(nodes, first),
    )


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str)


def _passed(node: Node) -> bool:
    """Whether a node does something by what it is told, of which nothing is read."""
    told = {name for name in node["inputs"] if name not in STARTS and not GUIDING.fullmatch(name)}
    return bool(told) and told.isdisjoint((*SETTINGS, *TEXTS, *VALUES, *WEIGHTS))


def _linked(nodes: Mapping[str, Node], value: Any) -> str | None:
    """The node that an input is linked to; None where it is a value."""
    if isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes:
        return str(value[0])
    return None


def _samples(nodes: Mapping[str, Node], name: str) -> bool:
    inputs = nodes[name]["inputs"]
    starts = any(_linked(nodes, inputs.get(one)) for one in STARTS)
    return starts and any(_linked(nodes, inputs.get(one)) for one in ("positive", "guider"))


def _walk(nodes: Mapping[str, Node], start: str, through: Any) -> Iterator[Node]:
    """The node `start`, and those that are reached from it by inputs whose name goes `through`, the nearest first."""
    waiting, seen = [start], {start}
    while waiting:
        node = nodes[waiting.pop(0)]
        yield node
        for name, value in node["inputs"].items():
            other = _linked(nodes, value) if through(name) else None
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)


def _upstream_samplers(nodes: Mapping[str, Node], name: str) -> bool:
    def before(one: str) -> bool:
        return one in STARTS or one in ("image", "pixels", "images")

    starts = {id(nodes[other]) for other in nodes if other != name and _samples(nodes, other)}
    return any(id(node) in starts for node in _walk(nodes, name, before))


def _nearest(nodes: Mapping[str, Node], start: str, name: str) -> Any:
    """The value of an input `name` of the sampler, or of the nearest node that sets it; not of what is drawn before."""
    aside = {*STARTS, "clip", "vae", "image", "negative", *(() if name == "guidance" else SAID["positive"])}
    for node in _walk(nodes, start, lambda one: one not in aside):
        if name in node["inputs"]:
            return _value(nodes, node["inputs"][name])
    return None


def _value(nodes: Mapping[str, Node], value: Any) -> Any:
    """A value, also where a node that holds it is linked to; None where that cannot be told."""
    for _ in range(len(nodes) + 1):
        other = _linked(nodes, value)
        if other is None:
            return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        inputs = nodes[other]["inputs"]
        value = next((inputs[name] for name in VALUES if name in inputs), None)
    return None


def _words(nodes: Mapping[str, Node], sampler: str, which: str) -> str:
    """What the sampler is told to draw (`positive`), or not to (`negative`): the texts of all encoders before it."""
    guiders = _walk(nodes, sampler, lambda name: name == "guider")
    begins = [node["inputs"][name] for node in guiders for name in SAID[which] if name in node["inputs"]]
    found: list[str] = []
    for begin in begins:
        start = _linked(nodes, begin)
        if start is None:
            continue
        for node in _walk(nodes, start, lambda name: name.startswith("conditioning") or name == which):
            if node["class_type"] == "ConditioningZeroOut":
                break
            texts = [_value(nodes, node["inputs"].get(name)) for name in TEXTS]
            found += [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    return ", ".join(dict.fromkeys(found))


def _size(nodes: Mapping[str, Node], sampler: str) -> tuple[Any, Any]:
    for node in _walk(nodes, sampler, lambda name: name in STARTS):
        inputs = node["inputs"]
        if "width" in inputs and "height" in inputs:
            return _value(nodes, inputs["width"]), _value(nodes, inputs["height"])
    return None, None
