"""Which of the trained files go with the package, and what colours do its latents stand for?"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch.nn import functional

from workers.demo import family
from workers.demo.train import data, parts

FILES = {
    "vae": "decoder/vae",
    "text_encoder": "base/text_encoder",
    "unet": "base/unet",
    "unet_style": "style/unet",
    "unet_x2": "x2-fine/unet",
    "unet_x4": "x4-fine/unet",
}
"""Names in the package, with where training left them."""


def ship(work: Path) -> None:
    """Copies what was trained into the package, and prints the catalog's `preview` line for the family's space."""
    family.WEIGHTS.mkdir(exist_ok=True)
    for name, source in FILES.items():
        shutil.copyfile(work / f"{source}.safetensors", family.WEIGHTS / f"{name}.safetensors")
    rows = [[round(value, 4) for value in row] for row in preview(work).tolist()]
    print(f"preview = {rows}")


def preview(work: Path) -> torch.Tensor:
    """[5, 3]: RGB in -1…1 of one latent cell is its four channels times the first four rows, plus the last.

    The least squares of latents against the mean colour of the pixels that each cell stands for.
    """
    images = data.pictures(work, "vaetest", 64, 64)["images"]
    latents = parts.Latents(work, torch.device("cpu")).of(images).permute(0, 2, 3, 1).reshape(-1, 4)
    colours = functional.avg_pool2d(parts.to_float(images), 4).permute(0, 2, 3, 1).reshape(-1, 3)
    given = torch.cat([latents, torch.ones(len(latents), 1)], 1)
    found: torch.Tensor = torch.linalg.lstsq(given, colours).solution
    return found
