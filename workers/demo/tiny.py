"""What is the smallest checkpoint family that runs through real pipelines, and how is it made?

`python -m workers.demo.tiny NAME FOLDER` writes one checkpoint in the hub's layout: real diffusers and transformers
classes, a real tokenizer, seeded random weights, no download, a second of work. Its pictures are bounded, coloured and
follow prompt and seed, but mean nothing. It is what tests work with; `tests/tiny.toml` is its catalog.

==========  ==========================================================================================================
tiny        64 px, latents of 4 channels, 8 px per cell
tiny-style  the same VAE, so the same latent space, another UNet and text encoder
tiny-other  another VAE: its latents mean nothing to the others
tiny-x2     latent upscaler for the space of `tiny`
tiny-x4     image upscaler with a VAE of its own, 4 px per cell
==========  ==========================================================================================================

Building twice gives the same files, byte for byte.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

SEEDS = {"tiny": 1, "tiny-style": 2, "tiny-other": 3, "tiny-x2": 4, "tiny-x4": 5}
"""Names of the family with the seed of their weights."""
VAE_SEEDS = {"tiny": 11, "tiny-style": 11, "tiny-x2": 11, "tiny-other": 12, "tiny-x4": 13}
"""One seed, one VAE, one latent space."""
TEXT_WIDTH = 32
TEXT_TOKENS = 77
WORDS = """
    a an the of in on at with and over under photo picture painting drawing sketch portrait landscape castle house tree
    forest mountain river sea sky sun moon star cat dog bird fish horse fox flower rose apple boat car train city street
    red green blue yellow orange purple pink black white grey brown gold silver small large old new dark bright detailed
""".split()  # noqa: SIM905 — a list of words is read as one
"""Words with a token of their own; all else is spelled in bytes."""


def build(name: str, folder: Path) -> None:
    """Writes the checkpoint `name` of the family into `folder`.

    Raises:
        KeyError: the family has no such member.
    """
    import torch

    seed, vae_seed = SEEDS[name], VAE_SEEDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(vae_seed)
        vae = _vae_x4() if name == "tiny-x4" else _vae()
        torch.manual_seed(seed)
        parts = {"vae": vae, "text_encoder": _text_encoder(), "tokenizer": tokenizer_of(WORDS)}
        make = {"tiny-x2": _upscale_latent, "tiny-x4": _upscale}.get(name, _base)
        make(parts).save_pretrained(folder, safe_serialization=True)


def _base(parts: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )
    return StableDiffusionPipeline(
        **parts,
        unet=unet,
        scheduler=_scheduler(DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _upscale_latent(parts: dict[str, Any]) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionLatentUpscalePipeline

    unet = unet_x2(TEXT_WIDTH, layers_per_block=1, attention_head_dim=8, conv_in_kernel=1)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="sample"
    )
    return StableDiffusionLatentUpscalePipeline(**parts, unet=unet, scheduler=scheduler)


def unet_x2(text_width: int, **own: Any) -> Any:
    """A latent upscaler's denoiser; `own` are its other sizes. Source: unet/config.json of sd-x2-latent-upscaler.

    The blocks are narrower: a K block needs 32 channels, and the widest must be twice the first. 8 channels in: noise
    and input; 5 out: the pipeline drops the last, a variance; the time condition is 128 for the noise level + the
    pooled text.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=8,
        out_channels=5,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        mid_block_type=None,
        act_fn="gelu",
        norm_num_groups=None,
        cross_attention_dim=text_width,
        conv_out_kernel=1,
        time_cond_proj_dim=128 + text_width,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
        **own,
    )


def _upscale(parts: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel

    # Source: unet/config.json of stabilityai/stable-diffusion-x4-upscaler, with narrower blocks. 7 channels in: noise
    # and RGB; the noise level is a class. It works at the input's full resolution: the first blocks must be thin.
    unet = UNet2DConditionModel(
        in_channels=7,
        block_out_channels=(4, 8, 8, 16),
        down_block_types=(*("DownBlock2D",) * 3, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", *("UpBlock2D",) * 3),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        only_cross_attention=True,
        num_class_embeds=1000,
    )
    return StableDiffusionUpscalePipeline(
        **parts, unet=unet, scheduler=_scheduler(DDIMScheduler), low_res_scheduler=_scheduler(DDPMScheduler)
    )


def _scheduler(cls: Any) -> Any:
    """A scheduler of the class `cls` with Stable Diffusion's betas.

    v-prediction keeps an untrained UNet's pictures bounded: what it predicts is the picture itself where noise is high
    and the noise where it is low, so no weak signal is ever divided by its small share.
    """
    return cls(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )


def _vae_x4() -> Any:
    from diffusers import AutoencoderKL

    # Its mid block's attention is global: for an input of 128 px it would cost more than all the rest.
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.08333,
        mid_block_add_attention=False,
        sample_size=256,
    )


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    vocab, _ = _vocabulary(WORDS)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=vocab["<|startoftext|>"],
            eos_token_id=vocab["<|endoftext|>"],
            pad_token_id=vocab["<|endoftext|>"],
        )
    )


def tokenizer_of(words: Sequence[str]) -> Any:
    """CLIP's tokenizer with one token for each of `words`; all else is spelled in bytes."""
    from transformers import CLIPTokenizer

    vocab, merges = _vocabulary(words)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_TOKENS)


def _vocabulary(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens with their ids, and merges in order: all bytes, alone and at a word's end, and what makes `words` whole.

    Byte-pair encoding, Sennrich et al. 2016, arXiv:1508.07909, to the end: what is met most often is merged, until
    each word is one token. A text is merged in the same order, so its known words are one token each, too.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in dict.fromkeys(words)]
    while pairs := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        tokens.append(left + right)
        spelled = [_merged(pieces, left, right) for pieces in spelled]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _merged(pieces: list[str], left: str, right: str) -> list[str]:
    """`pieces` with each `left` and `right` beside each other as one."""
    found: list[str] = []
    for piece in pieces:
        if found and (found[-1], piece) == (left, right):
            found[-1] += piece
        else:
            found.append(piece)
    return found


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
