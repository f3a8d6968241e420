"""Is a chain the same after it was a graph of ComfyUI's, and would ComfyUI take that graph?"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.catalog import Catalog
from farm.chain import parse_chain
from farm.comfy_graph import Workflow, drafted, workflow
from farm.comfy_nodes import NODES
from farm.comfy_samplers import LEVELS, SOLVERS, STAND_INS
from farm.errors import InvalidJob
from farm.job import InputImage, Job, make_job, stage_seed
from farm.overview import Overview
from farm.plan import plan
from farm.recall import recalled
from farm.sampler import SCHEDULERS
from farm.settings import Settings
from farm.stage import Size
from tests.comfy import wrongs
from tests.test_job import catalog, here

__all__ = ["catalog", "here"]
EULER: dict[str, Any] = {"scheduler": "EulerDiscreteScheduler"}
MASK = "sha256:" + "ab" * 32
GIVEN = InputImage(sha256="cd" * 32, width=64, height=64)


def job_of(chain: dict[str, Any], catalog: Catalog, here: Settings) -> Job:
    """The job of a chain, with an input image where it takes one."""
    parsed = parse_chain({"prompt": "a pear", "negative_prompt": "red", "seed": 7, **chain})
    return make_job(parsed, catalog, here, image=GIVEN if parsed.stages[0].takes else None)


def graph_of(chain: dict[str, Any], catalog: Catalog, here: Settings) -> Workflow:
    """What the job of a chain is for ComfyUI, which would take it."""
    found = workflow(json.loads(job_of(chain, catalog, here).spec), catalog)
    assert list(wrongs(found.nodes)) == []
    return found


def of_class(found: Workflow, kind: str) -> list[dict[str, Any]]:
    """The inputs of all nodes of a class, in their order."""
    return [node["inputs"] for node in found.nodes.values() if node["class_type"] == kind]


def picture(found: Workflow) -> bytes:
    """A PNG as ComfyUI saves it of this graph."""
    info, out = PngInfo(), BytesIO()
    info.add_text("prompt", json.dumps(found.nodes))
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def told(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe decides what is drawn: of its strength the number of steps, and not what stood before."""
    parameters = dict(recipe["parameters"])
    if "strength" in parameters:
        parameters["strength"] = int(parameters["num_inference_steps"] * parameters["strength"])
    return {**recipe, "parameters": parameters, "given": None}


CHAINS: dict[str, dict[str, Any]] = {
    "hires": {
        "stages": [
            {"kind": "text2img", "num_inference_steps": 25, "width": 128, "height": 64, **EULER},
            {"kind": "img2img", "strength": 0.5, "prompt": "a ripe pear", "scheduler": "DPM++ 2M SDE Karras"},
            {"kind": "upscale_latent"},
            {"kind": "upscale", "noise_level": 7, "scheduler": "DDIMScheduler", "seed": 3},
        ]
    },
    "img2img": {"stages": [{"kind": "img2img", "strength": 0.35, "guidance_scale": 4.5, **EULER}]},
    "pixels": {
        "stages": [
            {"kind": "text2img", "width": 64, "height": 64, **EULER},
            {"kind": "img2img", "strength": 0.3, "checkpoint": "tiny-other", "clip_skip": 1, **EULER},
        ]
    },
    "inpaint": {"stages": [{"kind": "inpaint", "strength": 0.9, "mask": MASK, **EULER}]},
    "inpaint9": {"stages": [{"kind": "inpaint", "mask": MASK, "checkpoint": "tiny-inpaint", **EULER}]},
    "border": {"stages": [{"kind": "inpaint", "border": {"left": 64, "top": 8}, **EULER}]},
    "loras": {
        "stages": [
            {
                "kind": "text2img", "width": 64, "height": 64, **EULER, "embeddings": ["tiny-word"],
                "prompt": "a <gleam> (pear)", "freeu": {"s1": 0.8}, "guidance_rescale": 0.5,
                "loras": [{"name": "tiny-lora", "weight": 0.8}, {"name": "tiny-lora-2", "weight": -1.0}],
            },
            {
                "kind": "img2img", "strength": 0.5, **EULER, "weighting": "a1111", "vae": "tiny-vae",
                "prompt": "a (ripe:1.3) pear",
                "loras": [{"name": "tiny-lora-3", "weight": 1.5}],
            },
        ]
    },
    "esrgan": {
        "stages": [
            {"kind": "text2img", "width": 64, "height": 64, **EULER}, {"kind": "esrgan", "checkpoint": "tiny-compact",
            "factor": 2}, {"kind": "img2img", "strength": 0.25, **EULER},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_comes_back(name: str, catalog: Catalog, here: Settings) -> None:
    # Given a job as a graph, When it is read from a picture that ComfyUI drew by it, or from its file
    job = job_of(CHAINS[name], catalog, here)
    found = graph_of(CHAINS[name], catalog, here)
    read = recalled(picture(found), catalog)
    assert read == recalled(json.dumps(found.nodes).encode(), catalog)
    # Then it draws the same: only pictures are not in it, and what stood for something else stays that
    chain = json.loads(json.dumps(read.chain))
    for stage in chain["stages"]:
        if stage["kind"] == "inpaint" and "border" not in stage:
            stage["mask"] = MASK
    again = make_job(parse_chain(chain), catalog, here, image=job.image)
    for item, ours, theirs in zip(job.plan, job.recipes, again.recipes, strict=True):
        if item.stage.kind == "upscale_latent":
            assert theirs["kind"] == "upscale_latent"
            continue
        assert told(theirs) == told(ours)
    assert read.source == "ComfyUI"
    assert all("not in the file" in note or "doubles the latents" in note for note in read.notes)


def test_the_four_stages_are_the_nodes_that_they_ought_to_be(catalog: Catalog, here: Settings) -> None:
    found = graph_of(CHAINS["hires"], catalog, here)
    first, second, last = of_class(found, "KSampler")
    # Every sampler has its own seed, resolved, and as many steps as would run here
    assert [one["seed"] for one in (first, second, last)] == [7, stage_seed(7, 1), 3]
    assert (first["steps"], first["denoise"]) == (25, 1.0)
    assert (second["steps"], second["denoise"]) == (12, 0.48)
    assert int(second["steps"] / second["denoise"]) == 25
    assert (second["sampler_name"], second["scheduler"]) == ("dpmpp_2m_sde", "karras")
    # The latents go from the first to the second, are enlarged, and the upscaler sees the picture
    assert found.nodes[second["latent_image"][0]]["class_type"] == "KSampler"
    (beside,) = of_class(found, "SD_4XUpscale_Conditioning")
    assert beside["noise_augmentation"] == 0.02
    decode = found.nodes[beside["images"][0]]["inputs"]
    assert found.nodes[decode["samples"][0]]["class_type"] == "LatentUpscaleBy"
    assert of_class(found, "EmptyLatentImage") == [{"width": 128, "height": 64, "batch_size": 1}]
    assert len(of_class(found, "SaveImage")) == 1
    assert any("stage 3: ComfyUI does not run the network" in note for note in found.notes)


@pytest.mark.parametrize(("steps", "strength"), [(3, 0.7), (7, 0.999), (150, 0.34), (30, 0.1), (25, 1.0), (11, 0.55)])
def test_as_many_steps_run_there_as_here(steps: int, strength: float, catalog: Catalog, here: Settings) -> None:
    stage = {"kind": "img2img", "num_inference_steps": steps, "strength": strength, **EULER}
    found = graph_of({"stages": [stage]}, catalog, here)
    (told,) = of_class(found, "KSampler")
    # As ComfyUI reckons: the last `steps` of int(steps / denoise)
    assert told["steps"] == min(int(steps * strength), steps)
    assert (int(told["steps"] / told["denoise"]) if told["denoise"] <= 0.9999 else told["steps"]) == steps
    read = recalled(picture(found), catalog).chain["stages"][0]
    assert read["num_inference_steps"] == steps
    assert min(int(steps * read["strength"]), steps) == told["steps"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_has_a_name_there_or_a_word(scheduler: str, catalog: Catalog, here: Settings) -> None:
    found = graph_of(
        {"stages": [{"kind": "text2img", "num_inference_steps": 9, "scheduler": scheduler}]}, catalog, here
    )
    (told,) = of_class(found, "KSampler")
    assert (scheduler in STAND_INS) == any(f"no {scheduler}" in note for note in found.notes)
    assert told["sampler_name"] in SOLVERS
    assert told["scheduler"] in LEVELS


def test_nothing_is_left_out_without_a_word(catalog: Catalog, here: Settings) -> None:
    # Given stages with all that has no counterpart
    stages = [
        {"kind": "text2img", "scheduler": "DDIMScheduler", "eta": 0.5, "vae_tiling": True,
         "ip_adapters": [{"name": "tiny-ip", "image": MASK}]},
        {"kind": "img2img", "strength": 0.5, "scheduler": "DPM++ 2M Karras", "weighting": "compel",
         "scheduler_options": {"final_sigmas_type": "zero"}},
        {"kind": "upscale", "tile": 64},
    ]  # fmt: skip
    found = graph_of({"stages": stages, "exact": True, "keep": "image"}, catalog, here)
    # Then each is named
    told = "\n".join(found.notes)
    for word in (
        "stage 1: without eta 0.5", "stage 1: without vae tiling True", "stage 1: without tiny-ip of its ip adapters",
        "compel's syntax", "stage 2: without final sigmas type zero", "stage 3: without tile 64", "exact:",
        "nothing is kept", "tiny is a network that ComfyUI does not know",
    ):  # fmt: skip
        assert word in told, (word, told)
    # And guidance that does nothing here does nothing there
    plain = graph_of({"stages": [{"kind": "text2img", "guidance_scale": 0.0}]}, catalog, here)
    assert of_class(plain, "KSampler")[0]["cfg"] == 1.0


@pytest.mark.parametrize(
    ("stages", "loc"),
    [
        ([{"kind": "depth2img"}], "stages.0.kind"),
        ([{"kind": "inpaint", "mask": MASK, "border": {"left": 8}}], "stages.0.border"),
        (
            [{"kind": "text2img", "checkpoint": "tiny-xl", "denoising_end": 0.8, **EULER},
             {"kind": "img2img", "checkpoint": "tiny-xl", "denoising_start": 0.8, **EULER}],
            "stages.0.denoising_end",
        ),
        (
            [{"kind": "text2img", "controls": [{"name": "tiny-canny", "image": MASK, "process": "canny"}]}],
            "stages.0.controls",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(
    stages: list[dict[str, Any]], loc: str, catalog: Catalog, here: Settings
) -> None:
    stages[0].setdefault("checkpoint", {"depth2img": "tiny-depth"}.get(stages[0]["kind"], "tiny"))
    with pytest.raises(InvalidJob) as info:
        graph_of({"stages": stages}, catalog, here)
    assert (info.value.errors[0].loc, info.value.errors[0].code) == (loc, "no_counterpart")


def test_a_controlnet_is_written(catalog: Catalog, here: Settings) -> None:
    control = {"name": "tiny-pose", "image": MASK, "scale": 0.7, "start": 0.1, "end": 0.8}
    found = graph_of({"stages": [{"kind": "text2img", "controls": [control], **EULER}]}, catalog, here)
    (told,) = of_class(found, "ControlNetApplyAdvanced")
    assert (told["strength"], told["start_percent"], told["end_percent"]) == (0.7, 0.1, 0.8)
    assert of_class(found, "LoadImage") == [{"image": "abababababab.png"}]
    # One that is read back is told of: the image that it follows is not in the file
    refined = {"kind": "img2img", "strength": 0.5, **EULER}
    found = graph_of({"stages": [{"kind": "text2img", "controls": [control], **EULER}, refined]}, catalog, here)
    assert "stage 1 is without the ControlNet tiny-pose.safetensors" in recalled(picture(found), catalog).notes


def test_a_chain_that_is_no_job_is_written(catalog: Catalog, here: Settings) -> None:
    bare = {"kind": "img2img", "seed": 9, "negative_prompt": ""}
    chain = {"prompt": "a fig", "negative_prompt": "red", "stages": [{"kind": "img2img", "strength": 0.5}, bare]}
    facts = [item.facts for item in plan(parse_chain(chain), catalog, here, Size(64, 64))]
    found = workflow(drafted(facts, chain), catalog)
    assert list(wrongs(found.nodes)) == []
    assert [one["seed"] for one in of_class(found, "KSampler")] == [0, 9]
    assert of_class(found, "LoadImage") == [{"image": "input.png"}]
    assert "scale input.png to 64×64 first: the farm fits it, ComfyUI does not" in found.notes
    # And a stage's own empty prompt is no missing one
    assert [one["text"] for one in of_class(found, "CLIPTextEncode")] == ["a fig", "red", ""]


def test_files_have_the_names_of_the_catalog(catalog: Catalog, here: Settings) -> None:
    # Given adapters that are local files, two of one name
    for name, file in (("tiny-word", "/a/learned.safetensors"), ("tiny-lora", "/a/x.safetensors"),
                       ("tiny-lora-2", "/b/x.safetensors")):  # fmt: skip
        catalog.adapters[name] = catalog.adapters[name].model_copy(update={"build": None, "file": file})
    # When a chain is written, Then each is a file of its own, which the prompt names, and is known when it is read
    found = graph_of(CHAINS["loras"], catalog, here)
    loras = [one["lora_name"] for one in of_class(found, "LoraLoader")]
    assert loras == ["tiny-lora.safetensors", "tiny-lora-2.safetensors", "tiny-lora-3.safetensors"]
    assert "embedding:tiny-word " in of_class(found, "CLIPTextEncode")[0]["text"]
    (told,) = [note for note in found.notes if "models/embeddings" in note]
    assert told.startswith("put tiny-word (learned.safetensors, ")
    assert told.endswith(" as tiny-word.safetensors")
    read = recalled(picture(found), catalog).chain["stages"][0]
    assert ([one["name"] for one in read["loras"]], read["embeddings"]) == (["tiny-lora", "tiny-lora-2"], ["tiny-word"])


@pytest.mark.parametrize(
    ("stage", "layer"),
    [
        ({"kind": "text2img"}, -2), ({"kind": "text2img", "checkpoint": "tiny-xl"}, -3),
        ({"kind": "text2img", "checkpoint": "tiny-sd2"}, -3), ({"kind": "upscale"}, -3),
    ],
)  # fmt: skip
def test_a_skipped_layer_is_counted_from_the_one_that_is_read(
    stage: dict[str, Any], layer: int, catalog: Catalog, here: Settings
) -> None:
    found = graph_of({"stages": [{**stage, "clip_skip": 1, **EULER}]}, catalog, here)
    (told,) = of_class(found, "CLIPSetLastLayer")
    assert told["stop_at_clip_layer"] == layer
    assert recalled(picture(found), catalog).chain["stages"][0]["clip_skip"] == 1


def test_all_presets_are_written(catalog: Catalog, here: Settings) -> None:
    for preset in Overview(here).presets():
        graph_of({"stages": preset["stages"]}, catalog, here)


def test_what_is_wrong_with_a_graph_is_found() -> None:
    """The judge of the other tests: it must be able to say no."""
    load = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}}
    text: dict[str, Any] = {"text": "a", "clip": ["1", 1]}
    for inputs, told in (
        ({**text, "clip": ["1", 0]}, "MODEL is no CLIP"), ({**text, "clip": ["1", 3]}, "no output 3"),
        ({**text, "clip": ["9", 0]}, "no node 9"), ({**text, "clip": 1}, "no link"), ({**text, "text": 1}, "no STRING"),
        ({"text": "a"}, "needs clip"), ({**text, "more": 1}, "no input more"),
    ):  # fmt: skip
        (found,) = wrongs({"1": load, "2": {"class_type": "CLIPTextEncode", "inputs": inputs}})
        assert told in found
    assert [*wrongs({"1": {"class_type": "Nothing", "inputs": {}}})] == ["1: there is no node Nothing"]
    assert {output for node in NODES.values() for output in node.outputs} >= {"MODEL", "LATENT", "IMAGE"}


@pytest.mark.parametrize(
    "change",
    [
        {"3": {"class_type": "KSamplerOfSomebody"}}, {"2": {"inputs": {"width": "x", "height": 64}}},
        {"5": {"inputs": {"denoise": 0}}}, {"5": {"inputs": {"steps": 10**9}}},
        {"5": {"inputs": {"latent_image": ["5", 0]}}},
    ],
    ids=range(5),
)  # fmt: skip
def test_a_graph_that_is_not_understood_is_none_or_what_it_always_was(
    change: dict[str, Any], catalog: Catalog, here: Settings
) -> None:
    """A stranger's file is read to an end: as one sampler, where it is no chain."""
    nodes = json.loads(json.dumps(graph_of(CHAINS["hires"], catalog, here).nodes))
    for name, told in change.items():
        nodes[name] = {**nodes[name], **told, "inputs": {**nodes[name]["inputs"], **told.get("inputs", {})}}
    found = recalled(json.dumps(nodes).encode(), catalog)
    assert [stage["kind"] for stage in found.chain["stages"]] == ["text2img"]
    assert any("samplers" in note for note in found.notes)


def changed(found: Workflow, kind: str, at: int = 0, /, **inputs: Any) -> bytes:
    """The graph with other inputs of its node number `at` of a class."""
    nodes = json.loads(json.dumps(found.nodes))
    [node for node in nodes.values() if node["class_type"] == kind][at]["inputs"].update(inputs)
    return json.dumps(nodes).encode()


def test_layers_are_skipped_wherever_that_stands(catalog: Catalog, here: Settings) -> None:
    # Given a graph whose layers are cut before the LoRA is put on, as many are
    lora = {"name": "tiny-lora", "weight": 0.8}
    stage = {"kind": "text2img", "loras": [lora], "clip_skip": 1, **EULER}
    nodes = json.loads(json.dumps(graph_of({"stages": [stage]}, catalog, here).nodes))
    place = {node["class_type"]: name for name, node in nodes.items()}
    load, put, cut = (place[kind] for kind in ("CheckpointLoaderSimple", "LoraLoader", "CLIPSetLastLayer"))
    nodes[cut]["inputs"]["clip"], nodes[put]["inputs"]["clip"] = [load, 1], [cut, 0]
    for node in nodes.values():
        if node["class_type"] == "CLIPTextEncode":
            node["inputs"]["clip"] = [put, 1]
    assert list(wrongs(nodes)) == []
    # Then it is read, and there is nothing to tell
    read = recalled(json.dumps(nodes).encode(), catalog)
    assert (read.chain["stages"][0]["clip_skip"], read.chain["stages"][0]["loras"], read.notes) == (1, [lora], [])
    # And the last layer, where another one is read here, is told of
    nodes[cut]["inputs"]["stop_at_clip_layer"], nodes[load]["inputs"]["ckpt_name"] = -1, "tiny-sd2.safetensors"
    read = recalled(json.dumps(nodes).encode(), catalog)
    assert read.notes == ["stage 1 is without the last layer of its text encoder, which is not read here"]


def test_another_text_encoder_is_told_of(catalog: Catalog, here: Settings) -> None:
    chain = {"stages": [CHAINS["loras"]["stages"][0]]}
    found = graph_of(chain, catalog, here)
    # Given LoRAs that weigh otherwise on the text encoder, or are not on it
    for data in (changed(found, "LoraLoader", strength_clip=0.1), changed(found, "LoraLoader", 1, clip=["1", 1])):
        notes = recalled(data, catalog).notes
        assert notes == [
            "stage 1 has its LoRAs on the text encoder as on the model: the graph weighed them otherwise there"
        ]
    # Given that of another checkpoint
    found = graph_of(CHAINS["pixels"], catalog, here)
    data = changed(found, "CLIPTextEncode", clip=["1", 1]).replace(b"tiny-other.saf", b"tiny-style.saf")
    assert recalled(data, catalog).notes == []
    nodes = json.loads(data)
    other = next(name for name, node in nodes.items() if node["inputs"].get("ckpt_name") == "tiny-style.safetensors")
    data = changed(Workflow(nodes, []), "CLIPTextEncode", clip=[other, 1])
    assert recalled(data, catalog).notes == ["stage 1 is without the text encoder of tiny-style.safetensors"]
    # Given one behind a node that is not known, Then the graph is no chain
    strange = {**nodes, "99": {"class_type": "CLIPMerge", "inputs": {"clip": ["1", 1]}}}
    data = changed(Workflow(strange, []), "CLIPTextEncode", clip=["99", 0])
    assert any("the first of 2 samplers" in note for note in recalled(data, catalog).notes)


@pytest.mark.parametrize(
    "stages",
    [
        [{"kind": "text2img", "vae": "tiny-vae", **EULER}, {"kind": "upscale_latent"}],
        [{"kind": "img2img", "strength": 0.5, "vae": "tiny-vae", **EULER}, {"kind": "img2img", **EULER}],
        [{"kind": "inpaint", "mask": MASK, "vae": "tiny-vae", **EULER}],
    ],
    ids=range(3),
)  # fmt: skip
def test_a_vae_comes_back(stages: list[dict[str, Any]], catalog: Catalog, here: Settings) -> None:
    found = graph_of({"stages": stages}, catalog, here)
    assert [one.get("vae") for one in recalled(picture(found), catalog).chain["stages"]] == [
        one.get("vae") for one in stages
    ]


def test_another_vae_is_told_of(catalog: Catalog, here: Settings) -> None:
    # Given a graph that decodes with the VAE of another checkpoint, Then that is told
    found = graph_of({"stages": [{"kind": "img2img", "strength": 0.5, **EULER}]}, catalog, here)
    added = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "other.safetensors"}}
    data = changed(Workflow({**found.nodes, "99": added}, []), "VAEDecode", vae=["99", 2])
    assert "stage 1 is without the vae of other.safetensors" in recalled(data, catalog).notes
    # Given one that encodes with one, and decodes with another
    added = {"class_type": "VAELoader", "inputs": {"vae_name": "tiny-vae.safetensors"}}
    data = changed(Workflow({**found.nodes, "99": added}, []), "VAEDecode", vae=["99", 0])
    read = recalled(data, catalog)
    assert read.chain["stages"][0]["vae"] == "tiny-vae"
    assert "stage 1 has one vae, where the graph had one to encode and another to decode" in read.notes
    # Given one for a stage that takes none
    found = graph_of({"stages": [{"kind": "upscale", **EULER}]}, catalog, here)
    read = recalled(changed(Workflow({**found.nodes, "99": added}, []), "VAEDecode", vae=["99", 0]), catalog)
    assert "vae" not in read.chain["stages"][0]
    assert "stage 1 is without the vae tiny-vae.safetensors" in read.notes


def test_names_that_the_catalog_lacks_are_told(catalog: Catalog, here: Settings) -> None:
    nodes = graph_of(CHAINS["loras"], catalog, here).nodes
    text = json.dumps(nodes).replace("tiny-lora.safetensors", "gone.safetensors").replace("tiny.saf", "other.saf")
    found = recalled(text.encode(), catalog)
    assert found.loras == [("gone.safetensors", 0.8)]
    assert "stage 1 was drawn with the checkpoint other.safetensors" in found.notes
    assert [stage.get("checkpoint") for stage in found.chain["stages"]] == [None, None]
