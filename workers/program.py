"""Which plain program loads and calls a pipeline as a stage does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farm.stage import Medium, Source, Stage
from workers import calling, pipelines


@dataclass(frozen=True)
class Program:
    """What the plain program of a stage is made of, as Python source.

    `inputs` are arguments of the call that are no plain values, `before` lines ahead of the loading, `loading` further
    arguments of it, `adapted` lines after it, `placed` lines once it is on the device.
    """

    class_name: str
    inputs: Mapping[str, str]
    before: Sequence[str] = ()
    loading: str = ""
    adapted: Sequence[str] = ()
    placed: Sequence[str] = ()


def script(
    stage: Stage,
    program: Program,
    source: Source,
    emits: Medium,
    seed: int,
    arguments: Mapping[str, Any],
    scheduler: tuple[str | None, Mapping[str, Any]],
) -> list[str]:
    """The lines of a plain program that loads a pipeline and calls it as `call` would for one member.

    `arguments` holds the values of arguments beside the program's `inputs`.
    """
    class_name = program.class_name
    left_out = pipelines.LEFT_OUT.get(class_name, pipelines.UNCHECKED)
    further = program.loading + "".join(f", {name}={value!r}" for name, value in left_out.items())
    how = "from_single_file" if source.is_file else "from_pretrained"
    lines = [
        *program.before,
        f"from diffusers import {class_name}",
        f"pipe = {class_name}.{how}({source.arguments}{further})",
        *_switched(source.switches),
        *_renamed(class_name, source),
        *program.adapted,
        'pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
        *program.placed,
    ]
    name, options = scheduler
    if name:
        told = {**calling.scheduler_settings(name, [seed]), **options}
        own = "".join(f", {key}={value!r}" for key, value in told.items())
        lines += [
            f"from diffusers import {name}",
            f"pipe.scheduler = {name}.from_config(pipe.scheduler.config{own})",
        ]
    if getattr(stage, "vae_tiling", False):
        lines.append("pipe.vae.enable_tiling()")
    if getattr(stage, "clip_skip", None) and source.family.startswith("sd") and not source.family.startswith("sdxl"):
        lines += [
            'if not hasattr(pipe.text_encoder, "text_model"):  # transformers >= 5.6, see diffusers#14124',
            '    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)',
        ]
    weighted = "**texts" in program.inputs
    given = {} if weighted else calling.texts(source.family, [stage.prompt or ""], [stage.negative_prompt or ""])
    common = {
        **{name: repr(values[0]) for name, values in given.items()},
        **program.inputs,
        **{name: repr(value) for name, value in arguments.items()},
        "generator": f'torch.Generator("cpu").manual_seed({seed})',
        "output_type": repr("latent" if emits is Medium.LATENTS else "pil"),
    }
    lines.append("out = pipe(")
    lines += [f"    {name}={value}," if value else f"    {name}," for name, value in common.items()]
    return [*lines, ").images" if emits is Medium.LATENTS else ").images[0]"]


def _renamed(class_name: str, source: Source) -> list[str]:
    """What `pipelines.load` does about a class that is no more."""
    if class_name != "StableDiffusionDepth2ImgPipeline":
        return []
    where = source.arguments.partition(", variant=")[0].partition(", torch_dtype=")[0]
    return [
        "import transformers",
        "# it was a DPTFeatureExtractor; its pixels depend on whether torchvision is there",
        'processor = getattr(transformers, "DPTImageProcessorPil", None) or transformers.DPTImageProcessor',
        f'extractor = processor.from_pretrained({where}, subfolder="feature_extractor")',
        "pipe.register_modules(feature_extractor=extractor)",
    ]


def _switched(switches: Mapping[str, Any]) -> list[str]:
    """What `pipelines.load` does for a checkpoint that is run otherwise than it was made, as far as pixels show it."""
    lines = []
    if switches.get("channels_last"):
        lines += [f"pipe.{part}.to(memory_format=torch.channels_last)" for part in ("unet", "vae")]
    if switches.get("fuse_qkv_projections"):
        lines.append("pipe.fuse_qkv_projections()")
    attention = {
        "eager": [
            "from diffusers.models.attention_processor import AttnProcessor",
            "pipe.unet.set_attn_processor(AttnProcessor())",
        ],
        "sliced": ["pipe.enable_attention_slicing()"],
        "xformers": ["pipe.enable_xformers_memory_efficient_attention()"],
    }
    lines += attention.get(switches.get("attention", ""), [])
    return [*lines, "pipe.unet.compile()"] if switches.get("compile") else lines
