"""What of a prompt is read, and what does a picture say of how it was made? Asked while a form is filled."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from farm.api.asks import Ask
from farm.api.desk import Desk, desk_of
from farm.api.door import Door, Submitter
from farm.api.uploads import BODY, body_of
from farm.api.views import View
from farm.errors import InvalidJob
from farm.recall import recalled
from farm.stage import Prompt

router = APIRouter(route_class=Door, tags=["farm"])
LIMIT = 77
"""Tokens that a CLIP text encoder reads, both marks among them. Source: OpenAI's CLIP, `context_length`."""
MARKS = 2
"""The marks of beginning and end."""


class PromptAsk(Ask):
    """A prompt, and the checkpoint that is to read it."""

    checkpoint: str = Field(max_length=200)
    prompt: Prompt


class PromptView(View):
    """How a checkpoint's text encoder reads a prompt; nothing is known of one that is not pulled where the API runs."""

    tokens: int | None = Field(description="of the whole prompt, without the marks of beginning and end")
    limit: int = Field(description="tokens that are read")
    unread: str = Field(description="the end of the prompt that is not")


class LoraView(View):
    """A LoRA that a picture was drawn with, by the name that the other program has for it."""

    name: str
    weight: float


class RecalledView(View):
    """How a picture was made."""

    source: str = Field(description="what drew it: latent-farm, AUTOMATIC1111, ComfyUI and others")
    chain: dict[str, Any] = Field(description="as a chain file would write it; it may name what is not pulled here")
    notes: list[str] = Field(description="what it says that could not be taken")
    loras: list[LoraView] = Field(description="LoRAs among that: a stage's `loras` can name one of the catalog's")


@router.post("/prompts/read")
async def read(request: Request, ask: PromptAsk, caller: Submitter) -> PromptView:  # noqa: ARG001 — who may ask
    """Counts the tokens of a prompt."""
    desk = desk_of(request)
    return await desk.work(_read, desk, ask)


@router.post("/pictures/read", openapi_extra=BODY)
async def picture(request: Request, caller: Submitter) -> RecalledView:  # noqa: ARG001 — who may ask
    """How a picture, sent as the body, was made; nothing is stored."""
    desk = desk_of(request)

    def call(data: bytes) -> RecalledView:
        found = recalled(data, desk.farm.catalog)
        loras = [LoraView(name=name, weight=weight) for name, weight in found.loras]
        return RecalledView(source=found.source, chain=found.chain, notes=found.notes, loras=loras)

    async with body_of(request) as data:
        return await desk.work(call, data)  # of a picture only what it says is read, no pixel


def _read(desk: Desk, ask: PromptAsk) -> PromptView:
    catalog = desk.farm.catalog
    if ask.checkpoint not in catalog.checkpoints:
        raise InvalidJob(f"no checkpoint {ask.checkpoint!r} in the catalog", code="unknown_checkpoint")
    folder = catalog.path(catalog.checkpoints[ask.checkpoint]) / "tokenizer"
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return PromptView(tokens=None, limit=LIMIT - MARKS, unread="")
    found = tokenizer.encode(ask.prompt, add_special_tokens=False)
    limit = LIMIT - MARKS
    unread = ask.prompt[found.offsets[limit][0] :] if len(found.ids) > limit else ""
    return PromptView(tokens=len(found.ids), limit=limit, unread=unread)


def _tokenizer(folder: Path) -> Any:
    """The tokenizer whose files lie in `folder`; None where there are none."""
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    there = tuple((name, (folder / name).stat().st_mtime_ns) for name in names if (folder / name).is_file())
    return _loaded(folder, there) if len(there) > 1 or (there[:1] and there[0][0] == names[0]) else None


@lru_cache(maxsize=8)
def _loaded(folder: Path, there: tuple[tuple[str, int], ...]) -> Any:
    """The tokenizer of the files that are `there`, each with its time."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if there[0][0] == "tokenizer.json":
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found.no_truncation()
        found.no_padding()
        return found
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    # Source: Radford et al. 2021, CLIP, simple_tokenizer.py: lower case, its pattern of words, pairs within a word.
    found = Tokenizer(
        models.BPE.from_file(str(vocab), str(merges), unk_token="<|endoftext|>", end_of_word_suffix="</w>")  # noqa: S106
    )
    found.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return found
