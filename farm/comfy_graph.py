"""How does a job, or a chain, look as a graph that ComfyUI runs?

Each stage becomes the nodes that do what it does; what has no counterpart there is told in `notes`, and a stage that
cannot be written at all is refused. `farm.comfy_stages` reads such a graph back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.catalog import Adapter, Catalog, Checkpoint, Weights
from farm.comfy_nodes import NODES
from farm.comfy_samplers import sampler_of
from farm.errors import FieldError, InvalidJob
from farm.job import stage_of, stage_seed
from farm.program import file_of
from farm.stage import STORED, Medium, Size, Stage, kinds

Link = list[Any]
"""An output of a node, as the API format names it: [id, index]."""
MAX_NOISE_LEVEL = 350
"""Source: ComfyUI, comfy/model_base.py, SD_X4Upscaler; its node takes a share of it."""
SPACES = ("sd1", "sdxl", "x4", "none")
"""Latent spaces that ComfyUI has, too."""
GENERAL = "pictures come out alike, not the same: ComfyUI's noise, schedules and arithmetic are its own"
_SHARED = {"kind", "checkpoint", "prompt", "negative_prompt", "seed", "width", "height"}
_ALWAYS = _SHARED | {"num_inference_steps", "guidance_scale"}
_SAMPLED = _ALWAYS | {"scheduler", "scheduler_options", "clip_skip"}
_ADAPTED = _SAMPLED | {"loras", "freeu", "vae", "weighting", "guidance_rescale", "controls"}
_HALVES = ("denoising_start", "denoising_end")


@dataclass(frozen=True)
class Workflow:
    """`nodes`: ComfyUI's API format, by id. `notes`: what it needs there, and what is not as it is here."""

    nodes: dict[str, Any]
    notes: list[str]


@dataclass
class _Way:
    """Where the chain is: latents or an image, and the VAE that they belong to."""

    latents: Link | None = None
    image: Link | None = None
    vae: Link | None = None


@dataclass(frozen=True)
class _Step:
    """One stage that is being written. `number` counts from 1."""

    number: int
    stage: Any
    checkpoint: Checkpoint
    size: tuple[int, int]
    seed: int
    title: str

    def texts(self) -> tuple[str, str]:
        """What to draw, and what not, as ComfyUI's own syntax would have it."""
        return _escaped(self.stage, self.stage.prompt), _escaped(self.stage, self.stage.negative_prompt)


def workflow(spec: Mapping[str, Any], catalog: Catalog) -> Workflow:
    """The graph for the job of `spec` (its record's, parsed), or what `drafted` gives for a chain.

    Raises:
        InvalidJob: (`no_counterpart`) ComfyUI has no nodes for a stage; (`unknown_kind`, `unknown_checkpoint`,
            `unknown_adapter`) something of it is not known here.
    """
    graph, way = _Graph(catalog), _Way()
    if spec["image"] is not None:
        way.image = graph.picture(str(spec["image"]["sha256"]), "the input image")
        if fits := spec["image"].get("fits"):
            graph.note(f"scale input.png to {Size(*fits)} first: the farm fits it, ComfyUI does not")
    for index, recipe in enumerate(spec["recipes"]):
        step = _step(index, recipe, catalog)
        write, told = WRITERS[step.stage.kind]
        write(graph, way, step)
        graph.notes += _left_out(step, told)
        if recipe["emits"] == Medium.IMAGE and way.image is None:
            decoded = graph.add("VAEDecode", step.title, samples=way.latents, vae=way.vae)
            way.image, way.latents = decoded[0], None
    graph.add("SaveImage", "the result", images=way.image, filename_prefix="latent-farm")
    if spec["chain"].get("exact"):
        graph.notes.append("exact: no other program gives the bits that a farm gives")
    if spec["chain"].get("keep", "none") != "none":
        graph.notes.append("of the stages before the last nothing is kept: add Preview Image where it shall be seen")
    return Workflow(graph.nodes, [GENERAL, *graph.notes])


def drafted(facts: Sequence[Mapping[str, Any]], chain: Mapping[str, Any]) -> dict[str, Any]:
    """What `workflow` takes, for a chain that is no job yet: its stages' `facts` (`PlannedStage.facts`) and its file.

    Without a seed of its own it gets 0; an input image is called `input.png`.
    """
    seed, recipes = chain.get("seed") or 0, list[dict[str, Any]]()
    for index, item in enumerate(facts):
        own = item["parameters"]
        # A stage's own empty prompt is one, too.
        texts = {name: own.get(name, chain.get(name) or "") for name in ("prompt", "negative_prompt")}
        recipes.append({
            "kind": item["kind"], "parameters": {**own, **texts},
            "checkpoint": {"name": item["checkpoint"]}, "size": item["size"], "emits": item["emits"],
            "given": item["takes"], "seed": own.get("seed", stage_seed(seed, index)),
        })  # fmt: skip
    image = {"sha256": "input.png", "fits": facts[0]["given_size"]} if facts[0]["takes"] else None
    return {"chain": chain, "image": image, "recipes": recipes}


def read_layer(checkpoint: Checkpoint) -> int:
    """The layer of its text encoder that is read where none is skipped, as ComfyUI counts them: the last is 1.

    diffusers counts from that one. Source: ComfyUI, comfy/text_encoders/sd2_clip.py and comfy/sdxl_clip.py,
    "penultimate" and layer_idx; of SD 2.x and its upscaler diffusers has the encoder without the layer that is last.
    """
    return 2 if checkpoint.family.startswith(("sdxl", "sd2")) or checkpoint.space == "x4" else 1


def _step(index: int, recipe: Mapping[str, Any], catalog: Catalog) -> _Step:
    where, name = f"stages.{index}", recipe["checkpoint"]["name"]
    stage: Any = kinds()[recipe["kind"]].model_validate(stage_of(recipe)) if recipe["kind"] in kinds() else None
    if stage is None or stage.kind not in WRITERS:
        told = f"ComfyUI has no nodes for {recipe['kind']}; it has for {', '.join(WRITERS)}"
        raise InvalidJob(errors=(FieldError(f"{where}.kind", told, "no_counterpart"),))
    if name not in catalog.checkpoints:
        raise InvalidJob(f"the catalog here has no checkpoint {name}", code="unknown_checkpoint")
    for half in _HALVES:
        if getattr(stage, half, None) is not None:
            told = "a schedule in two halves cannot be written; give each stage a schedule of its own"
            raise InvalidJob(errors=(FieldError(f"{where}.{half}", told, "no_counterpart"),))
    title, size = f"stage {index + 1}: {stage.kind}", tuple(recipe["size"])
    return _Step(index + 1, stage, catalog.checkpoints[name], (size[0], size[1]), recipe["seed"], title)


class _Graph:
    """Nodes that are being written. Each link is one to an output that is there and of the type that is asked for."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, self.nodes, self.notes = catalog, dict[str, Any](), list[str]()
        self._once: dict[str, list[Link]] = {}

    def add(self, kind: str, title: str, **inputs: Any) -> list[Link]:
        """A new node; its outputs."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        return [[name, index] for index in range(len(NODES[kind].outputs))]

    def once(self, kind: str, title: str, **inputs: Any) -> list[Link]:
        """The node that is so, made where it is not there yet; its outputs."""
        key = f"{kind} {sorted(inputs.items())}"
        if key not in self._once:
            self._once[key] = self.add(kind, title, **inputs)
        return self._once[key]

    def picture(self, value: str, what: str) -> Link:
        """An image that lies in ComfyUI's folder `input`."""
        return self.once("LoadImage", what, image=self.input_file(value, what))[0]

    def input_file(self, value: str, what: str) -> str:
        """The name of such an image, with word of it."""
        plain = len(value.removeprefix(STORED)) == 64
        name = file_of(value) if plain else Path(value).name
        self.note(f"put {what} into ComfyUI's folder input as {name}")
        return name

    def file(self, entry: Weights, folder: str) -> str:
        """The name that the file of weights has there, which is the catalog's, with word of where it has to be."""
        name, own = f"{entry.name}.safetensors", entry.repo or (entry.file and Path(entry.file).name)
        whence = f"{own}, " if own else ""
        self.note(f"put {entry.name} ({whence}{entry.licence}) into ComfyUI's folder models/{folder} as {name}")
        space = entry.space if isinstance(entry, Checkpoint) else None
        if space is not None and space not in SPACES:
            self.note(f"{entry.name} is a network that ComfyUI does not know: put a checkpoint that it knows there")
        return name

    def adapter(self, name: str, folder: str) -> str:
        """The name of an adapter's file."""
        found: Adapter | None = self.catalog.adapters.get(name)
        if found is None:
            raise InvalidJob(f"the catalog here has no adapter {name}", code="unknown_adapter")
        return self.file(found, folder)

    def note(self, text: str) -> None:
        """Tells something, once."""
        if text not in self.notes:
            self.notes.append(text)


# ------------------------------------------------------------------------------------------------ what stages share


def _loaded(graph: _Graph, step: _Step) -> tuple[Link, Link, Link]:
    """Model, text encoder and VAE of a stage, with all that it puts on them."""
    stage = step.stage
    name = graph.file(step.checkpoint, "checkpoints")
    model, clip, vae = graph.once("CheckpointLoaderSimple", step.checkpoint.name, ckpt_name=name)
    for lora in getattr(stage, "loras", []):
        told = {"strength_model": lora.weight, "strength_clip": lora.weight}
        file = graph.adapter(lora.name, "loras")
        model, clip = graph.once("LoraLoader", lora.name, model=model, clip=clip, lora_name=file, **told)
    if (skip := getattr(stage, "clip_skip", None)) is not None:
        layer = -(skip + read_layer(step.checkpoint))
        (clip,) = graph.once("CLIPSetLastLayer", step.title, clip=clip, stop_at_clip_layer=layer)
    if freeu := getattr(stage, "freeu", None):
        (model,) = graph.once("FreeU", step.title, model=model, **freeu.model_dump())
    if rescale := getattr(stage, "guidance_rescale", 0.0):
        (model,) = graph.once("RescaleCFG", step.title, model=model, multiplier=rescale)
    if own := getattr(stage, "vae", None):
        (vae,) = graph.once("VAELoader", own, vae_name=graph.adapter(own, "vae"))
    return model, clip, vae


def _told(graph: _Graph, step: _Step, clip: Link) -> tuple[Link, Link]:
    """What to draw, and what not."""
    prompt, negative = step.texts()
    if (way := getattr(step.stage, "weighting", "none")) == "compel":
        graph.note(f"stage {step.number}: weights in compel's syntax mean nothing there: write (words:1.2)")
    elif way == "a1111":
        graph.note(f"stage {step.number}: weights have another strength there: ComfyUI does not even them out")
    for name in getattr(step.stage, "embeddings", []):
        graph.adapter(name, "embeddings")
        token, file = graph.catalog.adapters[name].token or name, f"embedding:{name}"
        prompt, negative = prompt.replace(token, file), negative.replace(token, file)
    positive = graph.once("CLIPTextEncode", "prompt", text=prompt, clip=clip)[0]
    return positive, graph.once("CLIPTextEncode", "negative prompt", text=negative, clip=clip)[0]


def _escaped(stage: Stage, text: str | None) -> str:
    """A prompt whose brackets are no weights there either where they are none here."""
    if getattr(stage, "weighting", "none") == "a1111" or not text:
        return text or ""
    return text.replace("(", "\\(").replace(")", "\\)")


def _controlled(
    graph: _Graph, step: _Step, told: tuple[Link, Link], vae: Link, given: Link | None
) -> tuple[Link, Link]:
    """The same as ControlNets would have it; `given` is the stage's input image."""
    positive, negative = told
    for control in getattr(step.stage, "controls", []):
        if control.process != "none":
            loc = f"stages.{step.number - 1}.controls"
            msg = f"{control.process} has no node that gives the same; give the finished map with process none"
            raise InvalidJob(errors=(FieldError(loc, msg, "no_counterpart"),))
        net = graph.once("ControlNetLoader", control.name, control_net_name=graph.adapter(control.name, "controlnet"))[
            0
        ]
        image = graph.picture(control.image, f"what {control.name} follows") if control.image else given
        positive, negative = graph.add(
            "ControlNetApplyAdvanced", control.name, positive=positive, negative=negative, control_net=net, image=image,
            strength=control.scale, start_percent=control.start, end_percent=control.end, vae=vae,
        )  # fmt: skip
    return positive, negative


def _sampled(
    graph: _Graph, step: _Step, model: Link, told: tuple[Link, Link], latents: Link, strength: float = 1.0
) -> Link:
    """The latents that a stage draws.

    Of n steps diffusers runs int(n × strength), the last ones; ComfyUI is told how many to run, and of which share.
    """
    name, scheduler, note = sampler_of(step.stage)
    if note:
        graph.note(f"stage {step.number}: {note}")
    steps = min(int(step.stage.steps * strength), step.stage.steps)
    return graph.add(
        "KSampler", step.title, model=model, seed=step.seed, steps=steps,
        # Up to 1 the negative prompt has no effect here; there it is 1 that has none.
        cfg=max(float(step.stage.guidance_scale), 1.0),
        sampler_name=name, scheduler=scheduler, positive=told[0], negative=told[1], latent_image=latents,
        denoise=_denoise(steps, step.stage.steps),
    )[0]  # fmt: skip


def _denoise(steps: int, whole: int) -> float:
    """The share of which ComfyUI takes `steps` to be the last of `whole`: the schedule has int(steps / share)."""
    near = math.floor(steps / whole * 1e6)
    return next(share / 1e6 for share in (near, near - 1) if int(steps / (share / 1e6)) == whole)


def _encoded(graph: _Graph, way: _Way, step: _Step, vae: Link) -> Link:
    """The latents that a stage is given."""
    if way.latents is not None:
        return way.latents
    return graph.add("VAEEncode", step.title, pixels=way.image, vae=vae)[0]


def _left_out(step: _Step, told: set[str]) -> Iterator[str]:
    """Parameters of a stage that are set and were not written, in words."""
    for name, known in type(step.stage).model_fields.items():
        value, default = getattr(step.stage, name), known.get_default(call_default_factory=True)
        if name in told or value == default:
            continue
        if isinstance(value, list):
            shown = f"{', '.join(str(getattr(each, 'name', each)) for each in value)[:80]} of its {name}"
        else:
            shown = f"{name} {value}"
        yield f"stage {step.number}: without {shown.replace('_', ' ')}, which has no counterpart"


# ------------------------------------------------------------------------------------------------ the kinds


def _text2img(graph: _Graph, way: _Way, step: _Step) -> None:
    model, clip, vae = _loaded(graph, step)
    width, height = step.size
    latents = graph.add("EmptyLatentImage", step.title, width=width, height=height, batch_size=1)[0]
    told = _controlled(graph, step, _told(graph, step, clip), vae, None)
    way.latents, way.image, way.vae = _sampled(graph, step, model, told, latents), None, vae


def _img2img(graph: _Graph, way: _Way, step: _Step) -> None:
    model, clip, vae = _loaded(graph, step)
    latents = _encoded(graph, way, step, vae)
    told = _controlled(graph, step, _told(graph, step, clip), vae, way.image)
    way.latents, way.image, way.vae = _sampled(graph, step, model, told, latents, step.stage.strength), None, vae


def _inpaint(graph: _Graph, way: _Way, step: _Step) -> None:
    """With the picture laid over again where the mask is black, as it is here."""
    stage, image = step.stage, way.image
    model, clip, vae = _loaded(graph, step)
    if stage.border and stage.mask:
        told = "ComfyUI draws a border or a masked part at a time; make two stages of it"
        raise InvalidJob(errors=(FieldError(f"stages.{step.number - 1}.border", told, "no_counterpart"),))
    if stage.border:
        edges = stage.border.model_dump()
        image, mask = graph.add("ImagePadForOutpaint", step.title, image=image, **edges, feathering=0)
        graph.note(f"stage {step.number}: the border begins grey there, not with the picture's outermost pixels")
    else:
        file = graph.input_file(stage.mask, f"the mask of stage {step.number}")
        mask = graph.once("LoadImageMask", "mask: white is drawn anew", image=file, channel="red")[0]
    words = _controlled(graph, step, _told(graph, step, clip), vae, image)
    if step.checkpoint.kinds == ["inpaint"]:  # its UNet sees the mask and the rest of the picture
        *both, latents = graph.add(
            "InpaintModelConditioning", step.title, positive=words[0], negative=words[1], vae=vae, pixels=image,
            mask=mask, noise_mask=False,
        )  # fmt: skip
        words = both[0], both[1]
    else:
        encoded = graph.add("VAEEncode", step.title, pixels=image, vae=vae)[0]
        latents = graph.add("SetLatentNoiseMask", step.title, samples=encoded, mask=mask)[0]
    drawn = _sampled(graph, step, model, words, latents, stage.strength)
    decoded = graph.add("VAEDecode", step.title, samples=drawn, vae=vae)[0]
    laid = {"destination": image, "source": decoded, "x": 0, "y": 0, "resize_source": False, "mask": mask}
    way.image, way.latents, way.vae = graph.add("ImageCompositeMasked", step.title, **laid)[0], None, vae


def _upscale_latent(graph: _Graph, way: _Way, step: _Step) -> None:
    graph.note(
        f"stage {step.number}: ComfyUI does not run the network that doubles latents: LatentUpscaleBy enlarges them in "
        "its place, without prompt, steps and seed, and less sharp"
    )
    way.latents = graph.add(
        "LatentUpscaleBy", step.title, samples=way.latents, upscale_method="bislerp", scale_by=float(step.stage.scale)
    )[0]


def _upscale(graph: _Graph, way: _Way, step: _Step) -> None:
    model, clip, vae = _loaded(graph, step)
    words = _told(graph, step, clip)
    share = step.stage.noise_level / MAX_NOISE_LEVEL
    *both, latents = graph.add(
        "SD_4XUpscale_Conditioning", step.title, images=way.image, positive=words[0], negative=words[1],
        scale_ratio=float(step.stage.scale), noise_augmentation=round(share, 6),
    )  # fmt: skip
    way.latents, way.image, way.vae = _sampled(graph, step, model, (both[0], both[1]), latents), None, vae


def _esrgan(graph: _Graph, way: _Way, step: _Step) -> None:
    name = graph.file(step.checkpoint, "upscale_models")
    network = graph.once("UpscaleModelLoader", step.checkpoint.name, model_name=name)[0]
    way.image = graph.add("ImageUpscaleWithModel", step.title, upscale_model=network, image=way.image)[0]


Writer = Callable[[_Graph, _Way, _Step], None]
WRITERS: dict[str, tuple[Writer, set[str]]] = {
    "text2img": (_text2img, _ADAPTED | {"embeddings"}),
    "img2img": (_img2img, _ADAPTED | {"embeddings", "strength"}),
    "inpaint": (_inpaint, _ADAPTED | {"embeddings", "strength", "mask", "border"}),
    "upscale_latent": (_upscale_latent, _ALWAYS),
    "upscale": (_upscale, _SAMPLED | {"noise_level"}),
    "esrgan": (_esrgan, _SHARED | {"factor"}),
}
"""How each kind is written, and which of its parameters are then."""
