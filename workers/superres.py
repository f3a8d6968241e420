"""Which network do the tensors of a super-resolution file make, and how does it enlarge an image?

Two architectures are known, each in the field's own names of tensors: RRDB (ESRGAN, Real-ESRGAN x4plus; the names of
2018's first release and those of today) and the compact one (Real-ESRGAN animevideov3, general-x4v3).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.errors import StageFailed
from farm.stage import Report, Size, Source
from workers import tiles
from workers.pipelines import device_errors

if TYPE_CHECKING:
    from PIL.Image import Image

    from workers.pipelines import Files

OVERLAP = 16
"""Pixels of the input by which tiles overlap; what lies within them is blended."""


def load(files: Files, device: str) -> Any:
    """The network of `files`, which takes [batch, 3, height, width] in 0…1, on `device`.

    Raises:
        StageFailed: (`bad_checkpoint`) the file is none, or its tensors make no network that is known.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = files.path if files.is_file else next(iter(sorted(files.path.glob("*.safetensors"))), files.path)
    try:
        tensors = _renamed(load_file(path))
        network = _compact(tensors) if "body.0.weight" in tensors else _rrdb(tensors)
        network.load_state_dict(tensors)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise StageFailed(
            f"the checkpoint {files.name}: no ESRGAN network that is known ({type(error).__name__})",
            code="bad_checkpoint",
            hint="it must be a safetensors file of an RRDB or compact network",
        ) from error
    with device_errors():
        return network.eval().to(device, getattr(torch, files.dtype))


def _renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """RRDB tensors by today's names. Source: the two releases of xinntao/ESRGAN."""
    if "model.0.weight" not in tensors:
        return tensors
    blocks = max(int(found[1]) for name in tensors if (found := re.match(r"model\.1\.sub\.(\d+)\.RDB", name)))
    last = sorted(int(found[1]) for name in tensors if (found := re.fullmatch(r"model\.(\d+)\.weight", name)))
    names = {
        "model.0": "conv_first",
        f"model.1.sub.{blocks + 1}": "conv_body",
        **dict(zip((f"model.{index}" for index in last[1:-2]), ("conv_up1", "conv_up2"), strict=False)),
        f"model.{last[-2]}": "conv_hr",
        f"model.{last[-1]}": "conv_last",
    }
    renamed = {}
    for name, value in tensors.items():
        stem, _, part = name.rpartition(".")
        inner = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", stem)
        renamed[f"body.{inner[1]}.rdb{inner[2]}.conv{inner[3]}.{part}" if inner else f"{names[stem]}.{part}"] = value
    return renamed


def _rrdb(tensors: dict[str, Any]) -> Any:
    """Residual in residual dense blocks. Source: Wang et al. 2018, arXiv:1809.00219, §3.1."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, given = tensors["conv_first.weight"].shape[:2]
    grow = tensors["body.0.rdb1.conv1.weight"].shape[0]
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
    shrink = {3: 1, 12: 2, 48: 4}[given]

    def conv(takes: int, gives: int) -> nn.Conv2d:
        return nn.Conv2d(takes, gives, 3, padding=1)

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for index in range(4):
                self.add_module(f"conv{index + 1}", conv(width + index * grow, grow))
            self.conv5 = conv(width + 4 * grow, width)

        def forward(self, given: Any) -> Any:
            seen = [given]
            for index in range(4):
                made = self.get_submodule(f"conv{index + 1}")(torch.cat(seen, 1))
                seen.append(functional.leaky_relu(made, 0.2))
            return given + 0.2 * self.conv5(torch.cat(seen, 1))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rdb1, self.rdb2, self.rdb3 = Dense(), Dense(), Dense()

        def forward(self, given: Any) -> Any:
            return given + 0.2 * self.rdb3(self.rdb2(self.rdb1(given)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_first = conv(given, width)
            self.body = nn.Sequential(*(Block() for _ in range(blocks)))
            self.conv_body, self.conv_up1, self.conv_up2 = (conv(width, width) for _ in range(3))
            self.conv_hr, self.conv_last = conv(width, width), conv(width, 3)

        def forward(self, image: Any) -> Any:
            image = functional.pixel_unshuffle(image, shrink) if shrink > 1 else image
            made = self.conv_first(image)
            made = made + self.conv_body(self.body(made))
            for up in (self.conv_up1, self.conv_up2):
                made = functional.leaky_relu(up(functional.interpolate(made, scale_factor=2, mode="nearest")), 0.2)
            return self.conv_last(functional.leaky_relu(self.conv_hr(made), 0.2))

    return Network()


def _compact(tensors: dict[str, Any]) -> Any:
    """Convolutions in a row, and the pixels repeated. Source: SRVGGNetCompact of xinntao/Real-ESRGAN."""
    from torch import nn
    from torch.nn import functional

    layers: list[nn.Module] = []
    for index in range(1 + max(int(name.split(".")[1]) for name in tensors)):
        shape = tensors[f"body.{index}.weight"].shape
        layers.append(nn.Conv2d(shape[1], shape[0], 3, padding=1) if len(shape) == 4 else nn.PReLU(shape[0]))
    factor = round((tensors[f"body.{len(layers) - 1}.weight"].shape[0] / 3) ** 0.5)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*layers)

        def forward(self, image: Any) -> Any:
            made = functional.pixel_shuffle(self.body(image), factor)
            return made + functional.interpolate(image, scale_factor=factor, mode="nearest")

    return Network()


def enlarge(network: Any, image: Image, size: Size, tile: int | None, report: Report) -> Image:
    """`image` at `size`, as a PIL RGB image.

    Raises:
        StageFailed: (`nan_output`, `bad_output`) the network gives no picture of this size.
    """
    import numpy as np
    from PIL import Image as Pil

    remedy = "" if tile else "; working in tiles needs less memory"
    report.phase("encode")
    given = np.asarray(image, np.float32) / 255.0
    report.phase("step")

    def piece(_index: int, _count: int, box: tiles.Box) -> Any:
        report.phase("tile")
        left, top, right, bottom = box
        return _called(network, given[top:bottom, left:right])

    with device_errors(f"{size} does not fit into the device's memory{remedy}"):
        made = (
            _called(network, given)
            if tile is None
            else tiles.blended(Size(*image.size), size.width // image.width, tile, OVERLAP, piece)
        )
    report.step(1, 1)
    if made.shape[:2] != (size.height, size.width):
        raise StageFailed(f"an image of {Size(made.shape[1], made.shape[0])}, not {size}", code="bad_output")
    return Pil.fromarray((made.clip(0, 1) * 255).round().astype(np.uint8))


def _called(network: Any, given: Any) -> Any:
    """What `network` makes of an array [height, width, 3] in 0…1."""
    import torch

    with torch.inference_mode():
        weight = next(network.parameters())
        made = network(torch.from_numpy(given).permute(2, 0, 1)[None].to(weight.device, weight.dtype))[0]
        if not bool(made.isfinite().all()):
            raise StageFailed(code="nan_output", hint="set the checkpoint's dtype to float32")
        return made.float().permute(1, 2, 0).cpu().numpy()


def program(given: str, size: Size, factor: int, tile: int | None, source: Source) -> list[str]:
    """The lines of a plain program, with spandrel."""
    path = Path(source.path)
    file = path if path.is_file() else next(iter(sorted(path.glob("*.safetensors"))), path)
    lines = [
        "import numpy as np",
        "from spandrel import ModelLoader  # pip install spandrel torchvision",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f"network = ModelLoader().load_from_file({str(file)!r}).eval().model.to(device, {source.dtype})",
        "def enlarged(image):",
        "    given = torch.from_numpy(np.asarray(image, np.float32) / 255.0).permute(2, 0, 1)[None]",
        "    with torch.inference_mode():",
        f"        return network(given.to(device, {source.dtype}))[0].float().cpu().permute(1, 2, 0).numpy()",
    ]
    if tile is None:
        lines.append(f"made = enlarged({given})")
    else:
        lines += tiles.program(given, size, factor, tile, OVERLAP, ["piece = enlarged(part)"])
    return [*lines, "out = Image.fromarray((made.clip(0, 1) * 255).round().astype(np.uint8))"]
