"""Which files is a pipeline made of, and how is it loaded?

`files_of` checks a checkpoint's files against its lock, `load` reads them; `workers.calling` has what a stage does with
the pipeline.

torch and diffusers are imported inside the functions: who only wants to know a stage's fields need not wait for them.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from farm import models
from farm.catalog import Catalog, Checkpoint, Switches
from farm.errors import Failure, StageFailed
from farm.stage import Size

UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
"""Loading arguments of a pipeline without its own safety checker."""
LEFT_OUT: dict[str, dict[str, Any]] = {
    "StableDiffusionDepth2ImgPipeline": {"feature_extractor": None},
    "StableDiffusionLatentUpscalePipeline": {},
    "StableDiffusionUpscalePipeline": {"safety_checker": None, "feature_extractor": None, "watermarker": None},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "StableDiffusionXLImg2ImgPipeline": {"add_watermarker": False},
    "StableDiffusionXLInpaintPipeline": {"add_watermarker": False},
    "StableDiffusionXLControlNetPipeline": {"add_watermarker": False},
    "StableDiffusionXLControlNetImg2ImgPipeline": {"add_watermarker": False},
    "StableDiffusionXLControlNetInpaintPipeline": {"add_watermarker": False},
}
"""Loading arguments by pipeline, all others have `UNCHECKED`: the farm checks and marks pictures itself."""

PLAIN = Switches()
"""Of a checkpoint that runs as it is."""


@dataclass(frozen=True)
class Files:
    """A checkpoint whose files were checked: all that `load` needs to know. `space` names its latents."""

    name: str
    path: Path
    is_file: bool
    config: Path | None
    variant: str | None
    dtype: str
    space: str
    family: str = "sd"
    switches: Switches = PLAIN
    manifest: str = ""
    """Hash of all of it: two with the same are the same weights."""


@dataclass
class Own:
    """What the farm keeps beside the models of a checkpoint. Pipelines that share the models share it."""

    files: Files
    scheduler: Any
    """As loaded; it is never run."""
    largest: Size | None = None
    """The largest picture that has run."""
    loras: dict[str, Any] = field(default_factory=dict)
    """Files of attached LoRAs by name, the last used last."""
    words: dict[str, Any] = field(default_factory=dict)
    """Per text encoder the tokenizer and vectors as loaded, once embeddings were attached."""
    embeddings: list[Any] | None = field(default_factory=list)
    """Files of attached embeddings; None where a change of them was broken off."""
    ip_adapters: list[Any] | None = field(default_factory=list)
    """Files of attached image prompts; None where a change of them was broken off."""
    attention: dict[str, Any] = field(default_factory=dict)
    """The UNet's attention before image prompts were attached."""
    beside: dict[Any, Any] = field(default_factory=dict)
    """Loaded ControlNets, VAEs and image encoders by their files, the last used last."""


_LOADED: WeakValueDictionary[tuple[Files, str, str], Any] = WeakValueDictionary()
"""Pipelines that are in use, so that stages of one checkpoint share its models."""


def files_of(catalog: Catalog, checkpoint: Checkpoint) -> Files:
    """The files of `checkpoint`, each one read and found to be as its pull recorded.

    Raises:
        StageFailed: (`bad_checkpoint`) a file is missing, changed, unrecorded, unsafe, or leads out of the folder.
    """
    try:
        problems = models.verify(catalog, checkpoint.name)
    except OSError as error:
        problems = [f"its files cannot be read ({type(error).__name__})"]
    if problems:
        raise _bad(checkpoint.name, problems[0])
    return Files(
        name=checkpoint.name,
        path=catalog.path(checkpoint),
        is_file=checkpoint.file is not None,
        config=Path(checkpoint.config).expanduser() if checkpoint.config else None,
        variant=checkpoint.variant,
        dtype=checkpoint.dtype,
        space=checkpoint.space,
        family=checkpoint.family,
        switches=checkpoint.switches,
        manifest=catalog.lock(checkpoint).manifest,
    )


def _bad(name: str, reason: str) -> StageFailed:
    return StageFailed(
        f"the checkpoint {name}: {reason}", code="bad_checkpoint", hint=f"run `farm models pull {name}` again"
    )


def pick_device(device: str) -> str:
    """The device that `auto` means here: CUDA, else MPS, else the CPU. Any other name is taken as it is."""
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_name(device: str) -> str:
    """What a device is called: `cuda:0, NVIDIA H200`."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device}, {torch.cuda.get_device_name(device)}"


def memory(device: str) -> tuple[int, int]:
    """Bytes in use on a device, by whomever, and all that it has; on a CPU those of this process, and the machine's."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return resident * page, os.sysconf("SC_PHYS_PAGES") * page


def load(class_name: str, files: Files, device: str) -> Any:
    """A diffusers pipeline of `files` on `device`, without safety checker and watermark.

    It is a `class_name`, or whatever is loaded of these files already: `as_class` makes one of the other.

    Raises:
        StageFailed: (`bad_checkpoint`) diffusers cannot read the files; (`gpu_oom`) they do not fit the device.
    """
    # What is moved to and fro belongs to one pipeline.
    key = (files, device, "" if files.switches.offload == "none" else class_name)
    if (shared := _LOADED.get(key)) is not None:
        return shared
    import torch
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        # diffusers warns of a prompt that is too long by quoting it: prompts do not belong in a log.
        library.set_verbosity_error()
    # The x2 upscaler's transposed convolutions would else add up in any order on CUDA.
    torch.backends.cudnn.deterministic = True
    import diffusers

    pipeline_class = getattr(diffusers, class_name)
    given: dict[str, Any] = {"torch_dtype": getattr(torch, files.dtype), "local_files_only": True}
    given |= LEFT_OUT.get(class_name, UNCHECKED)
    with device_errors(), warnings.catch_warnings():
        # Renamed to `dtype` in 0.42, which older versions do not know.
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
        try:
            if files.is_file:
                pipe = pipeline_class.from_single_file(str(files.path), config=str(files.config), **given)
            else:
                pipe = pipeline_class.from_pretrained(
                    str(files.path), variant=files.variant, use_safetensors=True, trust_remote_code=False, **given
                )
                if hasattr(pipe, "depth_estimator"):
                    # The published checkpoint's index names a class that transformers 5 no longer has.
                    import transformers

                    # Without torchvision this is the class that transformers falls back to.
                    named = getattr(transformers, "DPTImageProcessorPil", transformers.DPTImageProcessor)
                    extractor = named.from_pretrained(
                        files.path / "feature_extractor", local_files_only=True, use_safetensors=True
                    )
                    pipe.register_modules(feature_extractor=extractor)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, SafetensorError) as error:
            # A loader's message may quote whole configurations; its type is enough here, the rest is chained.
            raise _bad(files.name, f"diffusers cannot load it ({type(error).__name__})") from error
        try:
            _switch(pipe, files.switches, device)
        except (ImportError, ValueError, AttributeError, NotImplementedError) as error:
            raise _bad(files.name, f"it cannot be run as its switches say ({type(error).__name__})") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.own = Own(files, pipe.scheduler)
    _LOADED[key] = pipe
    return pipe


def _switch(pipe: Any, switches: Switches, device: str) -> None:
    """Moves `pipe` to `device`, and runs it as its catalog entry says."""
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    if switches.channels_last:
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.channels_last)
    if switches.fuse_qkv_projections:
        pipe.fuse_qkv_projections()
    if switches.attention == "eager":
        pipe.unet.set_attn_processor(AttnProcessor())
    elif switches.attention == "sliced":
        pipe.enable_attention_slicing()
    elif switches.attention == "xformers":
        pipe.enable_xformers_memory_efficient_attention()
    if switches.slicing:
        pipe.vae.enable_slicing()
    if switches.offload != "none" and device.startswith("cuda"):
        offload = {"model": pipe.enable_model_cpu_offload, "sequential": pipe.enable_sequential_cpu_offload}
        offload[switches.offload](device=device)
    else:
        pipe.to(device)
    if switches.compile:
        pipe.unet.compile()


def as_class(pipe: Any, class_name: str, **beside: Any) -> Any:
    """`pipe` as a `class_name` that shares its models, with `beside` in addition or in place of them."""
    import diffusers

    if type(pipe).__name__ == class_name and not beside:
        return pipe
    cls = getattr(diffusers, class_name)
    known = {**LEFT_OUT.get(class_name, UNCHECKED), **pipe.config, **pipe.components, **beside}
    known["scheduler"] = pipe.own.scheduler
    made = cls(**{name: known[name] for name in inspect.signature(cls.__init__).parameters if name in known})
    made.set_progress_bar_config(disable=True)
    made.own = pipe.own
    return made


@contextmanager
def device_errors(message: str | None = None) -> Iterator[None]:
    """Turns a lack of device memory into the farm's word for it, with `message`."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageFailed(message, failure=Failure.OOM, code="gpu_oom") from error
    except RuntimeError as error:
        # Other devices' allocators have no class of their own.
        if not any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory")):
            raise
        raise StageFailed(message, failure=Failure.OOM, code="gpu_oom") from error
