"""What does a picture look like while it is still being made?

At a step the latents as they are, and the model's estimate of the finished ones, are projected to colours by the matrix
that the catalog has for their space (`Space.preview`), and laid over each other half and half: the latents alone are
noise for most of the steps, the estimate alone is a picture from the first on, in glaring colours. The device has a
few small operations and one small copy of that; waiting for the copy, scaling, WebP and the ledger are for a thread
beside the stage. One is some 10 KB in the ledger's append-only file, so none is made where nobody looks
(`Ledger.watch`), which the stage's beats tell. What goes wrong here ends the pictures of this call, never the call. No
random number is drawn and no tensor of the stage is written, so pixels stay as they are.

`python -m workers.preview CHECKPOINT` fits a matrix for a space that has none, on the checkpoint's own VAE.
"""

from __future__ import annotations

import base64
import sys
import threading
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import structlog

from farm.records import Claim

if TYPE_CHECKING:
    from PIL.Image import Image

    from farm.ledger import Ledger

SIDE = 256
"""Longest side of a picture, pixels."""
MAX_BYTES = 20 * 1024
"""Largest picture."""
QUALITIES = (75, 50, 25, 5)
"""WebP's qualities, in the order tried; a picture of `SIDE` in noise alone takes some 12 KB of the last."""
Rows = Sequence[Sequence[float]]
"""A projection, [channels + 1, 3]: a cell's RGB in -1…1 is its channels times the rows, plus the last row."""
_log = structlog.get_logger(__name__)


class Screen:
    """Where one pipeline call shows its members' pictures, each at most every `pause_s` seconds."""

    def __init__(self, ledger: Ledger, claims: Sequence[Claim], rows: Rows, pause_s: float) -> None:
        self._ledger, self._claims, self._rows, self._pause_s = ledger, claims, rows, pause_s
        self._due: dict[int, float] = {}
        self._sending: threading.Thread | None = None
        self._off = False
        self.watched = False
        """Whether somebody looks, as the last beat said: for nobody nothing is drawn."""

    def show(self, seen: Callable[[], Any], row: int = 0) -> None:
        """Shows the members from `row` on where a picture is due; only then is `seen` called, which gives `views`."""
        now = time.monotonic()
        if self._off or not self.watched or now < self._due.get(row, now):
            return
        if self._sending is not None and self._sending.is_alive():
            return
        self._due[row] = now + self._pause_s
        try:
            taken = colours(seen(), self._rows)
            self._sending = threading.Thread(target=self._send, args=(taken, row), name="preview", daemon=True)
            self._sending.start()
        except Exception as error:  # noqa: BLE001 — a device or a system without room for it; the stage goes on
            self._broken(error)

    def _send(self, taken: Callable[[], Any], row: int) -> None:
        from PIL.Image import fromarray

        try:
            pictures = [base64.b64encode(webp(scaled(fromarray(pixels)))).decode() for pixels in taken()]
            claims = self._claims[row : row + len(pictures)]
            self._ledger.show(list(zip(claims, pictures, strict=True)))
        except Exception as error:  # noqa: BLE001 — a server is away, or the picture is none; the stage goes on
            self._broken(error)
        # From when the picture is there: however long its way was, the next one is not sooner.
        self._due[row] = time.monotonic() + self._pause_s

    def _broken(self, error: Exception) -> None:
        self._off = True
        _log.info("no_preview", queue=self._claims[0].queue, error=type(error).__name__)


def views(scheduler: Any, made: Any, timestep: Any, sample: Any) -> Any:
    """[2, members, channels, height, width]: the latents `sample`, and what they will be as the model sees it now.

    `made` is what the model made of them; both are [members, channels, height, width].

    Source: DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 15; v: Salimans and Ho 2022, arXiv:2202.00512, appendix D.
    """
    import torch

    made = made[:, : sample.shape[1]].float()
    levels = scheduler.alphas_cumprod.to(sample.device)
    # Some schedulers work between two timesteps; a picture need not be that exact.
    level = levels[torch.as_tensor(timestep, device=sample.device).round().long().clamp(0, len(levels) - 1)]
    signal, noise = level.sqrt(), (1 - level).sqrt()
    sample = sample.float()
    if float(scheduler.init_noise_sigma) > 1:
        sample = sample * signal  # these leave the picture as it is and add noise, the others blend
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        made = (sample - noise * made) / signal
    elif kind == "v_prediction":
        made = signal * sample - noise * made
    return torch.stack([sample, made])


def colours(latents: Any, rows: Rows) -> Callable[[], Any]:
    """Begins to project `latents` [views, members, channels, height, width]; what it gives waits for the pictures.

    They are uint8 [members, height, width, 3], the mean of all views.
    """
    import torch

    with torch.no_grad():
        matrix = torch.tensor(rows, device=latents.device)
        found = torch.einsum("vbchw,cr->vbrhw", latents.float(), matrix[:-1]) + matrix[-1][:, None, None]
        found = found.nan_to_num().clamp(-1, 1).mean(0)
        if (times := -(-max(found.shape[2:]) // SIDE)) > 1:
            found = torch.nn.functional.avg_pool2d(found, times, ceil_mode=True)
        pixels = (found * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        if pixels.device.type != "cuda":
            return pixels.contiguous().cpu().numpy
        # Behind what the device has to do already, so that nobody waits for it here.
        host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(pixels, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(pixels.device))  # the current device's would be another's

    def waited() -> Any:
        copied.synchronize()
        return host.numpy()

    return waited


def picture(latents: Any, rows: Rows) -> Image:
    """The picture, at `SIDE`, of finished latents [channels, height, width]."""
    from PIL.Image import fromarray

    return scaled(fromarray(colours(latents[None, None], rows)()[0]))


def scaled(picture: Image) -> Image:
    """An RGB picture with `SIDE` as its longest side."""
    from PIL.Image import Resampling

    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Resampling.BICUBIC)


def webp(picture: Image) -> bytes:
    """A WebP of an RGB picture of at most `SIDE`, of at most `MAX_BYTES`."""
    for quality in QUALITIES:
        out = BytesIO()
        picture.save(out, "WEBP", quality=quality, method=2)
        if out.tell() <= MAX_BYTES:
            break
    return out.getvalue()


def fit(vae: Any, count: int = 48) -> list[list[float]]:
    """The projection of a VAE's latents, [channels + 1, 3]: least squares against the mean colour of a cell's pixels.

    The pictures are soft clouds of random colours, some with grain: all colours in all surroundings, and no data set.
    """
    import torch
    from torch.nn import functional

    draw = torch.Generator("cpu").manual_seed(0)
    side, factor = 128, 2 ** (len(vae.config.block_out_channels) - 1)
    given, wanted = [], []
    for index in range(count):
        coarse = torch.rand(1, 3, *[2 + index % 9] * 2, generator=draw) * 3 - 1.5
        picture = functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
        grain = 0.1 * (index % 4) * torch.randn(picture.shape, generator=draw)
        picture = (picture + grain).clamp(-1, 1)
        with torch.no_grad():
            latents = vae.encode(picture.to(vae.device, vae.dtype)).latent_dist.mean.float().cpu()
        given.append((latents * vae.config.scaling_factor).permute(0, 2, 3, 1).reshape(-1, latents.shape[1]))
        wanted.append(functional.avg_pool2d(picture, factor).permute(0, 2, 3, 1).reshape(-1, 3))
    cells = torch.cat(given)
    found = torch.linalg.lstsq(torch.cat([cells, torch.ones(len(cells), 1)], 1), torch.cat(wanted)).solution
    return [[round(value, 4) for value in row] for row in found.tolist()]


def main(name: str) -> None:
    """Prints the line of the catalog that gives the space of the checkpoint `name` its projection."""
    from diffusers import AutoencoderKL

    from farm.catalog import Catalog
    from farm.settings import Settings
    from workers import pipelines

    catalog = Catalog.load(Settings.load())
    files = pipelines.files_of(catalog, catalog.checkpoints[name])
    vae = AutoencoderKL.from_pretrained(
        files.path, subfolder="vae", variant=files.variant, local_files_only=True, use_safetensors=True
    )
    print(f"preview = {fit(vae)}  # of [spaces.{files.space}]")


if __name__ == "__main__":
    main(sys.argv[1])
