"""What does each part of the family learn, and from what?

======= ============================= =============================================================================
part    learns                        by
======= ============================= =============================================================================
vae     pictures ↔ latents            absolute and squared error and a faint pull of latents to zero, all that is left
                                      of the KL term where none are drawn (latent diffusion, Rombach et al. 2022,
                                      arXiv:2112.10752, §3.1)
decoder latents → pictures            the same error, on larger pictures too; the encoder stays, and so the latents do
base    prompt → latents              v-prediction (Salimans and Ho 2022, arXiv:2202.00512) with the prompt dropped now
                                      and then (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598); the
                                      text encoder learns along
style   the same in a second style    going on from base; only the denoiser learns
x2      latents → twice the side      denoising with the preconditioning of Karras et al. 2022, arXiv:2206.00364, table
                                      1, σ_data = 1, as `StableDiffusionLatentUpscalePipeline` undoes it
x4      image → four times the side   denoising beside the image, which is noised by a level that is told (cascaded
                                      diffusion, Ho et al. 2021, arXiv:2106.15282), as `StableDiffusionUpscalePipeline`
x2-fine the same, to the end          going on from x2 and x4 by the error of the picture that the latents decode to:
x4-fine                               the decoder makes much of some errors of latents and little of others
======= ============================= =============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from workers.demo import family
from workers.demo.train import data

LOG_VARIANCE = -20.0
"""Of latents that an image is encoded as: next to nothing."""
DROPPED = 0.1
"""Share of prompts that are dropped. Source: Ho and Salimans 2022, §4."""
DECODED = 0.7
"""Share of pictures that the image upscaler is given as they come out of the decoder."""
SHEET = (
    "a red apple on a blue background",
    "a cat on a green background",
    "a rocket on a black background",
    "a pizza on a purple background",
    "a blue circle on a yellow background",
    "a house on a pink background",
    "a penguin on an orange background",
    "a sunflower on a white background",
    "a small car on a grey background",
    "a star at the top, on a blue background",
    "a ghost on the left, on a purple background",
    "a dog and a balloon on a green background",
    "a green ring on a red background",
    "a castle on a blue to pink gradient",
    "a large frog on a white background",
    "a snowman on a red background",
)
"""Prompts of the sample sheets."""


class Words:
    """Captions as the text encoder takes them; some are dropped."""

    def __init__(self, captions: torch.Tensor) -> None:
        self._tokenizer = family.tokenizer()
        self._tokens = self.of(data.words(captions))
        self._none = self.of([""])[0]

    def of(self, prompts: Sequence[str]) -> torch.Tensor:
        """Tokens [prompts, 77]."""
        asked: Any = self._tokenizer(
            list(prompts), padding="max_length", max_length=family.TEXT_TOKENS, truncation=True, return_tensors="pt"
        )
        tokens: torch.Tensor = asked.input_ids
        return tokens

    def drawn(self, rows: np.ndarray, dice: np.random.Generator, device: torch.device) -> torch.Tensor:
        """The tokens of `rows`, some of them those of no prompt."""
        tokens = self._tokens[torch.from_numpy(rows)].clone()
        tokens[torch.from_numpy(dice.random(len(rows)) < DROPPED)] = self._none
        return tokens.to(device)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Bytes as a pipeline's -1…1."""
    return images.float() / 127.5 - 1


def tiled(images: torch.Tensor, columns: int) -> Image.Image:
    """Pictures [batch, 3, height, width] in -1…1 as one."""
    rows = [torch.cat(list(images[start : start + columns]), 2) for start in range(0, len(images), columns)]
    pixels = ((torch.cat(rows, 1).float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def trained(work: Path, part: str, name: str, model: Any) -> Any:
    """`model` with the weights that training `part` wrote, no more to be changed."""
    model.load_state_dict({key: value.float() for key, value in load_file(work / part / f"{name}.safetensors").items()})
    return model.eval().requires_grad_(False)


def _far(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far pictures are from the wanted ones."""
    return functional.mse_loss(made, wanted) + 0.2 * functional.l1_loss(made, wanted)


class Vae:
    """The autoencoder. Pictures of 64 px, and pieces of larger ones, so that it also knows straight edges."""

    name = "vae"
    learning_rate = 1e-3
    batch = 24

    def __init__(self, work: Path, count: int) -> None:
        self._images = torch.cat(
            [
                data.pictures(work, "vae64", count, 64)["images"],
                data.pictures(work, "vae256", count // 2, 256, crop=64)["images"],
            ]
        )
        self._tests = data.pictures(work, "vaetest", 64, 64)["images"]
        self.model = nn.ModuleDict({"vae": family.vae()})

    def loss(self, dice: np.random.Generator) -> torch.Tensor:
        vae: Any = self.model["vae"]
        given = to_float(self._images[torch.from_numpy(dice.integers(len(self._images), size=self.batch))])
        given = given.to(vae.device)
        found = vae.encode(given).latent_dist
        # A little noise, as what a denoiser gives is never quite right.
        made = vae.decode(found.mean + 0.05 * torch.randn_like(found.mean)).sample
        return _far(made, given) + 5e-5 * found.mean.square().mean()

    def finish(self) -> None:
        """Folds each channel's mean and spread into the convolutions around the latents: they become 0 and 1.

        Latents are multiplied by `SCALING_FACTOR` on their way out, so what the encoder gives is that much wider.
        """
        vae: Any = self.model["vae"]
        images = to_float(self._images[:: max(1, len(self._images) // 1024)]).to(vae.device)
        latents = torch.cat([vae.encode(some).latent_dist.mean for some in images.split(64)])
        mean, width = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * family.SCALING_FACTOR
        gives, takes = vae.quant_conv, vae.post_quant_conv
        takes.bias += takes.weight[:, :, 0, 0] @ mean
        takes.weight *= width[None, :, None, None]
        channels = len(mean)
        gives.bias[:channels] -= mean
        gives.bias[:channels] /= width
        gives.weight[:channels] /= width[:, None, None, None]
        # Only the mean was learnt; pipelines that draw latents from what an image is encoded as are to get that.
        gives.weight[channels:] = 0
        gives.bias[channels:] = LOG_VARIANCE

    def sheet(self) -> Image.Image:
        """Pictures and what came back of them, alternating rows; prints the PSNR of the round trip."""
        vae: Any = self.model["vae"]
        given = to_float(self._tests).to(vae.device)
        made = vae.decode(vae.encode(given).latent_dist.mean).sample.clamp(-1, 1)
        psnr = 10 * math.log10(4 / functional.mse_loss(made, given).item())
        print(f"round trip {psnr:.2f} dB")
        rows = [picture for start in range(0, 64, 16) for half in (given, made) for picture in half[start : start + 16]]
        return tiled(torch.stack(rows), 16)


class Latents:
    """A trained VAE and what it makes of pictures."""

    def __init__(self, work: Path, device: torch.device, part: str = "decoder") -> None:
        self.vae: Any = trained(work, part, "vae", family.vae()).to(device)
        self._work, self._device = work, device

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of mean 0 and spread 1, of bytes [batch, 3, height, width]."""
        with torch.no_grad():
            mean = self.vae.encode(to_float(images).to(self._device)).latent_dist.mean
        return mean * family.SCALING_FACTOR

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            made: torch.Tensor = self.vae.decode(latents / family.SCALING_FACTOR).sample
        return made

    def kept(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Latents of `images`, made once and kept under `name`."""
        path = self._work / "data" / f"{name}-latents-{len(images)}.safetensors"
        if not path.exists():
            made = torch.cat([self.of(some).half().cpu() for some in images.split(128)])
            save_file({"latents": made}, path)
        return load_file(path)["latents"]

    def again(self, images: torch.Tensor) -> torch.Tensor:
        """`images` as they come back from latents, bytes as well."""
        made = torch.cat([self.decode(self.of(some)).cpu() for some in images.split(128)])
        return ((made.clamp(-1, 1) + 1) * 127.5).round().byte()


class Decoder(Vae):
    """The decoder goes on alone, also on pieces of the largest pictures that a chain makes, and on noisier latents.

    Source of the idea: the fine-tuned decoders of Stable Diffusion, stabilityai/sd-vae-ft-mse.
    """

    name = "decoder"
    learning_rate = 5e-4

    def __init__(self, work: Path, count: int) -> None:
        super().__init__(work, count)
        self._images = torch.cat([self._images, data.pictures(work, "vae512", count // 2, 512, crop=64)["images"]])
        codec = Latents(work, torch.device("cpu"), "vae")
        self._latents, vae = codec.kept("decoder", self._images), codec.vae
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
        self.model = nn.ModuleDict({"vae": vae.train()})

    def loss(self, dice: np.random.Generator) -> torch.Tensor:
        vae: Any = self.model["vae"]
        rows = torch.from_numpy(dice.integers(len(self._images), size=self.batch))
        wanted = to_float(self._images[rows]).to(vae.device)
        latents = self._latents[rows].float().to(vae.device)
        latents = latents + 0.1 * torch.rand(self.batch, 1, 1, 1, device=vae.device) * torch.randn_like(latents)
        return _far(vae.decode(latents / family.SCALING_FACTOR).sample, wanted)

    def finish(self) -> None:
        pass


class Base:
    """Text to latents. With `style`, the second style: the denoiser goes on from the trained one, on that alone."""

    learning_rate = 6e-4
    batch = 64

    def __init__(self, work: Path, count: int, device: torch.device, style: str | None = None) -> None:
        self.name = "style" if style else "base"
        drawn = data.pictures(work, f"{self.name}64", count, 64, style=style)
        self._codec = Latents(work, device)
        self._latents = self._codec.kept(f"{self.name}64", drawn["images"])
        self._words, self._device = Words(drawn["captions"]), device
        self._noise = DDPMScheduler(**family.BETAS)
        self.model = nn.ModuleDict({"unet": family.unet(), "text_encoder": family.text_encoder()})
        if style:
            self.model["unet"] = trained(work, "base", "unet", family.unet()).train().requires_grad_(True)
            self.model["text_encoder"] = trained(work, "base", "text_encoder", family.text_encoder())
            self.learning_rate /= 3
        unet: Any = self.model["unet"]
        unet.to(memory_format=torch.channels_last)

    def loss(self, dice: np.random.Generator) -> torch.Tensor:
        rows = dice.integers(len(self._latents), size=self.batch)
        latents = self._latents[torch.from_numpy(rows)].float().to(self._device)
        states = self.model["text_encoder"](self._words.drawn(rows, dice, self._device))[0]
        noise = torch.randn_like(latents)
        # Low-discrepancy draws: each batch sees all noise levels.
        times = torch.from_numpy(((np.arange(self.batch) + dice.random()) / self.batch * 1000).astype(np.int64))
        times = times.to(self._device)
        noisy = self._noise.add_noise(latents, noise, times)
        wanted = self._noise.get_velocity(latents, noise, times)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return functional.mse_loss(self.model["unet"](noisy, times, states).sample.float(), wanted)

    def finish(self) -> None:
        pass

    def sheet(self) -> Image.Image:
        latents = sample(self.model["unet"], self.model["text_encoder"], self._words, SHEET, 3.0, 20, self._device)
        return tiled(self._codec.decode(latents), 8)


@torch.no_grad()
def sample(
    unet: Any, text: Any, words: Words, prompts: Sequence[str], guidance: float, steps: int, device: torch.device
) -> torch.Tensor:
    """Latents for `prompts`, as `StableDiffusionPipeline` would make them with DDIM."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**family.BETAS, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    states = text(torch.cat([words.of([""] * len(prompts)), words.of(prompts)]).to(device))[0]
    latents = torch.randn((len(prompts), 4, 16, 16), generator=torch.Generator().manual_seed(0)).to(device)
    for time in scheduler.timesteps:
        without, found = unet(torch.cat([latents] * 2), time, states).sample.chunk(2)
        latents = scheduler.step(without + guidance * (found - without), time, latents).prev_sample
    return latents


class Fine:
    """What an upscaler is trained to the end by: the squared error of decoded pictures, and a little of the latents'.

    A step takes several times as long as one that asks for the latents alone, and its error falls much faster.
    """

    def __init__(self, codec: Latents, images: torch.Tensor) -> None:
        self._vae, self._images = codec.vae.requires_grad_(False), images

    def __call__(self, made: torch.Tensor, wanted: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
        pictures = self._vae.decode(made / family.SCALING_FACTOR).sample
        far = functional.mse_loss(pictures, to_float(self._images[picked]).to(pictures.device))
        return far + 0.01 * functional.mse_loss(made, wanted)


def _plain(made: torch.Tensor, wanted: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return functional.mse_loss(made, wanted)


class X2:
    """Latents of 64 px to those of 128 px of the same scene. With `fine`, going on from the trained one."""

    name = "x2"
    learning_rate = 1e-3
    batch = 16

    def __init__(self, work: Path, count: int, device: torch.device, fine: bool = False) -> None:
        drawn = data.pictures(work, "x2", count, 128)
        self._codec = Latents(work, device)
        small = functional.interpolate(drawn["images"].float(), scale_factor=0.5, mode="area").round().byte()
        self._small, self._large = self._codec.kept("x2-64", small), self._codec.kept("x2-128", drawn["images"])
        self._words, self._device = Words(drawn["captions"]), device
        self._text: Any = trained(work, "base", "text_encoder", family.text_encoder()).to(device)
        self.model, self._far = nn.ModuleDict({"unet": family.unet_x2()}), _plain
        if fine:
            self.name, self.batch, self.learning_rate = "x2-fine", 12, self.learning_rate / 2
            self.model["unet"] = trained(work, "x2", "unet", family.unet_x2()).train().requires_grad_(True)
            self._far = Fine(self._codec, drawn["images"])

    def _given(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """The conditions, as the pipeline makes them: states before the last norm, and the pooled text."""
        with torch.no_grad():
            text = self._text(tokens, output_hidden_states=True)
        level = torch.cat([torch.ones(len(tokens), 64), torch.zeros(len(tokens), 64)], 1).to(self._device)
        condition = torch.cat([level, text.pooler_output], 1)
        return {"encoder_hidden_states": text.hidden_states[-1], "timestep_cond": condition}

    def loss(self, dice: np.random.Generator) -> torch.Tensor:
        rows = dice.integers(len(self._small), size=self.batch)
        picked = torch.from_numpy(rows)
        small, large = (some[picked].float().to(self._device) for some in (self._small, self._large))
        # What it will be given is not drawn but made: never quite right.
        small = small + torch.rand(self.batch, 1, 1, 1, device=self._device) * 0.15 * torch.randn_like(small)
        near = functional.interpolate(small, scale_factor=2, mode="nearest")
        # Karras et al. 2022, table 1, have a median of 0.3, for what must be invented. Here nearly all is given, and
        # what the first steps make of that, from noise alone, is what counts.
        sigma = torch.from_numpy(np.exp(dice.normal(0.7, 1.2, self.batch)).clip(0.01, 15)).float().to(self._device)
        wide = sigma[:, None, None, None]
        noisy = large + wide * torch.randn_like(large)
        root = (wide**2 + 1).sqrt()
        unet = self.model["unet"]
        made = unet(
            torch.cat([noisy / root, near], 1),
            sigma.log() / 4,
            **self._given(self._words.drawn(rows, dice, self._device)),
        )
        return self._far(noisy / root**2 + wide / root * made.sample[:, :-1].float(), large, picked)

    def finish(self) -> None:
        pass

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Rows of: the nearest pixel, what was made, the truth."""
        from diffusers import EulerDiscreteScheduler

        scheduler = EulerDiscreteScheduler(**family.EULER)
        scheduler.set_timesteps(1)
        tokens = self._words.of([""] * 8)
        given = self._given(tokens.to(self._device))
        small, large = (some[:8].float().to(self._device) for some in (self._small, self._large))
        near = functional.interpolate(small, scale_factor=2, mode="nearest")
        latents = torch.randn(large.shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
        latents = latents.to(self._device)
        for index, time in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[index]
            scaled = torch.cat([scheduler.scale_model_input(latents, time), near], 1)
            made = self.model["unet"](scaled, sigma.log() / 4, **given).sample[:, :-1]
            made = latents / (sigma**2 + 1) + sigma / (sigma**2 + 1).sqrt() * made
            latents = scheduler.step(made, time, latents).prev_sample
        base = functional.interpolate(self._codec.decode(small), scale_factor=2, mode="nearest")
        return tiled(torch.cat([base, self._codec.decode(latents), self._codec.decode(large)]), 8)


class X4:
    """Pieces of pictures to the latents of four times the side. With `fine`, going on from the trained one."""

    name = "x4"
    learning_rate = 1e-3
    batch = 24

    def __init__(self, work: Path, count: int, device: torch.device, fine: bool = False) -> None:
        wide = data.pictures(work, "x4-512", count, 512, crop=128)
        near = data.pictures(work, "x4-256", count // 2, 256, crop=128)
        images = torch.cat([wide["images"], near["images"]])
        self._codec = Latents(work, device)
        small = functional.interpolate(images.float(), scale_factor=0.25, mode="area").round().byte()
        # What a chain gives it came out of the decoder, with the decoder's faults.
        self._small = torch.stack([small, self._codec.again(small)])
        self._large = self._codec.kept("x4", images)
        self._device = device
        self._states = torch.zeros(1, family.TEXT_TOKENS, family.TEXT_WIDTH, device=device)  # it has no attention
        self._noise = DDPMScheduler(**family.SAMPLE)
        self._low = DDPMScheduler(**family.LOW_RES)
        self.model, self._far = nn.ModuleDict({"unet": family.unet_x4()}), _plain
        if fine:
            self.name, self.batch, self.learning_rate = "x4-fine", 12, self.learning_rate / 2
            self.model["unet"] = trained(work, "x4", "unet", family.unet_x4()).train().requires_grad_(True)
            self._far = Fine(self._codec, images)

    def loss(self, dice: np.random.Generator) -> torch.Tensor:
        rows = dice.integers(len(self._large), size=self.batch)
        picked = torch.from_numpy(rows)
        decoded = torch.from_numpy((dice.random(self.batch) < DECODED).astype(np.int64))
        images = to_float(self._small[decoded, picked]).to(self._device)
        large = self._large[picked].float().to(self._device)
        levels = torch.from_numpy((350 * dice.random(self.batch) ** 3).astype(np.int64)).to(self._device)
        images = self._low.add_noise(images, torch.randn_like(images), levels)
        # Nearly all is given, and what the first steps make of that, from noise alone, is what counts.
        spread = np.sqrt((np.arange(self.batch) + dice.random()) / self.batch)
        times = torch.from_numpy((spread * 1000).astype(np.int64)).to(self._device)
        noisy = self._noise.add_noise(large, torch.randn_like(large), times)
        states = self._states.expand(self.batch, -1, -1)
        made = self.model["unet"](torch.cat([noisy, images], 1), times, states, class_labels=levels).sample
        return self._far(made.float(), large, picked)

    def finish(self) -> None:
        pass

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Rows of: the nearest pixel, what was made, the truth."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(**family.SAMPLE, set_alpha_to_one=False, steps_offset=1)
        scheduler.set_timesteps(1)
        count = 8
        images, large = to_float(self._small[0, :count]).to(self._device), self._large[:count].float().to(self._device)
        levels = torch.zeros(count, dtype=torch.long, device=self._device)
        noised = self._low.add_noise(images, torch.randn_like(images), levels)
        states = self._states.expand(count, -1, -1)
        latents = torch.randn(large.shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        for time in scheduler.timesteps:
            made = self.model["unet"](torch.cat([latents, noised], 1), time, states, class_labels=levels).sample
            latents = scheduler.step(made, time, latents).prev_sample
        base = functional.interpolate(images, scale_factor=4, mode="nearest")
        return tiled(torch.cat([base, self._codec.decode(latents), self._codec.decode(large)]), count)
