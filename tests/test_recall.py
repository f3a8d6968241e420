"""What is taken from what a picture says of how it was made, whoever drew it?"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.catalog import Catalog
from farm.chain import parse_chain
from farm.dataset.encoding import encode
from farm.errors import InvalidJob
from farm.image import to_png
from farm.job import make_job
from farm.recall import recalled
from farm.settings import Settings
from tests.test_job import catalog, here

__all__ = ["catalog", "here"]

A1111 = (
    "a cat, (a dog:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, "
    "Size: 512x768, Model hash: abc, Model: sd15, Denoising strength: 0.5, Hires resize: 1024x1536"
)
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a pear", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}  # fmt: skip
LINKS = [
    [1, 4, 0, 3, 0, "MODEL"], [2, 4, 1, 6, 0, "CLIP"], [3, 4, 1, 7, 0, "CLIP"], [4, 6, 0, 3, 1, "CONDITIONING"],
    [5, 7, 0, 3, 2, "CONDITIONING"], [6, 5, 0, 3, 3, "LATENT"], [7, 3, 0, 8, 0, "LATENT"], [8, 4, 2, 8, 1, "VAE"],
    [9, 8, 0, 9, 0, "IMAGE"],
]  # fmt: skip


def png(**told: str) -> bytes:
    """A small PNG that says so."""
    info, out = PngInfo(), BytesIO()
    for name, text in told.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def test_a1111_is_read() -> None:
    found = recalled(png(parameters=A1111))
    assert found.source == "AUTOMATIC1111"
    assert found.chain == {
        "prompt": "a cat, (a dog:1.2)", "negative_prompt": "blurry", "seed": 123,
        "stages": [
            {
                "kind": "text2img", "num_inference_steps": 20, "guidance_scale": 7.0, "width": 512, "height": 768,
                "scheduler": "DPM++ 2M Karras",
            }
        ],
    }  # fmt: skip
    assert found.notes == ["drawn with the checkpoint sd15", "Hires resize: 1024x1536"]


def test_comfyui_is_read() -> None:
    found = recalled(png(prompt=json.dumps(COMFY), workflow=json.dumps({"links": LINKS})))
    assert found.source == "ComfyUI"
    assert (found.chain["prompt"], found.chain["negative_prompt"], found.chain["seed"]) == ("a pear", "bad", 5)
    (stage,) = found.chain["stages"]
    assert stage == {
        "kind": "text2img", "num_inference_steps": 20, "guidance_scale": 8.0, "width": 512, "height": 640,
        "scheduler": "DPMSolverMultistepScheduler", "scheduler_options": {"use_karras_sigmas": True},
    }  # fmt: skip
    assert found.notes == ["stage 1 was drawn with the checkpoint sd15.safetensors"]


def graph(**nodes: Any) -> bytes:
    """A picture of ComfyUI's that an API client had drawn: `prompt` alone, with nodes changed."""
    return png(prompt=json.dumps({**COMFY, **{name.lstrip("n"): node for name, node in nodes.items()}}))


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_a_graph_is_read_without_its_workflow() -> None:
    assert recalled(graph()) == recalled(png(prompt=json.dumps(COMFY), workflow=json.dumps({"links": LINKS})))


@pytest.mark.parametrize("before", ["\ufeff", "\n  ", "\ufeff\r\n\t"])
def test_a_graph_as_an_editor_saves_it_is_read(before: str) -> None:
    assert recalled(f"{before}{json.dumps(COMFY)}\n".encode()) == recalled(graph())


def test_a_graph_of_one_sampler_is_read_with_all_of_it() -> None:
    # Given a graph of one stage with FreeU, a text encoder that is cut short and a ControlNet
    followed = {name: [on, 0] for name, on in (("positive", "6"), ("negative", "7"), ("control_net", "23"))}
    data = graph(
        n3=node(
            "KSampler", **{**COMFY["3"]["inputs"], "model": ["20", 0], "positive": ["22", 0], "negative": ["22", 1]}
        ),
        n6=node("CLIPTextEncode", text="a pear", clip=["21", 0]),
        n7=node("CLIPTextEncode", text="bad", clip=["21", 0]),
        n8=node("VAEDecode", samples=["3", 0], vae=["24", 0]),
        n20=node("FreeU", model=["4", 0], b1=1.1, b2=1.2, s1=0.9, s2=0.2),
        n21=node("CLIPSetLastLayer", clip=["4", 1], stop_at_clip_layer=-2),
        n22=node("ControlNetApplyAdvanced", **followed, image=["25", 0], strength=1, start_percent=0, end_percent=1),
        n23=node("ControlNetLoader", control_net_name="pose.safetensors"),
        n24=node("VAELoader", vae_name="soft.safetensors"), n25=node("LoadImage", image="pose.png"),
    )  # fmt: skip
    found = recalled(data)
    # Then what a stage takes of it is the stage's, and the rest is told
    (stage,) = found.chain["stages"]
    assert (stage["freeu"], stage["clip_skip"]) == ({"s1": 0.9, "s2": 0.2, "b1": 1.1, "b2": 1.2}, 1)
    assert found.notes == [
        "stage 1 was drawn with the checkpoint sd15.safetensors", "stage 1 is without the ControlNet pose.safetensors",
        "stage 1 is without the vae soft.safetensors",
    ]  # fmt: skip


def test_a_graph_of_one_sampler_that_no_stage_could_be_is_read_with_less() -> None:
    found = recalled(graph(n3=node("KSampler", **{**COMFY["3"]["inputs"], "steps": 900})))
    assert "num_inference_steps" not in found.chain["stages"][0]
    assert "steps 900 is more than 150" in found.notes


def test_a_graph_is_followed_to_what_it_is_linked_to() -> None:
    # Given a prompt and a seed that other nodes hold, two encoders behind a node that joins them, and a LoRA
    sampler = node(
        "KSamplerAdvanced",
        **{**COMFY["3"]["inputs"], "noise_seed": ["20", 0], "model": ["21", 0], "positive": ["22", 0]},
    )
    del sampler["inputs"]["seed"]
    found = recalled(
        graph(
            n3=sampler, n6=node("CLIPTextEncode", text=["23", 0], clip=["21", 1]), n20=node("PrimitiveInt", value=77),
            n21=node("LoraLoader", lora_name="soft.safetensors", strength_model=0.8, model=["4", 0], clip=["4", 1]),
            n22=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["24", 0]),
            n23=node("PrimitiveString", value=["25", 0]), n24=node("CLIPTextEncode", text="on a table", clip=["4", 1]),
            n25=node("String Literal", string="a linked pear"),
        )
    )  # fmt: skip
    # Then
    assert (found.chain["prompt"], found.chain["negative_prompt"]) == ("a linked pear, on a table", "bad")
    assert found.chain["seed"] == 77
    assert found.notes == [
        "without the LoRA soft.safetensors (0.8): name one of the catalog's in loras",
        "drawn with the checkpoint sd15.safetensors",
    ]
    assert found.loras == [("soft.safetensors", 0.8)]


def test_a_graph_whose_settings_stand_in_nodes_of_their_own_is_read() -> None:
    # Given a graph as those of Flux are, and a second sampler that refines what the first has drawn
    found = recalled(
        png(
            prompt=json.dumps({
                "1": node(
                    "SamplerCustomAdvanced", noise=["2", 0], guider=["3", 0], sampler=["4", 0], sigmas=["5", 0],
                    latent_image=["6", 0],
                ),
                "2": node("RandomNoise", noise_seed=2**63),
                "3": node("BasicGuider", model=["7", 0], conditioning=["8", 0]),
                "4": node("KSamplerSelect", sampler_name="euler"),
                "5": node("BasicScheduler", scheduler="simple", steps=24, denoise=1, model=["7", 0]),
                "6": node("EmptySD3LatentImage", width=1024, height=768),
                "7": node("UNETLoader", unet_name="flux1-dev.safetensors"),
                "8": node("FluxGuidance", guidance=3.5, conditioning=["9", 0]),
                "9": node("CLIPTextEncode", text="an owl", clip=["10", 0]),
                "11": node(
                    "KSampler", seed=1, steps=3, cfg=2, sampler_name="heun", scheduler="normal", positive=["9", 0],
                    negative=["9", 0], latent_image=["1", 0], model=["7", 0],
                ),
            })
        )
    )  # fmt: skip
    # Then it is the first sampler's, and what a stage cannot take is said
    assert found.chain == {
        "prompt": "an owl",
        "stages": [{"kind": "text2img", "num_inference_steps": 24, "width": 1024, "height": 768, "scheduler": "Euler"}],
    }
    assert found.notes == [
        f"the seed {2**63} is none of 0 to {2**53 - 1}", "drawn with the checkpoint flux1-dev.safetensors",
        "guidance 3.5 of a distilled checkpoint", "the first of 2 samplers",
    ]  # fmt: skip


def test_what_nodes_did_that_are_not_read_is_told() -> None:
    # Given nodes of extensions between the checkpoint, the encoders and the sampler, one of them twice, one without
    # anything to tell, and one that has nothing to do with how it is drawn
    data = graph(
        n3=node("KSampler", **{**COMFY["3"]["inputs"], "model": ["20", 0], "positive": ["22", 0]}),
        n8=node("Sharpen (extra)", image=["3", 0], amount=1),
        n20=node("IPAdapterAdvanced", model=["21", 0], weight=0.7, image=["9", 0]),
        n21=node("IPAdapterAdvanced", model=["23", 0], weight=0.2, image=["9", 0]), n9=node("LoadImage", image="a.png"),
        n22=node("ConditioningSetArea", conditioning=["6", 0], width=64, height=64, x=0, y=0, strength=1),
        n23=node("Reroute", model=["4", 0]),
    )  # fmt: skip
    # Then those whose work is missing are named
    notes = recalled(data).notes
    assert "without what these nodes did: IPAdapterAdvanced, ConditioningSetArea" in notes


def test_a_graph_that_goes_in_circles_ends() -> None:
    found = recalled(graph(n6=node("CLIPTextEncode", text=["6", 0], clip=["4", 1])))
    assert found.chain["prompt"] == ""
    assert "what it was told to draw could not be found" in found.notes


def test_what_only_a1111_reads_in_a_prompt_is_told() -> None:
    found = recalled(
        png(parameters=A1111.replace("(a dog", "<lora:foo:0.8>, (a dog").replace("Steps: 20", "Steps: 900"))
    )
    assert found.chain["prompt"] == "a cat, (a dog:1.2)"
    assert "without the LoRA foo (0.8): name one of the catalog's in loras" in found.notes
    assert found.loras == [("foo", 0.8)]
    assert "steps 900 is more than 150" in found.notes


@pytest.mark.parametrize(
    ("text", "weight"),
    [("<lora:foo>", 1), ("<lora:foo:0.8>", 0.8), ("<lora:foo:0.5:0.25>", 0.25), ("<lora:foo:te=1:unet=0.5>", 0.5),
     ("<lora:foo:much>", 1), ("<lyco:foo:-2>", -2)],
)  # fmt: skip
def test_a_lora_has_a_weight(text: str, weight: float) -> None:
    assert recalled(png(parameters=A1111.replace("(a dog", f"{text}, (a dog"))).loras == [("foo", weight)]


def test_what_is_not_known_here_is_told() -> None:
    text = (
        A1111.replace("DPM++ 2M Karras", "Restart").replace("Steps: 20", "Steps: 900").replace("512x768", "0x99999999")
    )
    found = recalled(png(parameters=text))
    assert "the sampler Restart is not known here" in found.notes
    assert set(found.chain["stages"][0]) == {"kind", "guidance_scale"}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no picture", png(), png(parameters=""), png(prompt="{", workflow="{}"), png(prompt="[]", workflow="[]"),
        png(parameters="\x01" * 9), png(**{"latent-farm": "{}"}), png(**{"latent-farm": '{"recipes": []}'}),
        png(**{"latent-farm": '{"recipes": [{"kind": 1}]}'}),
        png(prompt=json.dumps({str(n): {"class_type": "KSampler", "inputs": {}} for n in range(999)}), workflow="{}"),
        png(prompt="[" * 9999, workflow="{}"),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_says_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidJob) as info:
        recalled(data)
    assert info.value.code == "bad_file"


@pytest.mark.parametrize(
    "written",
    [
        {"negative_prompt": "red", "stages": [{"kind": "text2img", "num_inference_steps": 3}]},
        {"stages": [{"kind": "text2img"}, {"kind": "img2img", "strength": 0.5, "prompt": "y"}]},
        {"stages": [{"kind": "text2img", "seed": 9}, {"kind": "img2img", "seed": 4, "strength": 0.9}]},
        {"stages": [{"kind": "text2img", "scheduler": "DDIMScheduler", "eta": 0.5, "width": 128, "height": 96}]},
        {
            "stages": [
                {"kind": "text2img", "freeu": {}},
                {"kind": "upscale_latent"},
                {"kind": "upscale", "noise_level": 7},
            ]
        },
    ],
    ids=range(5),
)
def test_a_picture_of_the_farm_gives_the_same_recipes(
    catalog: Catalog, here: Settings, written: dict[str, Any]
) -> None:
    # Given a result of a chain
    job = make_job(parse_chain({"prompt": "a plum", "seed": 77, **written}), catalog, here)
    data = to_png(Image.new("RGB", (8, 8)), {"recipes": list(job.recipes)})
    # When it is read, or what a dataset makes of it, Then what it says makes the same
    image = Image.new("RGB", (8, 8))
    for picture in (encode(data, image, "jpg", 50), encode(data, image, "webp", 50), data):
        found = recalled(picture)
        assert (found.source, found.notes) == ("latent-farm", [])
        again = make_job(parse_chain(found.chain), catalog, here)
        assert again.recipes == job.recipes
    # And no more is said than need be
    assert "eta" not in found.chain["stages"][0] or found.chain["stages"][0]["eta"] == 0.5
