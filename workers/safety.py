"""Does a picture show what this farm does not give out?

Asked of each image that a stage emits, on the farm's own decoded copy, by the checker that Stable Diffusion 1.x comes
with. What follows is the farm's policy (`FARM_SAFETY`): nothing, a tag, a blurred picture with a tag, or a refusal that
says so. No picture is ever blackened in silence, as the pipelines' own check does.

Source of the checker: CompVis, 2022; of what it catches and misses: Rando et al. 2022, arXiv:2210.04610.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farm.errors import StageFailed

if TYPE_CHECKING:
    from PIL.Image import Image

    from workers.adapters import Files

TAG = "nsfw"
BLUR = 1 / 16
"""Radius of the blur, as a share of the shorter side: outlines of colours remain."""


class Checker:
    """A loaded safety checker."""

    def __init__(self, files: Files, device: str) -> None:
        import transformers
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        # Without torchvision this is the class that transformers falls back to; its pixels do not depend on that.
        extractor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        self._extractor = extractor.from_pretrained(files.path / "feature_extractor", local_files_only=True)
        self._model = StableDiffusionSafetyChecker.from_pretrained(
            files.path / "safety_checker", local_files_only=True, use_safetensors=True, variant=files.variant
        )
        self._model = self._model.eval().to(device)

    def finds(self, image: Image) -> bool:
        """Whether `image` is one of those that the checker was made for."""
        import numpy as np

        seen = self._extractor(image, return_tensors="pt").pixel_values.to(self._model.device, self._model.dtype)
        _, found = self._model(clip_input=seen, images=np.zeros((1, 1, 1, 3), np.float32))
        return bool(found[0])


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
