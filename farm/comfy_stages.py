"""Which chain is a graph of ComfyUI's, where all of it is one?

Only a graph that is understood from its result back to its beginning is read so: one picture, drawn by a line of known
nodes. Of any other one `farm.comfy` says what its first sampler was told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farm.catalog import Catalog
from farm.comfy import Node
from farm.comfy_graph import MAX_NOISE_LEVEL, read_layer
from farm.comfy_samplers import scheduler_of
from farm.job import stage_seed
from farm.stage import MAX_SEED, kinds

MOST = 8
"""Stages of a chain."""
_BRACKET = re.compile(r"(?<!\\)[()]")
_EMBEDDED = re.compile(r"embedding:([\w.-]+)")


@dataclass(frozen=True)
class Read:
    """`chain`: as a chain file would write it. `notes`: what could not be taken. `loras`: those among it."""

    chain: dict[str, Any]
    notes: list[str]
    loras: list[tuple[str, float]]


class _NotRead(Exception):
    """The graph is not one that a chain could be."""


@dataclass(frozen=True)
class _Model:
    """What a stage is drawn with: its checkpoint's file, and the weight of each LoRA by the id of its node."""

    file: str
    loras: dict[str, float]


@dataclass
class _Reader:
    nodes: Mapping[str, Node]
    catalog: Catalog | None
    stages: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loras: list[tuple[str, float]] = field(default_factory=list)

    def node(self, link: Any, *classes: str) -> Node:
        """The node that an input is linked to, if it is of one of `classes`."""
        if not (isinstance(link, list) and len(link) == 2 and str(link[0]) in self.nodes):
            raise _NotRead
        found = self.nodes[str(link[0])]
        if classes and found["class_type"] not in classes:
            raise _NotRead
        return found

    def tell(self, text: str) -> None:
        """Tells something of the stage that is being read, once."""
        told = f"stage {len(self.stages) + 1} {text}"
        self.notes += [told] if told not in self.notes else []

    # ------------------------------------------------------------------------------------------------ the way

    def image(self, link: Any) -> None:
        """Reads the stages that make an image."""
        node = self.node(link)
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "VAEDecode":
            self.latents(inputs["samples"], inputs.get("vae"))
        elif kind == "ImageCompositeMasked":
            self.image(inputs["source"])
            if self.stages[-1]["kind"] != "inpaint":
                raise _NotRead
        elif kind == "ImageUpscaleWithModel":
            self.image(inputs["image"])
            self.put({"kind": "esrgan"}, {})
            file = str(self.node(inputs["upscale_model"], "UpscaleModelLoader")["inputs"]["model_name"])
            if self.loaded(self.stages[-1], file) and self.catalog:
                self.stages[-1]["factor"] = int(self.catalog.checkpoints[_stem(file)].family[-1])
        elif kind == "LoadImage":
            self.notes.append(f"it began with the picture {str(inputs.get('image'))[:80]}, which is not in the file")
        else:
            raise _NotRead

    def latents(self, link: Any, vae: Any = None) -> None:
        """Reads the stages that make latents, which `vae` decodes."""
        node = self.node(link, "KSampler", "LatentUpscaleBy")
        inputs = node["inputs"]
        if node["class_type"] == "LatentUpscaleBy":
            if float(inputs["scale_by"]) != 2:
                raise _NotRead
            self.latents(inputs["samples"], vae)
            self.put({"kind": "upscale_latent"}, {})
            self.notes.append(f"stage {len(self.stages)} doubles the latents with a network; the graph did it without")
            return
        source = self.node(inputs["latent_image"])
        begin = _BEGINS.get(source["class_type"])
        if begin is None:
            raise _NotRead
        stage, encoder = begin(self, inputs["latent_image"], source["inputs"])
        self.sampled(stage, inputs, [link for link in (encoder, vae) if link is not None])

    def put(self, stage: dict[str, Any], texts: Mapping[str, str]) -> None:
        """One more stage, of which `texts` are the prompts."""
        if len(self.stages) >= MOST or stage["kind"] not in kinds():
            raise _NotRead
        self.stages.append({**stage, **texts})

    def sampled(self, stage: dict[str, Any], inputs: Mapping[str, Any], vaes: Sequence[Any]) -> None:
        """One more stage: what its sampler was told, and which `vaes` stand before and after that."""
        steps, denoise = int(inputs["steps"]), float(inputs.get("denoise", 1.0))
        if not (0 < denoise <= 1 and 0 < steps <= 10_000):
            raise _NotRead
        if stage["kind"] in ("img2img", "inpaint"):
            # As ComfyUI reckons: so many steps are the last of the whole schedule.
            whole = int(steps / denoise)
            shares = [round(steps / whole, digits) for digits in range(1, 7)] + [(steps + 0.5) / whole]
            stage["strength"] = next(one for one in shares if min(int(whole * one), whole) == steps)
            steps = whole
        elif denoise < 1:
            raise _NotRead
        stage["num_inference_steps"], stage["guidance_scale"] = steps, float(inputs["cfg"])
        solver, levels = str(inputs["sampler_name"]), str(inputs["scheduler"])
        if (told := scheduler_of(solver, levels)) is not None:
            stage |= told
        else:
            self.notes.append(f"stage {len(self.stages) + 1}: the sampler {solver[:60]} is not known here")
        if 0 <= int(inputs["seed"]) <= MAX_SEED:
            stage["seed"] = int(inputs["seed"])
        else:
            self.notes.append(f"stage {len(self.stages) + 1}: the seed {inputs['seed']} is none of 0 to {MAX_SEED}")
        model = self.modelled(stage, inputs["model"])
        texts = {name: self.words(stage, inputs[which], model) for name, which in _TEXTS.items()}
        self.coded(stage, vaes, model)
        self.put(stage, texts)

    # ------------------------------------------------------------------------------------------------ the weights

    def modelled(self, stage: dict[str, Any], link: Any) -> _Model:
        """What was put on the model of a stage, and its checkpoint."""
        loras: dict[str, float] = {}
        for _ in self.nodes:
            node = self.node(link)
            kind, inputs = node["class_type"], node["inputs"]
            if kind == "CheckpointLoaderSimple":
                self.loaded(stage, str(inputs["ckpt_name"]))
                return _Model(str(inputs["ckpt_name"]), loras)
            if kind == "LoraLoader":
                loras[str(link[0])] = float(inputs["strength_model"])
                self.weighed(stage, str(inputs["lora_name"]), loras[str(link[0])])
            elif kind == "FreeU":
                stage["freeu"] = {name: float(inputs[name]) for name in ("s1", "s2", "b1", "b2")}
            elif kind == "RescaleCFG":
                stage["guidance_rescale"] = float(inputs["multiplier"])
            else:
                raise _NotRead
            link = inputs["model"]
        raise _NotRead

    def loaded(self, stage: dict[str, Any], file: str) -> bool:
        """Whether the catalog knows a checkpoint, which the stage then names."""
        known = self.catalog.checkpoints.get(_stem(file)) if self.catalog else None
        if known is None or self.catalog is None or stage["kind"] not in known.kinds:
            self.notes.append(f"stage {len(self.stages) + 1} was drawn with the checkpoint {file[:80]}")
            return False
        if self.catalog.defaults.get(stage["kind"]) != known.name:
            stage["checkpoint"] = known.name
        return True

    def weighed(self, stage: dict[str, Any], file: str, weight: float) -> None:
        found = self.catalog.adapters.get(_stem(file)) if self.catalog else None
        if found is not None and found.type == "lora" and abs(weight) <= 4:
            stage["loras"] = [{"name": found.name, "weight": weight}, *stage.get("loras", [])]
            return
        self.loras.append((file[:80], weight))
        self.notes.append(
            f"stage {len(self.stages) + 1} is without the LoRA {file[:80]} ({weight:g}): name one of the catalog's in "
            "loras"
        )

    def coded(self, stage: dict[str, Any], links: Sequence[Any], model: _Model) -> None:
        """The VAE of a stage, to which each of `links` leads; the last one decodes."""
        files = []
        for link in links:
            node = self.node(link, "VAELoader", "CheckpointLoaderSimple")
            if node["class_type"] == "VAELoader":
                files.append(str(node["inputs"]["vae_name"]))
            else:
                files.append("")
                if (file := str(node["inputs"]["ckpt_name"])) != model.file:
                    self.tell(f"is without the vae of {file[:80]}")
        if len(set(files)) > 1:
            self.tell("has one vae, where the graph had one to encode and another to decode")
        if not files or not files[-1]:
            return
        found = self.catalog.adapters.get(_stem(files[-1])) if self.catalog else None
        if found is not None and found.type == "vae" and "vae" in kinds()[stage["kind"]].model_fields:
            stage["vae"] = found.name
        else:
            self.tell(f"is without the vae {files[-1][:80]}")

    # ------------------------------------------------------------------------------------------------ the words

    def words(self, stage: dict[str, Any], link: Any, model: _Model) -> str:
        """A prompt as it is written here."""
        for _ in self.nodes:
            node = self.node(link, "CLIPTextEncode", "ControlNetApplyAdvanced", *_PASSED)
            inputs = node["inputs"]
            if node["class_type"] == "CLIPTextEncode":
                break
            if node["class_type"] == "ControlNetApplyAdvanced":
                net = self.node(inputs["control_net"], "ControlNetLoader")["inputs"]["control_net_name"]
                self.tell(f"is without the ControlNet {str(net)[:80]}")
            link = inputs["positive" if link[1] == 0 else "negative"]
        else:
            raise _NotRead
        self.skipped(stage, inputs["clip"], model)
        if not isinstance(text := inputs["text"], str):
            raise _NotRead
        if _BRACKET.search(text):
            stage["weighting"] = "a1111"
        else:
            text = text.replace("\\(", "(").replace("\\)", ")")
        return _EMBEDDED.sub(lambda found: self.embedded(stage, found), text)

    def embedded(self, stage: dict[str, Any], found: re.Match[str]) -> str:
        """The word of a textual inversion, which the stage then names."""
        adapter = self.catalog.adapters.get(_stem(found[1])) if self.catalog else None
        if adapter is None or adapter.token is None:
            return found[0]
        stage["embeddings"] = [*dict.fromkeys([*stage.get("embeddings", []), adapter.name])]
        return adapter.token

    def skipped(self, stage: dict[str, Any], link: Any, model: _Model) -> None:
        """How many of the text encoder's last layers are left out; it ought to be the model's, with its LoRAs."""
        layer, loras = 0, dict[str, float]()
        for _ in self.nodes:
            node = self.node(link, "CheckpointLoaderSimple", "LoraLoader", "CLIPSetLastLayer")
            inputs = node["inputs"]
            if node["class_type"] == "CheckpointLoaderSimple":
                break
            if node["class_type"] == "LoraLoader":
                loras[str(link[0])] = float(inputs["strength_clip"])
            else:  # of two it is the one nearest to the words
                layer = layer or int(inputs["stop_at_clip_layer"])
            link = inputs["clip"]
        else:
            raise _NotRead
        if (file := str(inputs["ckpt_name"])) != model.file:
            self.tell(f"is without the text encoder of {file[:80]}")
        if loras != model.loras:
            self.tell("has its LoRAs on the text encoder as on the model: the graph weighed them otherwise there")
        name = stage.get("checkpoint") or (self.catalog and self.catalog.defaults.get(stage["kind"]))
        entry = self.catalog.checkpoints.get(name) if self.catalog and name else None
        if layer and (skip := -layer - (read_layer(entry) if entry else 1)) > 0:
            stage["clip_skip"] = skip
        elif layer and skip < 0:
            self.tell("is without the last layer of its text encoder, which is not read here")


_Begin = tuple[dict[str, Any], Any]
"""A stage, and the link to the VAE that encodes what it begins with; None where nothing is encoded."""


def _noise(reader: _Reader, _: Any, inputs: Mapping[str, Any]) -> _Begin:
    if reader.stages or int(inputs.get("batch_size", 1)) != 1:
        raise _NotRead
    return {"kind": "text2img", "width": int(inputs["width"]), "height": int(inputs["height"])}, None


def _drawn(reader: _Reader, link: Any, _: Mapping[str, Any]) -> _Begin:
    reader.latents(link)
    return {"kind": "img2img"}, None


def _encoded(reader: _Reader, _: Any, inputs: Mapping[str, Any]) -> _Begin:
    reader.image(inputs["pixels"])
    return {"kind": "img2img"}, inputs["vae"]


def _masked(reader: _Reader, _: Any, inputs: Mapping[str, Any]) -> _Begin:
    """Of an encoded picture, or of one beside its mask."""
    encoded = inputs if "pixels" in inputs else reader.node(inputs["samples"], "VAEEncode")["inputs"]
    mask = reader.node(inputs["mask"], "LoadImageMask", "LoadImage", "ImagePadForOutpaint")
    stage: dict[str, Any] = {"kind": "inpaint"}
    if mask["class_type"] == "ImagePadForOutpaint":
        told = mask["inputs"]
        stage["border"] = {edge: int(told[edge]) for edge in ("left", "top", "right", "bottom") if told[edge]}
        reader.image(told["image"])
        return stage, encoded["vae"]
    reader.image(encoded["pixels"])
    file = str(mask["inputs"]["image"])[:80]
    reader.notes.append(f"stage {len(reader.stages) + 1} has the mask {file}, which is not in the file")
    return stage, encoded["vae"]


def _quadrupled(reader: _Reader, _: Any, inputs: Mapping[str, Any]) -> _Begin:
    if float(inputs["scale_ratio"]) != 4:
        raise _NotRead
    reader.image(inputs["images"])
    return {"kind": "upscale", "noise_level": round(float(inputs["noise_augmentation"]) * MAX_NOISE_LEVEL)}, None


_BEGINS: dict[str, Callable[[_Reader, Any, Mapping[str, Any]], _Begin]] = {
    "EmptyLatentImage": _noise, "KSampler": _drawn, "LatentUpscaleBy": _drawn, "VAEEncode": _encoded,
    "SetLatentNoiseMask": _masked, "InpaintModelConditioning": _masked, "VAEEncodeForInpaint": _masked,
    "SD_4XUpscale_Conditioning": _quadrupled,
}  # fmt: skip
"""What a sampler begins with, by the node that gives it: the stages before it, and what its own stage is."""
_PASSED = ("InpaintModelConditioning", "SD_4XUpscale_Conditioning")
_TEXTS = {"prompt": "positive", "negative_prompt": "negative"}


def chain_of(nodes: Mapping[str, Node], catalog: Catalog | None) -> Read | None:
    """The chain that a graph is; None where it is none. Names are taken from the catalog, where it has them."""
    ends = [node for node in nodes.values() if node["class_type"] in ("SaveImage", "PreviewImage")]
    if len(ends) != 1:
        return None
    reader = _Reader(nodes, catalog)
    try:
        reader.image(ends[0]["inputs"].get("images"))
    except (_NotRead, KeyError, TypeError, ValueError, OverflowError, StopIteration, RecursionError, IndexError):
        return None
    if not reader.stages or not any("seed" in stage or "prompt" in stage for stage in reader.stages):
        return None
    return Read(_shared(reader.stages), reader.notes, reader.loras)


def _shared(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The chain of stages that say all of it: what the chain says is left out of each."""
    chain: dict[str, Any] = {}
    texts = next((stage for stage in stages if "prompt" in stage), {})
    for name in _TEXTS:
        if shared := texts.get(name):
            chain[name] = shared
        for stage in stages:
            if stage.get(name) == (shared or ""):
                del stage[name]
    if stages[0].get("seed") is not None:
        chain["seed"] = stages[0].pop("seed")
        for position, stage in enumerate(stages):
            if stage.get("seed") == stage_seed(chain["seed"], position):
                del stage["seed"]
    return {**chain, "stages": stages}


def _stem(file: str) -> str:
    """A file's name as the catalog may have it."""
    return file.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
