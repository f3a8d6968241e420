"""What are the parts of the demo family, and how do its checkpoints get their shape?

`python -m workers.demo.family NAME FOLDER` writes one checkpoint in the hub's layout, from the weights that ship with
the package; the same call gives the same bytes. All members share tokenizer, VAE and text encoder, and so one latent
space.

==========  ==========================================================================================================
demo        64 px, latents of 4 channels, 4 px per cell: text to image, and what redraws images
demo-style  the same with another denoiser: fine-tuned on a second style
demo-x2     latent upscaler in the same space
demo-x4     image upscaler
==========  ==========================================================================================================

A part is a diffusers or transformers class with the sizes given here; `workers.demo.train` makes its weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from workers.demo import tiny
from workers.demo.scenes import COLOURS, SHAPES, STYLES
from workers.demo.sprites import OBJECTS

WEIGHTS = Path(__file__).parent / "weights"
TEXT_WIDTH = 128
TEXT_TOKENS = 77
SCALING_FACTOR = 0.08333
"""Of the VAE. Source: `StableDiffusionUpscalePipeline` sets it to this, whatever the VAE says; all members have it."""
_GRAMMAR = "a an the of and on at in with left right top bottom small large background gradient to style"
WORDS = [*_GRAMMAR.split(), *COLOURS, *SHAPES, *STYLES, *OBJECTS]
"""Words with a token of their own; all else is spelled."""
BETAS: dict[str, Any] = {
    # Stable Diffusion's own schedule ends while 7 % of the picture is still there, which fixes its mean brightness:
    # with a plain ground that is most of the picture. Source of these: DDPM, Ho et al. 2020, arXiv:2006.11239, §4; of
    # the fault: Lin et al. 2023, arXiv:2305.08891. All schedulers know it, unlike that paper's own remedy.
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}

SAMPLE: dict[str, Any] = {**BETAS, "prediction_type": "sample", "timestep_spacing": "trailing"}
"""The image upscaler's: its denoiser names the picture itself. What it is given decides nearly all of that, while with
v-prediction a small network spends itself on naming the noise. Trailing timesteps begin in pure noise however few they
are (arXiv:2305.08891, §3.3)."""
LOW_RES: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
"""How the upscaler's input is noised. Source: low_res_scheduler of stabilityai/stable-diffusion-x4-upscaler."""
EULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
    "timestep_spacing": "trailing",
}
"""The latent upscaler's. Source: scheduler_config.json of stabilityai/sd-x2-latent-upscaler, but for the spacing."""

MEMBERS = {"demo": "unet", "demo-style": "unet_style", "demo-x2": "unet_x2", "demo-x4": "unet_x4"}
"""Names of the family with the file of their denoiser."""


def build(name: str, folder: Path) -> None:
    """Writes the checkpoint `name` of the family into `folder`.

    Raises:
        KeyError: the family has no such member.
        OSError: its weights are not there: this build of the package came without them.
    """
    import torch
    from safetensors.torch import load_file

    def filled(model: Any, file: str) -> Any:
        model.load_state_dict(load_file(WEIGHTS / f"{file}.safetensors"))
        return model

    file = MEMBERS[name]
    make = {"demo-x2": unet_x2, "demo-x4": unet_x4}.get(name, unet)
    with torch.random.fork_rng(devices=[]):
        parts = {
            "vae": filled(vae().half(), "vae"),
            "text_encoder": filled(text_encoder().half(), "text_encoder"),
            "tokenizer": tokenizer(),
            "unet": filled(make().half(), file),
        }
        _pipeline(name, parts).save_pretrained(folder, safe_serialization=True)


def _pipeline(name: str, parts: dict[str, Any]) -> Any:
    import diffusers
    from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

    denoise = DDIMScheduler(**(SAMPLE if name == "demo-x4" else BETAS), set_alpha_to_one=False, steps_offset=1)
    if name == "demo-x2":
        return diffusers.StableDiffusionLatentUpscalePipeline(**parts, scheduler=EulerDiscreteScheduler(**EULER))
    if name == "demo-x4":
        return diffusers.StableDiffusionUpscalePipeline(
            **parts, scheduler=denoise, low_res_scheduler=DDPMScheduler(**LOW_RES)
        )
    return diffusers.StableDiffusionPipeline(
        **parts, scheduler=denoise, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def vae() -> Any:
    """The autoencoder: pictures [batch, 3, height, width] in -1…1 to latents [batch, 4, height/4, width/4]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=SCALING_FACTOR,
        # Its attention is global: for the 512 px of a whole chain it would cost more than all the rest.
        mid_block_add_attention=False,
        sample_size=64,
    )


def text_encoder() -> Any:
    """A CLIP text model: tokens [batch, 77] to states [batch, 77, TEXT_WIDTH]."""
    from transformers import CLIPTextConfig, CLIPTextModel

    size = tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(size),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=size.bos_token_id,
            eos_token_id=size.eos_token_id,
            pad_token_id=size.pad_token_id,
        )
    )


def tokenizer() -> Any:
    """CLIP's tokenizer with a vocabulary of its own: `WORDS`, and bytes for all else."""
    return tiny.tokenizer_of(WORDS)


def unet() -> Any:
    """The denoiser of text to image, in latents of 16×16 cells."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        # Prompts act on 8×8 and 4×4 cells; attention at 16×16 makes a step on a CPU half as long again.
        block_out_channels=(48, 96, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers means the number of heads
    )


def unet_x2() -> Any:
    """The latent upscaler's denoiser."""
    return tiny.unet_x2(TEXT_WIDTH, layers_per_block=2, attention_head_dim=16, conv_in_kernel=3)


def unet_x4() -> Any:
    """The image upscaler's denoiser.

    7 channels in: noise and RGB; the noise level is a class. Its blocks are those of the latent upscaler, which keep
    colours as they are where others normalise them; without attention, so that the prompt has no say.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        block_out_channels=(32, 32, 64),
        down_block_types=("KDownBlock2D",) * 3,
        mid_block_type=None,
        up_block_types=("KUpBlock2D",) * 3,
        layers_per_block=1,
        act_fn="gelu",
        norm_num_groups=None,
        cross_attention_dim=TEXT_WIDTH,
        conv_out_kernel=1,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1000,
    )


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
