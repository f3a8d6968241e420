"""What does a picture, whoever drew it, say of how it was made, as a chain that can be changed and drawn again?

The farm's own carry every recipe; A1111's and their like carry what `sd-parsers` reads, and ComfyUI's a graph
(`farm.comfy`): a prompt and one sampler. What they say beyond that is told in `notes`, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydantic import ValidationError

from farm.catalog import Catalog
from farm.comfy import Drawn, Node, drawn, nodes_of
from farm.comfy_stages import chain_of
from farm.errors import InvalidJob
from farm.image import UNREADABLE, read_recipe
from farm.job import stage_of, stage_seed
from farm.sampler import SAMPLERS
from farm.stage import MAX_SEED, kinds

LARGEST_SIDE = 1 << 16
MAX_GRAPH = 5_000_000
"""Bytes of a graph; those of ComfyUI's largest templates have some 200,000."""
MAX_PASSED = 8
"""Nodes that are named of those that a graph is read without."""
_BEFORE = b"\xef\xbb\xbf \t\r\n"
"""What an editor may put before JSON: the bytes of a byte order mark, and white space."""
MAX_PROMPT = 2000
"""Characters of a prompt that a stage takes."""
_LORA = re.compile(r"<(?:lora|lyco|hypernet):([^<>:]{1,200})(?::([^<>]{0,40}))?>")
"""Weights that a prompt of A1111's names. Source: its extra_networks.py."""
COMFY = {
    "ddim": "DDIM", "dpm_2": "DPM2", "dpm_2_ancestral": "DPM2 a", "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_sde": "DPM++ SDE", "euler": "Euler", "euler_ancestral": "Euler a",
    "heun": "Heun", "lcm": "LCM", "lms": "LMS", "uni_pc": "UniPC",
}  # fmt: skip
"""ComfyUI's names of samplers in A1111's words. Source: ComfyUI, comfy/samplers.py, KSAMPLER_NAMES."""


@dataclass(frozen=True)
class Recalled:
    """`source`: what drew the picture. `chain`: as a chain file would write it. `notes`: what could not be taken.

    `loras`: those that the notes tell of, each with its weight, by the other program's name for it.
    """

    source: str
    chain: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    loras: list[tuple[str, float]] = field(default_factory=list)


def recalled(data: bytes, catalog: Catalog | None = None) -> Recalled:
    """How a picture, an image file's bytes, was made; also a graph of ComfyUI's, as JSON in its API format.

    Of a graph, LoRAs and checkpoints that `catalog` knows by their files' names are the stages'.

    Raises:
        InvalidJob: (`bad_file`) it does not say.
    """
    written = data.lstrip(_BEFORE)
    if written[:1] == b"{" and len(written) <= MAX_GRAPH:
        graph = _of_nodes(nodes_of(written.decode(errors="replace")), catalog)
        if graph is not None:
            return graph
    try:
        return Recalled("latent-farm", _own(read_recipe(data)["recipes"]))
    except (InvalidJob, KeyError, IndexError, TypeError, ValueError, AttributeError):
        return _foreign(data, catalog)


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


def _foreign(data: bytes, catalog: Catalog | None) -> Recalled:
    """What another program's picture says."""
    from PIL import Image
    from sd_parsers import ParserManager
    from sd_parsers.exceptions import ParserError

    remedy = (
        "a PNG as the farm, A1111, ComfyUI, InvokeAI or Fooocus wrote it, or a WebP or JPEG that says as much; editors "
        "and image hosts drop what it says"
    )
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
            if graph := _of_nodes(nodes_of(_graph(opened)), catalog):
                return graph
            found = ParserManager().parse(opened)
    except (*UNREADABLE, AttributeError, RecursionError, ParserError):
        found = None
    if found is None or not found.samplers:
        raise InvalidJob("the picture does not say how it was made", code="bad_file", hint=remedy)
    sampler, notes = found.samplers[0], list[str]()
    told = {**found.metadata, **sampler.parameters}
    prompt = re.sub(rf",?\s*{_LORA.pattern}", "", found.full_prompt).strip()
    chain = _chain(
        (prompt, found.full_negative_prompt or ""),
        {**told, "cfg": told.get("cfg_scale"), "sampler_name": sampler.name}, _size(told, found.raw_parameters), notes,
    )  # fmt: skip
    notes += [_without(name, weight) for name, weight in _LORA.findall(found.full_prompt)]
    if sampler.model is not None and sampler.model.name:
        notes.append(f"drawn with the checkpoint {sampler.model.name[:80]}")
    notes += [f"{name}: {str(value)[:80]}" for name, value in found.metadata.items() if str(name).startswith("Hires")]
    return Recalled(found.generator.value, chain, notes, _weighed(_LORA.findall(found.full_prompt)))


def _graph(opened: Any) -> str:
    """The graph that a picture of ComfyUI's holds: a PNG's in a chunk, a WebP's in its EXIF; "" for none."""
    from PIL import ExifTags

    text = opened.info.get("prompt", "")
    if not text and (model := str(opened.getexif().get(ExifTags.Base.Model, ""))).startswith("prompt:"):
        text = model.removeprefix("prompt:")
    return text if isinstance(text, str) else ""


def _of_nodes(nodes: Mapping[str, Node], catalog: Catalog | None) -> Recalled | None:
    """What a graph of ComfyUI's says: the whole chain where it is one, else how its first sampler was told."""
    whole = chain_of(nodes, catalog)
    # One sampler that was told what no stage takes is read with less, and with word of it.
    if whole and (len(whole.chain["stages"]) > 1 or _takes(whole.chain)):
        return Recalled("ComfyUI", whole.chain, whole.notes, whole.loras)
    found = drawn(nodes)
    return _of_graph(found) if found else None


def _takes(chain: Mapping[str, Any]) -> bool:
    """Whether every stage of a chain takes what it is told."""
    texts = {name: text for name, text in chain.items() if name != "stages"}
    try:
        for stage in chain["stages"]:
            kinds()[stage["kind"]].model_validate({**texts, **stage})
    except ValidationError:
        return False
    return True


def _of_graph(found: Drawn) -> Recalled:
    """What the first sampler of a graph says."""
    notes = [] if found.prompt else ["what it was told to draw could not be found"]
    size = _sides(*map(_number, found.size))
    chain = _chain((found.prompt, found.negative_prompt), found.parameters, size, notes)
    notes += [_without(name, weight) for name, weight in found.loras]
    if found.checkpoint:
        notes.append(f"drawn with the checkpoint {found.checkpoint[:80]}")
    denoise = _number(found.parameters.get("denoise"))
    if denoise is not None and denoise < 1:
        notes.append(f"denoise {denoise:g}: it began with a picture, which is not in the file")
    if (guidance := _number(found.parameters.get("guidance"))) is not None:
        notes.append(f"guidance {guidance:g} of a distilled checkpoint")
    if found.passed:
        notes.append(f"without what these nodes did: {', '.join(name[:60] for name in found.passed[:MAX_PASSED])}")
    if found.samplers > 1:
        notes.append(f"the first of {found.samplers} samplers")
    return Recalled("ComfyUI", chain, notes, _weighed(found.loras))


def _weighed(loras: Iterable[tuple[str, Any]]) -> list[tuple[str, float]]:
    """LoRAs with their weight as a number: of two it is the UNet's, which is the last; 1 where none is told."""
    numbers = [(name[:80], _number(str(weight or "").split(":")[-1].removeprefix("unet="))) for name, weight in loras]
    return [(name, 1.0 if weight is None else weight) for name, weight in numbers]


def _without(name: str, weight: object) -> str:
    return (
        f"without the LoRA {name[:80]}{f' ({str(weight)[:10]})' if weight else ''}: name one of the catalog's in loras"
    )


def _chain(
    prompts: tuple[str, str], told: Mapping[str, Any], size: tuple[int, int] | None, notes: list[str]
) -> dict[str, Any]:
    """A chain of one stage as it was told; what of it could not be taken is added to `notes`."""
    stage: dict[str, Any] = {"kind": "text2img"}
    for name, field_, most in (("steps", "num_inference_steps", 150), ("cfg", "guidance_scale", 30)):
        number = _number(told.get(name))
        if number is not None and number <= most:
            stage[field_] = round(number) if field_ == "num_inference_steps" else number
        elif number is not None:
            notes.append(f"{name} {number:g} is more than {most}")
    if size:
        stage["width"], stage["height"] = size
    sampler = str(told.get("sampler_name") or "")
    scheduler = _scheduler(sampler, str(told.get("scheduler", "")))
    if scheduler:
        stage["scheduler"] = scheduler
    elif sampler and sampler != "default":
        notes.append(f"the sampler {sampler[:60]} is not known here")
    chain: dict[str, Any] = {"stages": [stage]}
    for field_, text in zip(("prompt", "negative_prompt"), prompts, strict=True):
        if len(text) > MAX_PROMPT:
            notes.append(f"the {field_.replace('_', ' ')} is cut at {MAX_PROMPT} of {len(text)} characters")
        if text or field_ == "prompt":
            chain[field_] = text[:MAX_PROMPT]
    seed = next((told[name] for name in ("seed", "noise_seed") if told.get(name) is not None), None)
    number = _number(seed)
    if number is not None and 0 <= number <= MAX_SEED:
        chain["seed"] = int(number)
    elif seed is not None:
        notes.append(f"the seed {str(seed)[:30]} is none of 0 to {MAX_SEED}")
    return chain


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
    return _sides(_number(sides[0]), _number(sides[1]))


def _sides(wide: float | None, high: float | None) -> tuple[int, int] | None:
    return (int(wide), int(high)) if wide and high and 0 < wide < LARGEST_SIDE and 0 < high < LARGEST_SIDE else None


def _scheduler(name: str | None, spacing: str) -> str | None:
    """A sampler's name as a stage takes it; None for one that is not known here."""
    known = COMFY.get(name or "", name or "")
    if spacing.lower() == "karras" and f"{known} Karras" in SAMPLERS:
        known = f"{known} Karras"
    return known if known in SAMPLERS else None
