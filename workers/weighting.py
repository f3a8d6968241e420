"""How does a prompt with weights become what a pipeline takes?

Texts become tensors here, by compel, and no prompt is cut: what is longer than the text encoder takes is encoded piece
by piece. In compel's own syntax (`a red+ apple`, `(red apple)1.3`), or in A1111's (`a (red:1.3) apple`, `[apple]`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from farm.errors import StageFailed

Weighting = Literal["none", "compel", "a1111"]
MORE, LESS = 1.1, 1 / 1.1
"""What round and square brackets do in A1111's syntax. Source: its wiki, Features, "Attention/emphasis"."""
_TOKEN = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|\\|:")


def fragments(prompt: str) -> list[tuple[str, float]]:
    """The pieces of a prompt in A1111's syntax, each with its weight. An open bracket ends with the prompt."""
    found: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def close(bracket: str, weight: float) -> bool:
        if not opened or opened[-1][0] != bracket:
            return False
        _, start = opened.pop()
        found[start:] = [(text, old * weight) for text, old in found[start:]]
        return True

    for match in _TOKEN.finditer(prompt):
        text = match[0]
        if text in ("(", "["):
            opened.append((text, len(found)))
            continue
        closed = (match[1] is not None and close("(", float(match[1]))) or (
            text in (")", "]") and close("(" if text == ")" else "[", MORE if text == ")" else LESS)
        )
        if not closed:
            found.append((text[1:] if len(text) == 2 and text[0] == "\\" else text, 1.0))
    while opened:
        close(opened[-1][0], MORE if opened[-1][0] == "(" else LESS)
    return _joined(found) or [("", 1.0)]


def _joined(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of equal weight as one."""
    found: list[tuple[str, float]] = []
    for text, weight in pieces:
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        else:
            found.append((text, weight))
    # compel can't weigh what has no token
    return [(text, weight if text.strip() else 1.0) for text, weight in found]


def embeds(pipe: Any, how: Weighting, prompts: Sequence[str], negatives: Sequence[str]) -> dict[str, Any]:
    """The texts as arguments of a call: `prompt_embeds` and its kin, [batch, tokens, width].

    All members are padded to the longest text of the batch; so members whose texts are of different length must not
    share a call.

    Raises:
        StageFailed: (`bad_prompt`) compel cannot read the prompt.
    """
    import torch

    encoders, texts, count = _encoders(pipe), [*prompts, *negatives], len(prompts)
    columns = [[_encoded(encoder, _read(encoder, how, text)) for text in texts] for encoder in encoders]
    even = [
        encoder.pad_conditioning_tensors_to_same_length(column)
        for encoder, column in zip(encoders, columns, strict=True)
    ]
    rows = [torch.cat(parts, dim=-1) for parts in zip(*even, strict=True)]
    found = {"prompt_embeds": torch.cat(rows[:count]), "negative_prompt_embeds": torch.cat(rows[count:])}
    if hasattr(pipe, "text_encoder_2"):
        plain = ["".join(piece for piece, _ in fragments(text)) if how == "a1111" else text for text in texts]
        with torch.no_grad():
            pooled = encoders[-1].conditioning_provider.get_pooled_embeddings(plain, device=pipe.device)
        found |= {"pooled_prompt_embeds": pooled[:count], "negative_pooled_prompt_embeds": pooled[count:]}
    if not any(negatives) and pipe.config.get("force_zeros_for_empty_prompt"):
        # As SDXL's pipelines do where no negative prompt is given.
        found |= {name: torch.zeros_like(value) for name, value in found.items() if name.startswith("negative")}
    return {name: value.to(pipe.unet.dtype) for name, value in found.items()}


def _encoders(pipe: Any) -> list[Any]:
    """A `Compel` for each of the pipeline's text encoders, told as compel's `CompelForSD` and `CompelForSDXL` do."""
    from compel import Compel, DiffusersTextualInversionManager, ReturnedEmbeddingsType
    from pyparsing import ParserElement

    ParserElement.enable_packrat()  # else each level of brackets takes four times as long as the one before
    told: dict[str, Any] = {"truncate_long_prompts": False}
    if pipe.own.embeddings:
        told["textual_inversion_manager"] = DiffusersTextualInversionManager(pipe)
    if not hasattr(pipe, "text_encoder_2"):
        return [Compel(pipe.tokenizer, pipe.text_encoder, **told)]
    kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    pairs = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
    return [Compel(*pair, returned_embeddings_type=kind, **told) for pair in pairs if pair[1] is not None]


def _read(encoder: Any, how: Weighting, text: str) -> Any:
    """A text as compel's own structure.

    Raises:
        StageFailed: (`bad_prompt`) it cannot be read.
    """
    from compel.prompt_parser import Conjunction, FlattenedPrompt

    if how == "a1111":
        return Conjunction([FlattenedPrompt(fragments(text))])
    try:
        return encoder.parse_prompt_string(text)
    except Exception as error:  # its parser raises what pyparsing and Python raise
        raise _unread(type(error).__name__) from error


def _encoded(encoder: Any, asked: Any) -> Any:
    """What one text encoder makes of a text: [1, tokens, width].

    Raises:
        StageFailed: (`bad_prompt`) compel has read what it cannot encode, or what only other programs do.
    """
    import torch

    try:
        with torch.no_grad():
            made, options = encoder.build_conditioning_tensor_for_conjunction(asked)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise _unread(type(error).__name__) from error
    if options or getattr(asked, "lora_weights", None):
        raise _unread("swap and useLora are not known here; name LoRAs in `loras`")
    return made


def _unread(why: str) -> StageFailed:
    return StageFailed(
        f"the prompt cannot be read as compel's syntax ({why})",
        code="bad_prompt",
        hint="set weighting to none to take it as plain text",
    )


PROGRAM = """
from compel import Compel, DiffusersTextualInversionManager, ReturnedEmbeddingsType
from compel.prompt_parser import Conjunction, FlattenedPrompt
from pyparsing import ParserElement
ParserElement.enable_packrat()
def weighted(encoders, asked, **told):
    words = told.pop("words")
    told |= {"truncate_long_prompts": False}
    told |= {"textual_inversion_manager": DiffusersTextualInversionManager(pipe)} if words else {}
    sides = []
    for tokenizer, encoder in encoders:
        one = Compel(tokenizer, encoder, **told)
        read = [one.parse_prompt_string if isinstance(text, str) else FlattenedPrompt for text in asked]
        both = [parse(text) for parse, text in zip(read, asked)]
        both = [Conjunction([each]) if isinstance(each, FlattenedPrompt) else each for each in both]
        with torch.no_grad():
            made = [one.build_conditioning_tensor_for_conjunction(each)[0] for each in both]
        sides.append(one.pad_conditioning_tensors_to_same_length(made))
    embeds = [torch.cat(parts, dim=-1) for parts in zip(*sides)]
    found = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}
    if hasattr(pipe, "text_encoder_2"):
        plain = [text if isinstance(text, str) else "".join(piece for piece, _ in text) for text in asked]
        with torch.no_grad():
            pooled = one.conditioning_provider.get_pooled_embeddings(plain, device=pipe.device)
        found |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    if asked[1] in ("", [("", 1.0)]) and pipe.config.get("force_zeros_for_empty_prompt"):
        found |= {name: torch.zeros_like(value) for name, value in found.items() if name.startswith("negative")}
    return found
""".strip().splitlines()
"""The same as lines of a plain program."""


def program(family: str, how: Weighting, prompt: str, negative: str, words: bool) -> list[str]:
    """The lines of a plain program that leave the arguments of `embeds` for one member in `texts`.

    `words`: embeddings are attached.
    """
    asked = [prompt, negative] if how == "compel" else [fragments(prompt), fragments(negative)]
    one, two = "(pipe.tokenizer, pipe.text_encoder)", "(pipe.tokenizer_2, pipe.text_encoder_2)"
    encoders = {"sdxl": f"[{one}, {two}]", "sdxl-refiner": f"[{two}]"}.get(family, f"[{one}]")
    kind = "returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED"
    further = f"words={words}" + (f", {kind}" if family.startswith("sdxl") else "")
    return [*PROGRAM, f"texts = weighted({encoders}, {asked!r}, {further})"]
