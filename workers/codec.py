"""How do latents and images become bytes between two stages, and which bytes are taken back?

Latents travel as safetensors: one tensor named `latents`, [channels, height / factor, width / factor], the pipeline's
dtype, times scaling_factor, with metadata that names its space and how far they are denoised. Images travel as RGB PNG
of 8 bits. Whatever comes back is checked for all of this, so that a stage never runs on bytes that mean something else.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

from farm.errors import BadBlob, StageFailed
from farm.stage import Size

if TYPE_CHECKING:
    import torch
    from PIL import Image

FORMAT = "latent-farm/1"
TENSOR = "latents"
MAX_HEADER_BYTES = 65536
"""Largest safetensors header that is read; ours has about 200 bytes."""
MAX_ABS = 1000.0
"""Largest value in latents. Trained VAEs give values within about ±30; what is far beyond is damage, not a picture."""
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""Pipeline dtypes with safetensors' name and the bytes per element."""


def encode_latents(
    latents: torch.Tensor, space: str, channels: int, factor: int, dtype: str, denoised: float = 1.0
) -> bytes:
    """The bytes of one member's latents, of whose schedule the share `denoised` was run.

    Raises:
        StageFailed: (`bad_output`, `nan_output`) the tensor is not what the space says.
    """
    import torch
    from safetensors.torch import save

    if latents.ndim != 3 or latents.shape[0] != channels or latents.dtype != getattr(torch, dtype):
        found = f"{tuple(latents.shape)} {str(latents.dtype).removeprefix('torch.')}"
        raise StageFailed(f"latents are [{channels}, height, width] {dtype} here, not {found}", code="bad_output")
    if not bool(torch.isfinite(latents).all()):
        raise StageFailed(code="nan_output")
    if bool((latents.abs() > MAX_ABS).any()):
        raise StageFailed(f"latents go beyond ±{MAX_ABS:.0f}", code="bad_output")
    metadata = {
        "space": space, "factor": str(factor), "scaled": "true", "denoised": repr(denoised), "format": FORMAT,
    }  # fmt: skip
    return bytes(save({TENSOR: latents.cpu().contiguous()}, metadata=metadata))


def decode_latents(
    data: bytes, space: str, shape: tuple[int, int, int], dtype: str, denoised: float = 1.0
) -> torch.Tensor:
    """The latents [channels, height, width] that `data` holds.

    Raises:
        BadBlob: `data` is anything else than latents of this space, shape and dtype, so far denoised, all finite.
    """
    import torch

    start = _checked_header(data, space, shape, dtype, denoised)
    # A copy: a tensor over immutable bytes would be undefined behaviour as soon as somebody writes to it.
    latents = torch.frombuffer(bytearray(data[start:]), dtype=getattr(torch, dtype)).reshape(shape)
    if not bool((latents.abs() <= MAX_ABS).all()):
        raise BadBlob(f"the latents hold NaN, or values beyond ±{MAX_ABS:.0f}")
    return latents


def _checked_header(data: bytes, space: str, shape: tuple[int, int, int], dtype: str, denoised: float) -> int:
    """Where the tensor's bytes begin, once the header is found to be the one that belongs here.

    safetensors itself takes other names, repeated keys, zero dimensions and any dtype; so the header is read here.
    """
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise BadBlob("the blob is not a safetensors file, or its header is too long")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError):
        raise BadBlob("the header of the latents cannot be read") from None
    if not isinstance(header, dict) or set(header) != {"__metadata__", TENSOR}:
        raise BadBlob(f"latents are one tensor named {TENSOR!r} with metadata")
    name, width = DTYPES[dtype]
    size = math.prod(shape) * width
    if min(shape) < 1 or header[TENSOR] != {"dtype": name, "shape": list(shape), "data_offsets": [0, size]}:
        raise BadBlob(f"the latents are not {list(shape)} {dtype}")
    metadata = header["__metadata__"]
    if not isinstance(metadata, dict) or set(metadata) != {"space", "factor", "scaled", "denoised", "format"}:
        raise BadBlob("the latents' metadata is not what the farm writes")
    if (metadata["space"], metadata["scaled"], metadata["format"]) != (space, "true", FORMAT):
        raise BadBlob(f"the latents are not scaled latents of the space {space}")
    if metadata["denoised"] != repr(denoised):
        raise BadBlob(f"the latents are not those of a schedule run to {denoised:g}")
    if len(data) != 8 + length + size:
        raise BadBlob("the latents are cut off, or something follows them")
    return 8 + length


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("repeated key")
    return found


def decode_image(data: bytes, size: Size) -> Image.Image:
    """The RGB image that `data` holds.

    Raises:
        BadBlob: `data` is anything else than an RGB PNG of 8 bits and this size.
    """
    from PIL import Image

    # Source: PNG specification, 11.2.2: width, height, bit depth 8, colour type 2 (truecolour) of the IHDR chunk.
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">IIBB", size.width, size.height, 8, 2)
    if not data.startswith(header):
        raise BadBlob(f"the image is not an RGB PNG of {size}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError):
        raise BadBlob("the image's bytes cannot be read") from None


def image_size(data: bytes, max_area: int) -> Size:
    """The size that a PNG says it has.

    Raises:
        BadBlob: it is none, or has more than `max_area` pixels.
    """
    from farm.image import png_size

    size = png_size(data)
    if size is None:
        raise BadBlob("the image is not a PNG")
    if not 0 < size.width * size.height <= max_area:
        raise BadBlob(f"the image is {size}, more than {max_area} pixels")
    return size


def is_black(image: Image.Image) -> bool:
    """Whether every pixel is 0: a picture worth a tag, though black can be what was asked for."""
    return image.getbbox() is None
