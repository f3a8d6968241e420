"""Which nodes of ComfyUI's does a chain need, what does each take, and what does it give?

Source: ComfyUI at commit a125cd84b054 (October 2025), `INPUT_TYPES` and `RETURN_TYPES` in nodes.py, and the files of
comfy_extras that are named beside the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeClass:
    """The type of each input by its name, and of the outputs in their order; `optional` inputs may be left out."""

    inputs: Mapping[str, str]
    outputs: tuple[str, ...] = ()
    optional: Mapping[str, str] | None = None


_SAMPLED = {
    "model": "MODEL", "seed": "INT", "steps": "INT", "cfg": "FLOAT", "sampler_name": "COMBO", "scheduler": "COMBO",
    "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT", "denoise": "FLOAT",
}  # fmt: skip
_CONTROLLED = {
    "positive": "CONDITIONING", "negative": "CONDITIONING", "control_net": "CONTROL_NET", "image": "IMAGE",
    "strength": "FLOAT", "start_percent": "FLOAT", "end_percent": "FLOAT",
}  # fmt: skip
_PADDED = {"image": "IMAGE", "left": "INT", "top": "INT", "right": "INT", "bottom": "INT", "feathering": "INT"}
_LORA = {"model": "MODEL", "clip": "CLIP", "lora_name": "COMBO", "strength_model": "FLOAT", "strength_clip": "FLOAT"}
_MASKED = {
    "positive": "CONDITIONING", "negative": "CONDITIONING", "vae": "VAE", "pixels": "IMAGE", "mask": "MASK",
    "noise_mask": "BOOLEAN",
}  # fmt: skip
_LAID = {
    "destination": "IMAGE", "source": "IMAGE", "x": "INT", "y": "INT", "resize_source": "BOOLEAN",
}  # fmt: skip
_QUADRUPLED = {
    "images": "IMAGE", "positive": "CONDITIONING", "negative": "CONDITIONING", "scale_ratio": "FLOAT",
    "noise_augmentation": "FLOAT",
}  # fmt: skip
NODES: dict[str, NodeClass] = {
    "CheckpointLoaderSimple": NodeClass({"ckpt_name": "COMBO"}, ("MODEL", "CLIP", "VAE")),
    "VAELoader": NodeClass({"vae_name": "COMBO"}, ("VAE",)),
    "LoraLoader": NodeClass(_LORA, ("MODEL", "CLIP")),
    "CLIPSetLastLayer": NodeClass({"clip": "CLIP", "stop_at_clip_layer": "INT"}, ("CLIP",)),
    "CLIPTextEncode": NodeClass({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "EmptyLatentImage": NodeClass({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "KSampler": NodeClass(_SAMPLED, ("LATENT",)),
    "VAEDecode": NodeClass({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "VAEEncode": NodeClass({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "LatentUpscaleBy": NodeClass({"samples": "LATENT", "upscale_method": "COMBO", "scale_by": "FLOAT"}, ("LATENT",)),
    "SetLatentNoiseMask": NodeClass({"samples": "LATENT", "mask": "MASK"}, ("LATENT",)),
    "InpaintModelConditioning": NodeClass(_MASKED, ("CONDITIONING", "CONDITIONING", "LATENT")),
    "LoadImage": NodeClass({"image": "COMBO"}, ("IMAGE", "MASK")),
    "LoadImageMask": NodeClass({"image": "COMBO", "channel": "COMBO"}, ("MASK",)),
    "ImagePadForOutpaint": NodeClass(_PADDED, ("IMAGE", "MASK")),
    "ControlNetLoader": NodeClass({"control_net_name": "COMBO"}, ("CONTROL_NET",)),
    "ControlNetApplyAdvanced": NodeClass(_CONTROLLED, ("CONDITIONING", "CONDITIONING"), {"vae": "VAE"}),
    "SaveImage": NodeClass({"images": "IMAGE", "filename_prefix": "STRING"}),
    # nodes_mask.py
    "ImageCompositeMasked": NodeClass(_LAID, ("IMAGE",), {"mask": "MASK"}),
    # nodes_upscale_model.py
    "UpscaleModelLoader": NodeClass({"model_name": "COMBO"}, ("UPSCALE_MODEL",)),
    "ImageUpscaleWithModel": NodeClass({"upscale_model": "UPSCALE_MODEL", "image": "IMAGE"}, ("IMAGE",)),
    # nodes_sdupscale.py
    "SD_4XUpscale_Conditioning": NodeClass(_QUADRUPLED, ("CONDITIONING", "CONDITIONING", "LATENT")),
    # nodes_freelunch.py
    "FreeU": NodeClass({"model": "MODEL", "b1": "FLOAT", "b2": "FLOAT", "s1": "FLOAT", "s2": "FLOAT"}, ("MODEL",)),
    # nodes_model_advanced.py
    "RescaleCFG": NodeClass({"model": "MODEL", "multiplier": "FLOAT"}, ("MODEL",)),
}
