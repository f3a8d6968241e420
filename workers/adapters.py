"""How are LoRAs, embeddings, image prompts and ControlNets put on a loaded pipeline, and taken off again?

Weights are read here, as safetensors, and handed to diffusers as tensors: its own loaders would also take pickles.
LoRAs stay attached between calls, switched off; embeddings and image prompts are taken off as soon as a call comes
without them, for an attached embedding changes what its word means. Base weights are never changed or loaded again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from farm import models
from farm.catalog import Adapter, Catalog
from farm.errors import Failure, InvalidJob, StageFailed

KEPT, BESIDE = 8, 6
"""LoRAs that stay attached to a pipeline, and models beside it; what is unused for the longest time makes room."""


@dataclass(frozen=True)
class Files:
    """An adapter whose files were checked."""

    name: str
    path: Path
    weights: Path
    token: str | None
    image_encoder: Path | None
    variant: str | None
    manifest: str = ""
    """Hash of all of it: two with the same are the same weights."""


def files_of(catalog: Catalog, adapter: Adapter) -> Files:
    """The files of `adapter`, each one read and found to be as its pull recorded.

    Raises:
        StageFailed: (`bad_checkpoint`, a crash: another worker may have them) a file is missing, changed, unrecorded,
            unsafe, or leads out of the folder.
    """
    try:
        problems = models.verify(catalog, adapter.name)
        lock = None if problems else catalog.lock(adapter)
    except (OSError, InvalidJob) as error:
        problems, lock = [f"its files cannot be read ({type(error).__name__})"], None
    if lock is None:
        raise StageFailed(
            f"the adapter {adapter.name}: {problems[0]}",
            failure=Failure.CRASH,
            code="bad_checkpoint",
            hint=f"run `farm models pull {adapter.name}` on this worker's host",
        )
    path = catalog.path(adapter)
    encoder = path / adapter.image_encoder if adapter.image_encoder else None
    weights = path / adapter.weights if adapter.weights else path
    return Files(adapter.name, path, weights, adapter.token, encoder, adapter.variant, lock.manifest)


@contextmanager
def _loading(files: Files) -> Iterator[None]:
    """What diffusers raises on weights that do not fit, as the farm's word for it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if "out of memory" in str(error):
            raise
        raise StageFailed(
            f"the adapter {files.name} does not fit the checkpoint ({type(error).__name__})",
            code="bad_checkpoint",
            hint="choose one that was made for this family of checkpoints",
        ) from error


def _tensors(files: Files) -> dict[str, Any]:
    """The tensors in a safetensors file, by name, on the CPU."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(files.weights)
    return found


# ------------------------------------------------------------------------------------------------ LoRA


def set_loras(pipe: Any, wanted: Sequence[tuple[Files, float]]) -> None:
    """Exactly the LoRAs `wanted` are active on `pipe` afterwards, each with its weight; loads those that are not there.

    Raises:
        StageFailed: (`bad_checkpoint`) one does not fit the checkpoint; it is taken off again.
    """
    attached: dict[str, Files] = pipe.own.loras
    for files, _ in wanted:
        if attached.get(files.name) == files:
            attached[files.name] = attached.pop(files.name)
            continue
        if files.name in attached:
            _take_off(pipe, files.name)
        with _loading(files):
            try:
                _put_on(pipe, files)
            except BaseException:
                pipe.delete_adapters([peft_name(files.name)])
                raise
        attached[files.name] = files
    for name in list(attached)[: max(0, len(attached) - KEPT)]:
        _take_off(pipe, name)
    if wanted:
        pipe.enable_lora()
        pipe.set_adapters([peft_name(files.name) for files, _ in wanted], [weight for _, weight in wanted])
    elif attached:
        pipe.disable_lora()


def peft_name(name: str) -> str:
    """A name as peft takes it, which makes it a module's."""
    return name.replace(".", "_")


def _take_off(pipe: Any, name: str) -> None:
    pipe.delete_adapters([peft_name(name)])
    del pipe.own.loras[name]


def _put_on(pipe: Any, files: Files) -> None:
    names = _header(files)
    before = {part: _lora_tensors(pipe, part) for part in _PARTS}
    # As a file, for its header may say how strong it is.
    pipe.load_lora_weights(
        str(files.weights.parent),
        weight_name=files.weights.name,
        adapter_name=peft_name(files.name),
        use_safetensors=True,
        local_files_only=True,
    )
    added = sum(_lora_tensors(pipe, part) - before[part] for part in _PARTS)
    # What does not fit is left out with a mere warning.
    expected = sum(not name.endswith(".alpha") for name in names)
    if added != expected:
        raise ValueError(f"{expected - added} of {expected} tensors have no place in the checkpoint")


_PARTS = ("unet", "text_encoder", "text_encoder_2")
_TOLD = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "lora_bias", "bias",
    "peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "auto_mapping", "fan_in_fan_out", "qalora_group_size",
}  # fmt: skip
"""What a LoRA's header may say of itself, as fields of peft's `LoraConfig`. Some others change the base weights."""


def _header(files: Files) -> list[str]:
    """The names of a LoRA's tensors.

    Raises:
        ValueError: it is more than a LoRA.
    """
    from safetensors import safe_open

    with safe_open(files.weights, "pt") as opened:
        names, told = [*opened.keys()], json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    said = {key.rpartition(".")[2]: value for key, value in told.items() if value}
    plain = said.pop("init_lora_weights", True) in (True, "gaussian")
    if more := (said.keys() - _TOLD) | ({"init_lora_weights"} if not plain else set()):
        raise ValueError(f"its header asks for {', '.join(sorted(more))}")
    if any("dora_scale" in name for name in names):
        raise ValueError("a DoRA, which diffusers would take for a LoRA")
    return names


def _lora_tensors(pipe: Any, part: str) -> int:
    model = getattr(pipe, part, None)
    return 0 if model is None else sum(".lora_" in name for name, _ in model.named_parameters())


# ------------------------------------------------------------------------------------------------ textual inversion


def set_embeddings(pipe: Any, wanted: Sequence[Files]) -> None:
    """Exactly the embeddings `wanted` are known to the text encoders of `pipe` afterwards.

    Raises:
        StageFailed: (`bad_checkpoint`) one does not fit the checkpoint.
    """
    if pipe.own.embeddings == [*wanted]:
        return
    parts = [("tokenizer", "text_encoder", "clip_l"), ("tokenizer_2", "text_encoder_2", "clip_g")]
    parts = [each for each in parts if getattr(pipe, each[1], None) is not None]
    if not pipe.own.words:
        # diffusers' unloading would leave a tokenizer that no longer pads and cuts as it did.
        pipe.own.words = {
            part: (getattr(pipe, words), getattr(pipe, part).get_input_embeddings()) for words, part, _ in parts
        }
    # Until all is done nothing is known of what is there, and the next call begins anew.
    pipe.own.embeddings = None
    for words, part, _ in parts:
        tokenizer, vectors = pipe.own.words[part]
        encoder = getattr(pipe, part)
        encoder.set_input_embeddings(vectors)
        encoder.config.vocab_size = vectors.num_embeddings
        setattr(pipe, words, _copied(tokenizer) if wanted else tokenizer)
        if wanted:  # they grow where they are
            encoder.set_input_embeddings(copy.deepcopy(vectors))
    for files in wanted:
        with _loading(files):
            tensors = _tensors(files)
            for words, part, name in parts:
                if files.token in getattr(pipe, words).get_vocab():
                    raise StageFailed(
                        f"{files.token!r}, the word of the adapter {files.name}, is in the checkpoint's vocabulary",
                        code="bad_checkpoint",
                        hint="give it another `token` in the catalog",
                    )
                found = tensors[name] if name in tensors else next(iter(tensors.values()))
                pipe.load_textual_inversion(
                    found, token=files.token, tokenizer=getattr(pipe, words), text_encoder=getattr(pipe, part)
                )
    pipe.own.embeddings = [*wanted]


def embedding_lines(family: str, arguments: str) -> list[str]:
    """The lines of a plain program that give a word its meaning; `arguments` are the file and the word."""
    one, two = '("clip_l", pipe.tokenizer, pipe.text_encoder)', '("clip_g", pipe.tokenizer_2, pipe.text_encoder_2)'
    encoders = {"sdxl": f"({one}, {two})", "sdxl-refiner": f"({two},)"}.get(family, f"({one},)")
    path, _, token = arguments.partition(" | ")
    return [
        "from safetensors.torch import load_file",
        f"vectors = load_file({path})",
        f"for part, tokenizer, encoder in {encoders}:",
        "    found = vectors.get(part, next(iter(vectors.values())))",
        f"    pipe.load_textual_inversion(found, token={token}, tokenizer=tokenizer, text_encoder=encoder)",
    ]


def _copied(tokenizer: Any) -> Any:
    """Another tokenizer of the same files: `copy` would give one that decodes otherwise."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return type(tokenizer).from_pretrained(folder, local_files_only=True)


# ------------------------------------------------------------------------------------------------ IP-Adapter


def set_ip_adapters(pipe: Any, wanted: Sequence[tuple[Files, float]]) -> None:
    """Exactly the image prompts `wanted` are on `pipe` afterwards, each with its scale.

    Raises:
        StageFailed: (`bad_checkpoint`) one does not fit the checkpoint.
    """
    if [files for files, _ in wanted] != pipe.own.ip_adapters:
        if pipe.own.ip_adapters != []:
            # diffusers would put its own choice of attention in place of the checkpoint's.
            pipe.unload_ip_adapter()
            pipe.unet.set_attn_processor(dict(pipe.own.attention))
        # Until all is done nothing is known of what is there, and the next call begins anew.
        pipe.own.ip_adapters = None
        if wanted:
            pipe.own.attention = dict(pipe.unet.attn_processors)
            # One load for all: diffusers' puts each call's adapters in place of the former.
            states = []
            for files, _ in wanted:
                with _loading(files):
                    states.append(_split(_tensors(files)))
            with _loading(wanted[0][0]):
                _put_encoder(pipe, wanted[0][0])
                nothing = [""] * len(states)
                pipe.load_ip_adapter(states, subfolder=nothing, weight_name=nothing, image_encoder_folder=None)
        pipe.own.ip_adapters = [files for files, _ in wanted]
    if wanted:
        pipe.set_ip_adapter_scale([scale for _, scale in wanted])


def _put_encoder(pipe: Any, files: Files) -> None:
    """Registers the image encoder of an IP-Adapter, loaded once. The submit has found that all have the same."""
    import transformers

    encoder = _beside(pipe, files, lambda: transformers.CLIPVisionModelWithProjection.from_pretrained(
        files.image_encoder, local_files_only=True, use_safetensors=True, dtype=pipe.unet.dtype
    ).eval())  # fmt: skip
    side = encoder.config.image_size
    # Without torchvision this is the class that transformers falls back to; its pixels do not depend on that.
    extractor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    pipe.register_modules(image_encoder=encoder, feature_extractor=extractor(**size))


def _split(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """An IP-Adapter's tensors by their first word.

    Raises:
        ValueError: it brings a LoRA of its own (FaceID), which would stay when it is taken off.
    """
    if any("lora" in name for name in tensors):
        raise ValueError("an IP-Adapter with a LoRA of its own")
    return {
        part: {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }


def image_embeds(pipe: Any, images: Sequence[Sequence[Any]], guided: bool) -> list[Any]:
    """What `ip_adapter_image_embeds` takes: per adapter [2 × batch, 1, …] with guidance, else [batch, 1, …].

    `images` holds per adapter one PIL image per member. Source: `prepare_ip_adapter_image_embeds` of diffusers, which
    knows only one image for all members.
    """
    import torch
    from diffusers.models.embeddings import ImageProjection

    found = []
    for row, layer in zip(images, pipe.unet.encoder_hid_proj.image_projection_layers, strict=True):
        hidden = not isinstance(layer, ImageProjection)
        with torch.no_grad():
            pairs = [pipe.encode_image(image, pipe.device, 1, hidden) for image in row]
        wanted, unwanted = (torch.stack([pair[side] for pair in pairs]) for side in (0, 1))
        found.append(torch.cat([unwanted, wanted]) if guided else wanted)
    return found


# ------------------------------------------------------------------------------------------------ ControlNet, VAE


def controls(pipe: Any, wanted: Sequence[Files]) -> list[Any]:
    """The ControlNets `wanted`, each loaded once.

    Raises:
        StageFailed: (`bad_checkpoint`) one cannot be read.
    """
    return [_model(pipe, "ControlNetModel", files) for files in wanted]


def vae(pipe: Any, wanted: Files) -> Any:
    """The VAE `wanted`, loaded once.

    Raises:
        StageFailed: (`bad_checkpoint`) it cannot be read.
    """
    return _model(pipe, "AutoencoderKL", wanted)


def _model(pipe: Any, class_name: str, files: Files) -> Any:
    import diffusers

    told: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "variant": files.variant}
    with _loading(files):
        cls = getattr(diffusers, class_name)
        return _beside(pipe, files, lambda: cls.from_pretrained(files.path, torch_dtype=pipe.unet.dtype, **told))


def _beside(pipe: Any, files: Files, load: Callable[[], Any]) -> Any:
    """The model of `files` on the pipeline's device: loaded once, and kept until others push it out."""
    loaded = pipe.own.beside
    found = loaded.pop(files) if files in loaded else load().to(pipe.device)
    loaded[files] = found
    for old in list(loaded)[: max(0, len(loaded) - BESIDE)]:
        del loaded[old]
    return found
