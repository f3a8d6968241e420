"""What does a picture, whoever drew it, say of how it was made, as a chain that can be changed and drawn again?

The farm's own carry every recipe; A1111's, ComfyUI's and their like carry what `sd-parsers` reads: a prompt and one
sampler. What they say beyond that is told in `notes`, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from farm.errors import InvalidJob
from farm.image import UNREADABLE, read_recipe
from farm.job import stage_of, stage_seed
from farm.sampler import SAMPLERS
from farm.stage import MAX_SEED, kinds

LARGEST_SIDE = 1 << 16
COMFY = {
    "ddim": "DDIM", "dpm_2": "DPM2", "dpm_2_ancestral": "DPM2 a", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "euler": "Euler", "euler_ancestral": "Euler a",
    "heun": "Heun", "lcm": "LCM", "lms": "LMS", "uni_pc": "UniPC",
}  # fmt: skip
"""ComfyUI's names of samplers in A1111's words. Source: ComfyUI, comfy/samplers.py, KSAMPLER_NAMES."""


@dataclass(frozen=True)
class Recalled:
    """`source`: what drew the picture. `chain`: as a chain file would write it. `notes`: what could not be taken."""

    source: str
    chain: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def recalled(data: bytes) -> Recalled:
    """How a picture, an image file's bytes, was made.

    Raises:
        InvalidJob: (`bad_file`) it does not say.
    """
    try:
        return Recalled("latent-farm", _own(read_recipe(data)["recipes"]))
    except (InvalidJob, KeyError, IndexError, TypeError, ValueError, AttributeError):
        return _foreign(data)


def _own(recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """The chain of recipes of the farm's, without what it would be anyway."""
    seed = recipes[0]["seed"]
    prompts: Mapping[str, Any] = next(
        (recipe["parameters"] for recipe in recipes if recipe["parameters"].get("prompt")), {}
    )
    shared = {name: prompts.get(name) or "" for name in ("prompt", "negative_prompt")}
    stages = []
    for position, recipe in enumerate(recipes):
        fields = kinds()[recipe["kind"]].model_fields
        own = {name: value for name, value in stage_of(recipe).items() if name in fields}
        if own.get("seed") in (stage_seed(seed, position), 0):
            own.pop("seed", None)
        for name in [name for name, value in own.items() if name != "kind" and _is_default(fields[name], value)]:
            del own[name]
        for name, text in shared.items():
            if own.get(name) == text:
                del own[name]
        stages.append(own)
    return {**{name: text for name, text in shared.items() if text}, "seed": seed, "stages": stages}


def _is_default(known: Any, value: object) -> bool:
    default = known.get_default(call_default_factory=True)
    return bool(value is None or value == (default.model_dump() if hasattr(default, "model_dump") else default))


def _foreign(data: bytes) -> Recalled:
    """What another program's picture says."""
    from PIL import Image
    from sd_parsers import ParserManager
    from sd_parsers.exceptions import ParserError

    remedy = (
        "a PNG as the farm, A1111, ComfyUI, InvokeAI or Fooocus wrote it; editors and image hosts drop what it says"
    )
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
            found = ParserManager().parse(opened)
    except (*UNREADABLE, AttributeError, RecursionError, ParserError):
        found = None
    if found is None or not found.samplers:
        raise InvalidJob("the picture does not say how it was made", code="bad_file", hint=remedy)
    sampler, notes = found.samplers[0], list[str]()
    stage: dict[str, Any] = {"kind": "text2img"}
    told = {**found.metadata, **sampler.parameters}
    for name, field_, most in (("steps", "num_inference_steps", 150), ("cfg_scale", "guidance_scale", 30)):
        if (number := _number(told.get(name))) is not None and number <= most:
            stage[field_] = round(number) if field_ == "num_inference_steps" else number
    if size := _size(told, found.raw_parameters):
        stage["width"], stage["height"] = size
    scheduler = _scheduler(sampler.name, str(told.get("scheduler", "")))
    if scheduler:
        stage["scheduler"] = scheduler
    elif sampler.name and sampler.name != "default":
        notes.append(f"the sampler {sampler.name[:60]} is not known here")
    if sampler.model is not None and sampler.model.name:
        notes.append(f"drawn with the checkpoint {sampler.model.name[:80]}")
    notes += [f"{name}: {str(value)[:80]}" for name, value in found.metadata.items() if str(name).startswith("Hires")]
    chain: dict[str, Any] = {"prompt": found.full_prompt[:2000], "stages": [stage]}
    if negative := found.full_negative_prompt:
        chain["negative_prompt"] = negative[:2000]
    seed = _number(told.get("seed"))
    if seed is not None and 0 <= seed <= MAX_SEED:
        chain["seed"] = int(seed)
    return Recalled(found.generator.value, chain, notes)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if abs(number) <= MAX_SEED else None


def _size(told: Mapping[str, Any], raw: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height in pixels, where they are told: A1111's `Size: 512x768`, two numbers, or a node of ComfyUI's."""
    match = re.search(r"\bSize: (\d{1,5})x(\d{1,5})", str(raw.get("parameters", "")))
    nodes = [node for nodes in told.values() if isinstance(nodes, list) for node in nodes if isinstance(node, dict)]
    sized = next((node for node in [told, *nodes] if "width" in node and "height" in node), told)
    sides = match.groups() if match else (sized.get("width"), sized.get("height"))
    wide, high = _number(sides[0]), _number(sides[1])
    return (int(wide), int(high)) if wide and high and 0 < wide < LARGEST_SIDE and 0 < high < LARGEST_SIDE else None


def _scheduler(name: str | None, spacing: str) -> str | None:
    """A sampler's name as a stage takes it; None for one that is not known here."""
    known = COMFY.get(name or "", name or "")
    if spacing.lower() == "karras" and f"{known} Karras" in SAMPLERS:
        known = f"{known} Karras"
    return known if known in SAMPLERS else None
