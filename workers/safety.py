"""Does a picture show what this farm does not give out?

Asked of each image that a stage emits, on the farm's own decoded copy, by the checker that Stable Diffusion 1.x comes
with. What follows is the farm's policy (`FARM_SAFETY`): nothing, a tag, a blurred picture with a tag, or a refusal that
says so. No picture is ever blackened in silence, as the pipelines' own check does.

Source of the checker: CompVis, 2022; of what it catches and misses: Rando et al. 2022, arXiv:2210.04610.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farm.errors import StageFailed

if TYPE_CHECKING:
    from PIL.Image import Image

    from workers.adapters import Files

TAG = "nsfw"
SPECIAL_CARE = 0.01
"""So much nearer is every concept to a picture of which the checker takes special care. Source: its `forward`."""
BLUR = 1 / 16
"""Radius of the blur, as a share of the shorter side: outlines of colours remain."""


class Checker:
    """A loaded safety checker; `dtype` is torch's, by default that of its files."""

    def __init__(self, files: Files, device: str, dtype: Any = None) -> None:
        import transformers
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        # Without torchvision this is the class that transformers falls back to; its pixels do not depend on that.
        extractor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        self._extractor = extractor.from_pretrained(files.path / "feature_extractor", local_files_only=True)
        self._model = StableDiffusionSafetyChecker.from_pretrained(
            files.path / "safety_checker",
            local_files_only=True,
            use_safetensors=True,
            variant=files.variant,
            dtype=dtype,
        )
        self._model = self._model.eval().to(device)

    def finds(self, image: Image) -> bool:
        """Whether `image` is one of those that the checker was made for."""
        import numpy as np

        _, found = self._model(clip_input=self.seen([image]), images=np.zeros((1, 1, 1, 3), np.float32))
        return bool(found[0])

    def seen(self, images: Sequence[Image]) -> Any:
        """The pictures as the checker sees them, [pictures, 3, side, side]."""
        found = self._extractor(list(images), return_tensors="pt").pixel_values
        return found.to(self._model.device, self._model.dtype)

    def margins(self, seen: Any) -> list[float]:
        """How far each of the pictures `seen` is within the concept that it is deepest in, or off the nearest one.

        The greatest of the checker's own `concept_scores`: cosine minus that concept's threshold, in thousandths, as it
        rounds them; > 0 is what `finds` finds.
        """
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance

        model = self._model
        with torch.no_grad():
            embeds = model.visual_projection(model.vision_model(seen)[1])
            special = cosine_distance(embeds, model.special_care_embeds) - model.special_care_embeds_weights
            concepts = cosine_distance(embeds, model.concept_embeds) - model.concept_embeds_weights
        cared = [any(round(one, 3) > 0 for one in row) for row in special.tolist()]
        return [
            max(round(one + SPECIAL_CARE * care, 3) for one in row)
            for row, care in zip(concepts.tolist(), cared, strict=True)
        ]


def applied(policy: str, checker: Checker, image: Any) -> tuple[Any, list[str]]:
    """The image that is handed on under `policy`, and its tags.

    Raises:
        StageFailed: (`unsafe_output`) the policy is to refuse it.
    """
    from PIL import ImageFilter

    if not checker.finds(image):
        return image, []
    if policy == "refuse":
        raise StageFailed("the safety checker refuses the picture", code="unsafe_output")
    if policy == "blur":
        image = image.filter(ImageFilter.GaussianBlur(min(image.size) * BLUR))
    return image, [TAG]
