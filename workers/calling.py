"""How does a stage call its pipeline?

`fresh_scheduler` and `call` are what every stage's `run` consists of. `call` owns the rules that are the same for all:
progress and stopping, the check for NaN before anything is rounded, the shape of what comes out, the device's memory.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from farm.errors import StageFailed
from farm.stage import Batch, Medium, Report
from workers import pipelines, preview


def generator(seed: int) -> Any:
    """A torch generator on the CPU: there a seed means the same noise on every device."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def fresh_scheduler(pipe: Any, name: str | None, options: Mapping[str, Any], generators: Sequence[Any]) -> None:
    """Gives `pipe` a new scheduler, of the class `name` or of the checkpoint's own, from the checkpoint's own settings.

    `options` are what it is told beside these. Schedulers keep state through a run and from one to the next, so the
    loaded one is never run.
    """
    import diffusers

    cls = getattr(diffusers, name) if name else type(pipe.own.scheduler)
    own = scheduler_settings(cls.__name__, [each.initial_seed() for each in generators])
    pipe.scheduler = cls.from_config(pipe.own.scheduler.config, **own, **options)


def scheduler_settings(name: str, seeds: list[int]) -> dict[str, Any]:
    """What a scheduler must be told beside the checkpoint's settings."""
    if name == "DPMSolverSDEScheduler":
        # It draws from a noise source of its own, which is seeded at random unless it is told a seed per member.
        return {"noise_sampler_seed": seeds}
    if name == "PNDMScheduler":
        # Its warm-up needs four steps or more; Stable Diffusion 1.x's own configuration skips it.
        return {"skip_prk_steps": True}
    return {}


def texts(family: str, prompts: Sequence[str], negatives: Sequence[str]) -> dict[str, list[str]]:
    """The texts as arguments of a call.

    SDXL was trained with zeros where there is no text, and its pipelines put them there if none is given, but not for
    an empty one. Source: `force_zeros_for_empty_prompt` of its model_index.json.
    """
    texts = {"prompt": list(prompts)}
    if any(negatives) or not family.startswith("sdxl"):
        texts["negative_prompt"] = list(negatives)
    return texts


def unread(pipe: Any, text: str) -> str:
    """The end of `text` that is beyond what the text encoder of `pipe` takes; "" where all of it is read."""
    tokenizer = getattr(pipe, "tokenizer", None) or getattr(pipe, "tokenizer_2", None)
    if tokenizer is None:
        return ""
    tokens = tokenizer(text, truncation=False).input_ids
    # The last one that fits is the end marker's.
    return str(tokenizer.decode(tokens[tokenizer.model_max_length - 1 : -1])).strip()


def stacked(given: Sequence[Any]) -> Any:
    """What the members were given, as a pipeline takes it: latents as one tensor, images as a list."""
    import torch

    return torch.stack(list(given)) if isinstance(given[0], torch.Tensor) else list(given)


def call(
    pipe: Any, batch: Batch, report: Report, steps: int, *, tiling: bool = False, as_pil: bool = False, **arguments: Any
) -> list[Any]:
    """One call of `pipe` for all members of `batch`: latents [channels, height, width] on the CPU, or PIL RGB images.

    `steps` is `num_inference_steps`, `tiling` the stage's `vae_tiling`, `as_pil` for what only gives PIL images.
    Whatever `report` raises passes through and leaves the pipe as it was: the next call gives what it would have
    given. (diffusers' own `_interrupt` would go on and decode a half-denoised picture.)

    Raises:
        StageFailed: `nan_output`, `bad_output`, `gpu_oom`.
    """
    as_latents = batch.emits is Medium.LATENTS
    report.phase("encode")
    hooks = _hooks(pipe, report, "tile" if tiling else "decode")
    _watch(pipe.scheduler, report)
    try:
        with (
            pipelines.device_errors(too_large(pipe, batch, tiling)),
            _spared(pipe, pipe.vae, batch.frugal, tiling),
            _inner_model(pipe, arguments.get("clip_skip")),
        ):
            made = pipe(
                **(
                    {}
                    if "prompt_embeds" in arguments
                    else texts(pipe.own.files.family, batch.prompts, batch.negative_prompts)
                ),
                num_inference_steps=steps,
                generator=list(batch.generators),
                output_type="latent" if as_latents else "pil" if as_pil else "np",
                **_callback(pipe, report, steps),
                **arguments,
            ).images
            found = _latents(pipe, batch, made) if as_latents else _images(batch, made)
        pipe.own.largest = max(filter(None, (pipe.own.largest, batch.size)), key=math.prod)
        return found
    finally:
        vars(pipe.scheduler).pop("step", None)  # which knows the scheduler, and would keep it
        for hook in hooks:
            hook.remove()
        # The x4 pipeline decodes fp16 with its VAE raised to fp32. Where that failed the VAE stays so, and the next
        # picture would differ.
        if pipe.vae.dtype != pipe.unet.dtype:
            pipe.vae.to(dtype=pipe.unet.dtype)


def decoded(pipe: Any, vae: Any, latents: Any, *, frugal: bool, tiling: bool) -> Any:
    """The PIL RGB image of one member's latents [channels, height, width], as a pipeline of the family decodes them.

    Raises:
        StageFailed: `nan_output`, `gpu_oom`.
    """
    import torch
    from PIL import Image

    # In half precision SDXL's own VAE overflows. Source: `force_upcast` of its configuration, which only SDXL heeds.
    half, config = vae.dtype, vae.config
    raised = half == torch.float16 and config.force_upcast and pipe.own.files.family.startswith("sdxl")
    with torch.no_grad(), pipelines.device_errors(), _spared(pipe, vae, frugal, tiling):
        try:
            if raised:
                vae.to(dtype=torch.float32)
            made = vae.decode(latents[None].to(pipe._execution_device, vae.dtype) / config.scaling_factor).sample
        finally:
            if raised:
                vae.to(dtype=half)
        _check_finite(made)
        pixels = pipe.image_processor.postprocess(made, output_type="np")[0]
    return Image.fromarray((pixels * 255).round().astype("uint8"))


def too_large(pipe: Any, batch: Batch, tiling: bool) -> str:
    """What to say when `batch` does not fit the device: its size, and what would fit."""
    size = f"{len(batch.prompts)} pictures of {batch.size}" if len(batch.prompts) > 1 else f"{batch.size}"
    ran = f"{pipe.own.largest} is the largest that has run" if pipe.own.largest else "nothing has run"
    remedy = "smaller sides need less memory" if tiling else "smaller sides, or working in tiles, need less memory"
    return f"{size} does not fit into the memory of {pipe.device}; {ran} on this worker; {remedy}"


@contextmanager
def _spared(pipe: Any, vae: Any, frugal: bool, tiling: bool) -> Iterator[None]:
    """Spares memory during one call that decodes with `vae`: `frugal` by what leaves pixels alone, `tiling` by what
    changes them.

    One picture at a time through the VAE; on CUDA also one model at a time on the device, the others in host memory.
    What ran out of memory runs again alone, where that is exact; several members would each be rounded as if alone.
    """
    device = pipe.device
    offload = frugal and device.type == "cuda" and pipe.own.files.switches.offload == "none"
    if frugal:
        vae.enable_slicing()
    if tiling:
        vae.enable_tiling()
    if offload:
        import torch

        pipe.to("cpu")
        torch.cuda.empty_cache()
        pipe.enable_model_cpu_offload(device=device)
    try:
        yield
    finally:
        if offload:
            pipe.remove_all_hooks()
            pipe.to(device)
        vae.disable_tiling()
        if not pipe.own.files.switches.slicing:
            vae.disable_slicing()


@contextmanager
def _inner_model(pipe: Any, clip_skip: int | None) -> Iterator[None]:
    """Lets diffusers' clip_skip find the text encoder's inner model, which transformers 5.6 made flat.

    Source: diffusers#14124. Only for one call: an encoder with an inner model passes for one of the old form, also
    where LoRAs are loaded.
    """
    encoder = getattr(pipe, "text_encoder", None)
    if clip_skip is None or encoder is None or hasattr(encoder, "text_model"):
        yield
        return
    # Set past torch's own __setattr__, which would make the encoder a part of itself.
    object.__setattr__(encoder, "text_model", encoder)
    try:
        yield
    finally:
        object.__delattr__(encoder, "text_model")


def _hooks(pipe: Any, report: Report, decode: str) -> list[Any]:
    """Hooks on the models of `pipe` that tell of its phases and check what the decoder gives; to be removed again."""

    def before_unet(*_: Any) -> None:
        # By its first call, the text is encoded and the input prepared.
        hooks[0].remove()
        report.phase("step")

    def before_decoder(*_: Any) -> None:
        report.phase(decode)

    def after_decoder(_model: Any, _given: Any, made: Any) -> None:
        # Here, because the pipeline clamps: an infinity would become plain white or black.
        _check_finite(made)

    if pipe.own.files.switches.compile:
        # A compiled model does not look for hooks again; the scheduler's start is nearly the same moment.
        start = pipe.scheduler.set_timesteps

        @wraps(start)
        def started(*words: Any, **named: Any) -> Any:
            report.phase("step")
            return start(*words, **named)

        pipe.scheduler.set_timesteps = started
        first = []
    else:
        first = [pipe.unet.register_forward_pre_hook(before_unet)]
    hooks = [
        *first,
        pipe.vae.decoder.register_forward_pre_hook(before_decoder),
        pipe.vae.decoder.register_forward_hook(after_decoder),
    ]
    return hooks


def _watch(scheduler: Any, report: Report) -> None:
    """Lets `report` see what `scheduler`, which is made for one call, is given at each step."""
    step = scheduler.step

    @wraps(step)
    def watched(made: Any, timestep: Any, sample: Any, *words: Any, **named: Any) -> Any:
        report.show(lambda: preview.views(scheduler, made, timestep, sample))
        return step(made, timestep, sample, *words, **named)

    scheduler.step = watched


def _callback(pipe: Any, report: Report, steps: int) -> dict[str, Any]:
    """The argument by which `pipe` tells of its steps: the upscalers know only the old one.

    The new one counts the scheduler's own iterations (a second-order scheduler makes about two per step), the old one
    counts `num_inference_steps`.
    """

    def on_step_end(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        report.step(index + 1, pipe.num_timesteps)
        return tensors

    counted = itertools.count(1)

    def callback(*_: Any) -> None:
        report.step(next(counted), steps)

    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        return {"callback_on_step_end": on_step_end}
    return {"callback": callback}


def _check_finite(made: Any) -> None:
    """Raises `nan_output` where a tensor holds NaN or an infinity."""
    if not bool(made.isfinite().all()):
        raise StageFailed(
            code="nan_output", hint="half precision may overflow here: set the checkpoint's dtype to float32"
        )


def _latents(pipe: Any, batch: Batch, made: Any) -> list[Any]:
    """One tensor [channels, height / factor, width / factor] per member, on the CPU."""
    _check_finite(made)
    factor = pipe.vae_scale_factor
    cell = (pipe.vae.config.latent_channels, batch.size.height // factor, batch.size.width // factor)
    if tuple(made.shape) != (len(batch.prompts), *cell):
        raise StageFailed(f"latents of the shape {tuple(made.shape)}, not {cell} per job", code="bad_output")
    return [latents.clone() for latents in made.cpu()]


def _images(batch: Batch, made: Any) -> list[Any]:
    """One PIL RGB image per member, rounded exactly as diffusers' `numpy_to_pil` does."""
    from PIL import Image

    if isinstance(made, list):
        if any(image.size != batch.size for image in made) or len(made) != len(batch.prompts):
            raise StageFailed(f"images of {[image.size for image in made]}, not {batch.size}", code="bad_output")
        return made
    wanted = (batch.size.height, batch.size.width, 3)
    if made.shape != (len(batch.prompts), *wanted):
        raise StageFailed(f"images of the shape {made.shape}, not {wanted} per job", code="bad_output")
    return [Image.fromarray(pixels) for pixels in (made * 255).round().astype("uint8")]
