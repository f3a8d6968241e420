"""What does a picture say of itself to programs that know nothing of the farm?

Beside the recipe, which alone is read back, a PNG carries the `parameters` text that A1111's programs write and many
read, and an XMP packet that says that a machine drew it. Both follow from the recipes: equal recipes, equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from farm.sampler import a1111_name

PARAMETERS, XMP = "parameters", "XML:com.adobe.xmp"
"""Keywords of the two text chunks. Source: A1111's `save_image`; XMP specification, part 3, 1.1.5."""
# Source: IPTC Photo Metadata Standard 2025.1, Digital Source Type; XMP specification, part 1, 7.3 (the wrapper).
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_MARKS = re.compile(r"\b(Negative prompt|Steps):")
"""By these words readers find where the prompt ends."""


def label(recipes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The text chunks of a picture that `recipes` made, by keyword."""
    told = parameters(recipes)
    return ({PARAMETERS: told} if told else {}) | {XMP: PACKET}


def parameters(recipes: Sequence[Mapping[str, Any]]) -> str:
    """The picture's parameters as A1111 writes them; "" where no stage denoised anything.

    It knows one denoising and what enlarges it: the first stage that denoises is told, with the strength of what
    redraws its picture and the final size. A scheduler that the chain left to the checkpoint is `default`. Source:
    A1111's `create_infotext` and `parse_generation_parameters`.
    """
    drawn = [recipe for recipe in recipes if "num_inference_steps" in recipe["parameters"]]
    if not drawn:
        return ""
    first, own = drawn[0], drawn[0]["parameters"]
    told = {
        "Steps": len(own.get("timesteps") or ()) or own["num_inference_steps"],
        "Sampler": a1111_name(own.get("scheduler"), own.get("scheduler_options") or {}),
        "CFG scale": own.get("guidance_scale"),
        "Seed": first["seed"],
        "Size": _size(first),
        "Model hash": first["checkpoint"]["manifest"][:10],
        "Model": first["checkpoint"]["name"],
    }
    told["Denoising strength"] = next(filter(None, (one["parameters"].get("strength") for one in drawn)), None)
    if own.get("clip_skip"):
        told["Clip skip"] = own["clip_skip"] + 1  # A1111 counts the layer that is taken
    if _size(recipes[-1]) != _size(first):
        told["Hires resize"] = _size(recipes[-1])
    lines = [_plain(own.get("prompt") or "")]
    if negative := own.get("negative_prompt"):
        lines.append(f"Negative prompt: {_plain(negative)}")
    words = [f"{name}: {_number(value)}" for name, value in told.items() if value is not None]
    return "\n".join([*filter(None, lines), ", ".join(words)])


def _number(value: object) -> str:
    """A value as text; a number without needless digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(prompt: str) -> str:
    """A prompt in which no reader finds the end of the prompt; the format has no escape, so a space goes between."""
    return _MARKS.sub(r"\1 :", prompt.strip())


def _size(recipe: Mapping[str, Any]) -> str:
    return "x".join(map(str, recipe["size"]))
