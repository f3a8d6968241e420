"""Do other programs read from a picture what made it, whatever its prompt holds?"""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import Generators

from farm.client import Farm
from farm.image import read_recipe, to_png
from farm.label import SOURCE_TYPE, label, parameters
from farm.settings import Settings
from tests.test_cli import record_tiny

HIRES = [
    {"kind": "text2img", "steps": 12, "scheduler": "DPM++ 2M Karras", "guidance_scale": 6.5, "clip_skip": 1},
    {"kind": "img2img", "strength": 0.55, "steps": 20},
    {"kind": "upscale_latent"},
    {"kind": "upscale"},
]


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    found = Farm(Settings(models=tmp_path / "models"))
    record_tiny(found.catalog)
    return found


def recipes(farm: Farm, stages: list[dict[str, Any]], **chain: Any) -> list[dict[str, Any]]:
    """What a job's worker knows of it at its last stage."""
    (job,) = farm.jobs_of(farm.chain({"stages": stages}, **{"seed": 7, **chain}), upload=False)
    return list(job.recipes)


def picture(recipes: list[dict[str, Any]]) -> bytes:
    return to_png(Image.new("RGB", (64, 64), "teal"), {"v": 1, "recipes": recipes}, label(recipes))


def texts(data: bytes) -> dict[str, bytes]:
    """A PNG's text chunks by keyword, each with its kind before it."""
    found, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind in (b"tEXt", b"iTXt"):
            keyword, _, rest = data[at + 8 : at + 8 + length].partition(b"\0")
            found[keyword.decode()] = kind + b":" + rest
        at += length + 12
    return found


def test_sd_parsers_reads_a_chain(farm: Farm) -> None:
    # Given the picture of a chain of four stages
    made = recipes(farm, HIRES, prompt="a red apple, oil", negative_prompt="blurry, text")
    # When
    found = ParserManager().parse(BytesIO(picture(made)))
    # Then
    assert found.generator is Generators.AUTOMATIC1111
    (sampler,) = found.samplers
    assert (sampler.name, sampler.model.name) == ("DPM++ 2M Karras", "tiny")
    assert sampler.model.hash == made[0]["checkpoint"]["manifest"][:10]
    assert sampler.parameters == {"cfg_scale": "6.5", "seed": "7", "steps": "12"}
    assert [one.value for one in sampler.prompts] == ["a red apple, oil"]
    assert [one.value for one in sampler.negative_prompts] == ["blurry, text"]
    told = {"Size": "64x64", "Denoising strength": "0.55", "Clip skip": "2", "Hires resize": "512x512"}
    assert told.items() <= found.metadata.items()


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("two\nlines\n\nand a third", "two\nlines\n\nand a third"),
        ("Steps: 3, Sampler: Euler, CFG scale: 1, Seed: 1", "Steps : 3, Sampler: Euler, CFG scale: 1, Seed: 1"),
        ("a cat\nNegative prompt: dogs\nSteps: 3", "a cat\nNegative prompt : dogs\nSteps : 3"),
        ("Schloß, 城堡 \U0001f600 \u202e\u0301", "Schloß, 城堡 \U0001f600 \u202e\u0301"),
        ("<a> & \"b\" 'c' ]]> </x:xmpmeta> \\n {}", "<a> & \"b\" 'c' ]]> </x:xmpmeta> \\n {}"),
        ("café, naïve", "café, naïve"),
    ],
)
@pytest.mark.parametrize("negative", [False, True])
def test_no_prompt_is_taken_for_something_else(farm: Farm, prompt: str, read: str, negative: bool) -> None:
    # Given
    given = {"prompt": "x", "negative_prompt": prompt} if negative else {"prompt": prompt, "negative_prompt": "x"}
    data = picture(recipes(farm, [{"kind": "text2img", "steps": 5}], **given))
    # When
    found = ParserManager().parse(BytesIO(data))
    # Then
    (sampler,) = found.samplers
    told, other = sampler.prompts, sampler.negative_prompts
    told, other = (other, told) if negative else (told, other)
    assert [one.value for one in told] == [read]
    assert [one.value for one in other] == ["x"]
    assert (sampler.name, sampler.parameters["steps"]) == ("default", "5")
    # And the farm's own recipe has it as it was
    assert read_recipe(data)["recipes"][0]["parameters"]["negative_prompt" if negative else "prompt"] == prompt


def test_the_text_is_latin_1_where_that_holds_it(farm: Farm) -> None:
    stages = [{"kind": "text2img"}]
    assert texts(picture(recipes(farm, stages, prompt="café")))["parameters"].startswith(b"tEXt:caf\xe9\nSteps")
    assert texts(picture(recipes(farm, stages, prompt="城")))["parameters"].startswith(b"iTXt:")


def test_it_is_said_that_a_machine_drew_it(farm: Farm) -> None:
    # Given
    data = picture(recipes(farm, HIRES, prompt="</rdf:RDF> & <x>"))
    # When
    kind, _, rest = texts(data)["XML:com.adobe.xmp"].partition(b":")
    # Then it is an XMP packet, not compressed, as XMP in PNG has to be
    assert kind == b"iTXt"
    assert rest.startswith(b'\0\0\0\0<?xpacket begin="\xef\xbb\xbf"')
    tree = ElementTree.fromstring(rest[4:])  # noqa: S314 — our own
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert [one.text for one in tree.iter(name)] == [SOURCE_TYPE]


def test_equal_recipes_give_equal_bytes(farm: Farm) -> None:
    one, other = (picture(recipes(farm, HIRES, prompt="a pear")) for _ in range(2))
    assert one == other


def test_what_denoised_nothing_has_no_parameters(farm: Farm) -> None:
    made = [{"kind": "esrgan", "parameters": {"tile": None, "prompt": ""}, "size": [64, 64]}]
    assert parameters(made) == ""
    assert set(label(made)) == {"XML:com.adobe.xmp"}


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("Euler a", "Euler a"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE Karras"),
        ("DDPMScheduler", "DDPM"),
        (None, "default"),
    ],
)
def test_a_sampler_has_its_name_in_a1111(farm: Farm, scheduler: str | None, told: str) -> None:
    stage = {"kind": "text2img", **({"scheduler": scheduler} if scheduler else {})}
    assert f"Sampler: {told}, " in parameters(recipes(farm, [stage], prompt="x"))
