"""What a chain may be, how it is typed, and what its recipes depend on."""

from __future__ import annotations

import json
import time
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any
from uuid import RFC_4122, UUID

import pytest

from farm.catalog import LOCK, Catalog, Lock, Recommended, Switches
from farm.chain import MAX_DEPTH, MAX_FILE_BYTES, MAX_NODES, MAX_STAGES, Chain, override, parse_chain, read_chain_file
from farm.errors import InvalidJob
from farm.job import (
    MAX_DEADLINE_S,
    InputImage,
    canonical,
    make_job,
    make_jobs,
    new_id,
    recipe_key,
    stage_of,
    stage_seed,
)
from farm.plan import input_multiple, plan
from farm.sampler import SchedulerOptions
from farm.settings import Settings
from farm.stage import MAX_SEED, Medium, Size, kinds

TEXT = {"kind": "text2img"}
REDRAW = {"kind": "img2img", "strength": 0.5}
X2 = {"kind": "upscale_latent"}
X4 = {"kind": "upscale"}
BASE = {"kind": "text2img", "checkpoint": "tiny-xl", "steps": 10, "scheduler": "Euler", "denoising_end": 0.8}
REFINE = {"kind": "img2img", "checkpoint": "tiny-xl-refiner", "steps": 10, "scheduler": "Euler", "denoising_start": 0.8}
HIRES = [TEXT, REDRAW, X2, X4]


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return Settings.load(data=tmp_path)


@pytest.fixture
def catalog(here: Settings) -> Catalog:
    """The farm's catalog and two checkpoints that are run otherwise, each with a lock as if it had been pulled."""
    catalog = Catalog.load(here)
    for name, switches in (("fused", {"fuse_qkv_projections": True}), ("offloaded", {"offload": "model"})):
        tiny = catalog.checkpoints["tiny"]
        catalog.checkpoints[name] = tiny.model_copy(
            update={"name": name, "switches": Switches.model_validate(switches)}
        )
    catalog.models_dir.mkdir(parents=True, exist_ok=True)
    for name, entry in [*catalog.checkpoints.items(), *catalog.adapters.items()]:
        lock = Lock(revision=None, files={"unet/weights.safetensors": name.ljust(64, "0")})
        catalog.lock_path(entry).write_text(lock.model_dump_json())
    return catalog


def chain(*stages: dict[str, Any], **fields: Any) -> Chain:
    return parse_chain({"prompt": "a red apple", **fields, "stages": list(stages)})


def refused(code: str, loc: str, *words: str) -> Any:
    """Expects an InvalidJob with this code at this field, if it has one, whose text has these words."""

    class Refused:
        def __enter__(self) -> None:
            self.raises = pytest.raises(InvalidJob)
            self.info = self.raises.__enter__()

        def __exit__(self, *exc: Any) -> bool:
            done = bool(self.raises.__exit__(*exc))
            error = self.info.value
            assert error.code == code, error
            assert not loc or any(found.loc == loc for found in error.errors), error.errors
            for word in words:
                assert word in str(error), error
            return done

    return Refused()


def test_the_four_stages_hand_latents_on_and_give_the_last_one_an_image(catalog: Catalog, here: Settings) -> None:
    # When
    planned = plan(chain(*HIRES), catalog, here)
    # Then
    assert [item.emits for item in planned] == [Medium.LATENTS, Medium.LATENTS, Medium.IMAGE, Medium.IMAGE]
    assert [item.takes for item in planned] == [None, Medium.LATENTS, Medium.LATENTS, Medium.IMAGE]
    assert [item.given for item in planned] == [None, Size(64, 64), Size(64, 64), Size(128, 128)]
    assert [item.size for item in planned] == [Size(64, 64), Size(64, 64), Size(128, 128), Size(512, 512)]
    assert [item.queue for item in planned] == [
        "text2img.tiny",
        "img2img.tiny",
        "upscale_latent.tiny-x2",
        "upscale.tiny-x4",
    ]


@pytest.mark.parametrize(
    ("stages", "image", "media"),
    [
        ([TEXT, X4], False, "image image"),
        ([TEXT], False, "image"),
        ([REDRAW, {**REDRAW, "checkpoint": "tiny-style"}, REDRAW], True, "latents latents image"),
        ([X4], True, "image"),
        ([TEXT, X4, REDRAW], False, "image image image"),
        ([{**TEXT, "checkpoint": "sd15"}, REDRAW], False, "image image"),
    ],
)
def test_stages_run_alone_or_in_any_order_that_fits(
    catalog: Catalog, here: Settings, stages: list[dict[str, Any]], image: bool, media: str
) -> None:
    planned = plan(chain(*stages), catalog, here, Size(64, 64) if image else None)
    assert " ".join(item.emits for item in planned) == media


def test_latents_for_a_checkpoint_of_another_space_are_refused_with_both_names(
    catalog: Catalog, here: Settings
) -> None:
    with refused("space_mismatch", "stages.1.checkpoint", "tiny-other", "tiny-x2", "one space"):
        plan(chain({**TEXT, "checkpoint": "tiny-other"}, X2), catalog, here)


@pytest.mark.parametrize(
    ("stages", "image", "code", "loc", "word"),
    [
        ([REDRAW], False, "no_image", "image", "give one"),
        ([TEXT], True, "unused_image", "image", "leave the image out"),
        ([X2], True, "medium_mismatch", "stages.0", "put a stage that gives latents before it"),
        ([TEXT, TEXT], False, "medium_mismatch", "stages.1", "only be the first"),
        ([TEXT, X4, X2], False, "medium_mismatch", "stages.2", "takes latents"),
        ([{**TEXT, "width": 2048, "height": 2048}, X4, X4], False, "too_large", "stages.1", "start smaller"),
        ([{**TEXT, "checkpoint": "nope"}], False, "unknown_checkpoint", "stages.0.checkpoint", "tiny-style"),
        ([{**TEXT, "checkpoint": "tiny-x4"}], False, "wrong_checkpoint", "stages.0.checkpoint", "choose one of"),
        ([{**TEXT, "width": 72}, X2], False, "bad_size", "stages.1", "such as 64×64"),
        ([TEXT, {**REDRAW, "width": 64}], False, "bad_size", "stages.1.width", "only the first stage"),
        ([{**TEXT, "checkpoint": "tiny-xl-refiner"}], False, "wrong_checkpoint", "stages.0.checkpoint", "text2img"),
        ([{**TEXT, "denoising_end": 0.8}], False, "invalid_field", "stages.0.denoising_end", "family sdxl"),
        ([BASE], False, "schedule_mismatch", "stages.0.denoising_end", "denoising_start"),
        (
            [BASE, {**REFINE, "denoising_start": 0.7}],
            False,
            "schedule_mismatch",
            "stages.1.denoising_start",
            "has denoising_end 0.8",
        ),
        ([BASE, {**REFINE, "steps": 9}], False, "schedule_mismatch", "stages.1.num_inference_steps", "as in stage 0"),
        (
            [BASE, {**REFINE, "scheduler": "Euler a"}],
            False,
            "schedule_mismatch",
            "stages.1.scheduler",
            "same scheduler",
        ),
        ([BASE, X4], False, "schedule_mismatch", "stages.0.denoising_end", "put an img2img there"),
        ([REFINE], True, "schedule_mismatch", "stages.0.denoising_start", "no denoising_end"),
        (
            [{**BASE, "scheduler": None}, {**REFINE, "scheduler": None}],
            False,
            "schedule_mismatch",
            "stages.0.scheduler",
            "name it in both",
        ),
        (
            [{**BASE, "denoising_end": 0.05}, {**REFINE, "denoising_start": 0.05}],
            False,
            "no_steps",
            "stages.0.denoising_end",
            "without a step",
        ),
        ([{**TEXT, "loras": [{"name": "nope"}]}], False, "unknown_adapter", "stages.0.loras.0.name", "tiny-lora"),
        ([{**TEXT, "loras": [{"name": "tiny-canny"}]}], False, "wrong_adapter", "stages.0.loras.0.name", "not a lora"),
        (
            [{**TEXT, "checkpoint": "tiny-xl", "loras": [{"name": "tiny-lora"}]}],
            False,
            "wrong_adapter",
            "stages.0.loras.0.name",
            "for sd, not a lora for sdxl",
        ),
        ([{**TEXT, "checkpoint": "tiny-other", "vae": "tiny-vae"}], False, "wrong_adapter", "stages.0.vae", "no vae"),
        ([{**TEXT, "embeddings": ["tiny-lora"]}], False, "wrong_adapter", "stages.0.embeddings.0", "tiny-word"),
        (
            [{**TEXT, "guidance_rescale": 0.5, "controls": [{"name": "tiny-canny", "image": "c"}]}],
            False,
            "invalid_field",
            "stages.0.guidance_rescale",
            "not together with controls",
        ),
        (
            [{**TEXT, "checkpoint": "fused", "loras": [{"name": "tiny-lora"}]}],
            False,
            "wrong_adapter",
            "stages.0.loras",
            "fuse_qkv_projections",
        ),
        (
            [{**TEXT, "checkpoint": "offloaded", "weighting": "compel"}],
            False,
            "wrong_adapter",
            "stages.0.weighting",
            "offload: model",
        ),
        ([{"kind": "esrgan", "checkpoint": "tiny-esrgan", "factor": 2}], True, "invalid_field", "stages.0.factor", "4"),
        (
            [{**BASE, "denoising_end": None}, REFINE],
            False,
            "schedule_mismatch",
            "stages.1.denoising_start",
            "no denoising_end",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field_and_the_remedy(
    catalog: Catalog, here: Settings, stages: list[dict[str, Any]], image: bool, code: str, loc: str, word: str
) -> None:
    with refused(code, loc, word):
        plan(chain(*stages), catalog, here, Size(64, 64) if image else None)


@pytest.mark.parametrize(
    ("data", "code", "loc", "word"),
    [
        ({"stages": []}, "bad_length", "stages", "1 to 8"),
        ({"stages": [TEXT] * 20}, "bad_length", "stages", "not 20"),
        ({"stages": None}, "bad_length", "stages", "list"),
        ({"stages": [{"kind": "paint"}]}, "unknown_kind", "stages.0.kind", "text2img"),
        ({"stages": ["text2img"]}, "unknown_kind", "stages.0.kind", "a stage is a mapping"),
        ({"stages": [{}]}, "unknown_kind", "stages.0.kind", "missing"),
        ({"stages": [{**TEXT, "stepz": 4}]}, "unknown_field", "stages.0.stepz", "did you mean steps"),
        ({"stages": [{**TEXT, "width": 63}]}, "bad_size", "stages.0.width", "such as 64"),
        ({"stages": [{**TEXT, "width": 68}]}, "bad_size", "stages.0.width", "such as 64 or 72"),
        ({"stages": [{**TEXT, "height": 90}]}, "bad_size", "stages.0.height", "such as 88 or 96"),
        ({"stages": [{**TEXT, "width": 9001}]}, "bad_size", "stages.0.width", "such as 2048"),
        ({"stages": [{**TEXT, "width": -8}]}, "bad_size", "stages.0.width", "greater"),
        ({"stages": [{**TEXT, "height": 4096}]}, "bad_size", "stages.0.height", "less"),
        ({"stages": [{**TEXT, "guidance_scale": float("nan")}]}, "invalid_field", "stages.0.guidance_scale", "finite"),
        ({"stages": [{**TEXT, "steps": True}]}, "invalid_field", "stages.0.num_inference_steps", "integer"),
        ({"stages": [{**TEXT, "steps": "7"}]}, "invalid_field", "stages.0.num_inference_steps", "integer"),
        ({"stages": [{**TEXT, "steps": 0}]}, "invalid_field", "stages.0.num_inference_steps", "greater"),
        ({"stages": [{**TEXT, "steps": 5, "num_inference_steps": 5}]}, "invalid_field", "stages.0", "0: steps and"),
        (
            {"stages": [{**TEXT, "scheduler": "Eulerish"}]},
            "unknown_scheduler",
            "stages.0.scheduler",
            "EulerDiscreteScheduler",
        ),
        (
            {"stages": [{**TEXT, "scheduler_options": {"use_karras": True}, "scheduler": "Euler"}]},
            "unknown_field",
            "stages.0.scheduler_options.use_karras",
            "no such field",
        ),
        (
            {"stages": [{**TEXT, "scheduler_options": {"use_karras_sigmas": True}}]},
            "invalid_field",
            "stages.0.scheduler",
            "name the scheduler",
        ),
        (
            {"stages": [{**TEXT, "scheduler": "DDIM", "scheduler_options": {"solver_order": 2}}]},
            "invalid_field",
            "stages.0.scheduler_options.solver_order",
            "DDIMScheduler has no solver_order",
        ),
        ({"stages": [{**TEXT, "timesteps": [900, 500]}]}, "invalid_field", "stages.0.timesteps", "DDPMScheduler"),
        (
            {"stages": [{**TEXT, "scheduler": "Euler", "timesteps": [500, 500]}]},
            "invalid_field",
            "stages.0.timesteps",
            "falling",
        ),
        ({"stages": [{**TEXT, "timesteps": [1000]}]}, "invalid_field", "stages.0.timesteps.0", "less than"),
        ({"stages": [{**X2, "scheduler": "DDIMScheduler"}]}, "unknown_field", "stages.0.scheduler", "no such field"),
        ({"stages": [{**REDRAW, "strength": 0}]}, "invalid_field", "stages.0.strength", "greater than 0"),
        ({"stages": [{**REDRAW, "strength": 0.1, "steps": 5}]}, "no_steps", "stages.0.strength", "0.2"),
        ({"stages": [TEXT], "seed": 2**53}, "invalid_field", "seed", "less than or equal"),
        ({"stages": [TEXT], "seed": -1}, "invalid_field", "seed", "greater"),
        ({"stages": [TEXT], "fit": "crop"}, "invalid_field", "fit", "'cover'"),
        ({"stages": [TEXT], "\ud800": 1}, "invalid_field", "chain", "unicode"),
        ({"stages": [TEXT], "prompt": "a\x00b"}, "invalid_field", "prompt", "prompt: no control"),
        ({"stages": [TEXT], "prompt": "\ud800"}, "invalid_field", "prompt", "unicode"),
        ({"stages": [TEXT], "prompt": "a" * 2001}, "invalid_field", "prompt", "2000"),
        ({"stages": [TEXT], "webhook": "http://127.0.0.1"}, "unknown_field", "webhook", "no such field"),
    ],
)
def test_bad_fields_are_named(data: dict[str, Any], code: str, loc: str, word: str) -> None:
    with refused(code, loc, word):
        parse_chain({"prompt": "x", **data})


def test_every_wrong_field_is_said_at_once() -> None:
    impossible = {**REDRAW, "eta": 0.5, "scheduler": "EulerDiscreteScheduler"}
    stages = [{**TEXT, "steps": 0}, {"kind": "paint"}, {**REDRAW, "strength": 2}, {"kind": ["img2img"]}, impossible, X4]
    with pytest.raises(InvalidJob) as info:
        parse_chain({"seed": -1, "colour": 1, "stages": [*stages, impossible]})
    assert {error.loc: error.msg.split(";")[0] for error in info.value.errors if "kind" in error.loc} == {
        "stages.1.kind": "not an installed kind",
        "stages.3.kind": "not an installed kind",
    }
    assert {error.loc for error in info.value.errors if "kind" not in error.loc} == {
        "seed",
        "colour",
        "stages.0.num_inference_steps",
        "stages.2.strength",
        "stages.4.eta",
        "stages.6.eta",
    }


def test_a_chain_has_so_many_stages_and_no_more() -> None:
    assert len(chain(*[REDRAW] * MAX_STAGES).stages) == MAX_STAGES
    with refused("bad_length", "stages", f"1 to {MAX_STAGES} stages, not {MAX_STAGES + 1}"):
        chain(*[REDRAW] * (MAX_STAGES + 1))


def test_a_chain_that_ends_without_an_image_is_refused(catalog: Catalog, here: Settings) -> None:
    # Given a kind that gives latents alone, as another package may bring
    class Blind(kinds()["img2img"]):  # type: ignore[misc]
        gives = frozenset({Medium.LATENTS})

    first, last = chain(TEXT, REDRAW).stages
    blind = Chain.model_construct(prompt="a", stages=(first, Blind(**last.model_dump())))
    # Then
    with refused("medium_mismatch", "stages.1", "img2img gives no image"):
        plan(blind, catalog, here)


def test_a_size_at_the_limit_is_taken(catalog: Catalog, here: Settings) -> None:
    tight = here.model_copy(update={"max_side": 512, "max_area": 512 * 512})
    assert plan(chain({**TEXT, "width": 512, "height": 512}), catalog, tight)[0].size == Size(512, 512)
    with refused("too_large", "stages.0", "512 pixels a side and 262144 in all"):
        plan(chain({**TEXT, "width": 520, "height": 64}), catalog, tight)
    with refused("bad_size", "stages.1.height", "only the first stage"):
        plan(chain(TEXT, {**REDRAW, "height": 64}), catalog, here)


def test_only_numbers_that_json_knows_are_canonical() -> None:
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})
    assert canonical({"ä": 1}) == '{"ä":1}'


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("c.json", '{"stages": [], "stages": []}', "twice"),
        ("c.json", '{"seed": NaN}', "NaN"),
        ("c.json", "[" * 100_000, "chain file"),
        ("c.json", "[]", "mapping"),
        ("c.yaml", "stages: 1\nstages: 2", "twice"),
        ("c.yaml", "!!python/object/apply:os.system ['true']", "chain file"),
        ("c.yaml", "{", "chain file"),
        ("missing.json", None, "No such file"),
    ],
)
def test_bad_chain_files_are_refused(tmp_path: Path, name: str, text: str | None, word: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidJob, match=word) as info:
        read_chain_file(tmp_path / name)
    assert info.value.code == "bad_file"


def test_a_chain_file_may_be_so_large_and_no_larger(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{}".ljust(MAX_FILE_BYTES))
    assert read_chain_file(path) == {}
    path.write_text("{}".ljust(MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidJob, match="larger than 1 MiB"):
        read_chain_file(path)


def test_what_a_chain_file_is_not_is_told_with_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for text, why in (("{", "c.json: not a chain file: Expecting"), ('{"seed": ' + "9" * 5000 + "}", "5000 digits$")):
        path.write_text(text)
        with pytest.raises(InvalidJob, match=why) as info:
            read_chain_file(path)
        assert info.value.hint.startswith("a chain file is JSON or YAML")
    with pytest.raises(InvalidJob, match="not a file"):
        read_chain_file(tmp_path)


def read_yaml(folder: Path, text: str) -> dict[str, Any]:
    (folder / "c.yml").write_text(text)
    return read_chain_file(folder / "c.yml")


def test_a_yaml_file_may_hold_so_much_and_no_more(tmp_path: Path) -> None:
    # A mapping, its key and its list are three entries.
    most = MAX_NODES - 3
    assert read_yaml(tmp_path, f"a: [{'1,' * most}]") == {"a": [1] * most}
    with pytest.raises(InvalidJob, match="within each other"):
        read_yaml(tmp_path, f"a: [{'1,' * (most + 1)}]")


@pytest.mark.parametrize("before", ["", "1, "])
def test_a_yaml_file_may_be_so_deep_and_no_deeper(tmp_path: Path, before: str) -> None:
    # Each list holds a number and the next list; the mapping and the last list's number are two levels more.
    deepest = MAX_DEPTH - 2
    read_yaml(tmp_path, "a: [[1], [1], " + f"[{before}" * (deepest - 1) + "1" + "]" * deepest)
    with pytest.raises(InvalidJob, match="within each other"):
        read_yaml(tmp_path, "a: [[1], [1], " + f"[{before}" * deepest + "1" + "]" * (deepest + 1))


def test_what_a_merge_brings_in_may_be_given_again(tmp_path: Path) -> None:
    stages = "stages: [&a {kind: text2img, steps: 3}, &b {kind: text2img, eta: 0.5}, {<<: *a, <<: *b, steps: 4}]"
    assert read_yaml(tmp_path, stages)["stages"][2] == {"kind": "text2img", "steps": 4, "eta": 0.5}


def test_a_long_name_is_told_in_short() -> None:
    with pytest.raises(InvalidJob) as info:
        parse_chain({"stages": [TEXT], "x" * 1000: 1})
    (found,) = info.value.errors
    assert (found.loc, found.msg, found.code) == ("x" * 100, "no such field", "unknown_field")


def test_json_and_yaml_chain_files_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"prompt": "a cat", "stages": HIRES}))
    (tmp_path / "c.yaml").write_text(
        "prompt: a cat\n"
        "stages:\n- kind: text2img\n- {kind: img2img, strength: 0.5}\n- kind: upscale_latent\n- kind: upscale\n"
    )
    assert parse_chain(read_chain_file(tmp_path / "c.json")) == parse_chain(read_chain_file(tmp_path / "c.yaml"))


def test_the_aliases_people_know_become_the_fields_own() -> None:
    aliased = chain(
        {**TEXT, "steps": 4, "cfg_scale": 3.0, "sampler_name": "DDIMScheduler"},
        {"kind": "img2img", "denoising_strength": 0.5},
    )
    plain = chain(
        {**TEXT, "num_inference_steps": 4, "guidance_scale": 3.0, "scheduler": "DDIMScheduler"},
        {"kind": "img2img", "strength": 0.5},
    )
    assert aliased == plain


def test_overrides_reach_every_stage_that_has_the_field_or_one() -> None:
    # When
    changed = override(HIRES, {"steps": 3, "1.strength": 0.9})
    # Then
    assert all(stage["num_inference_steps"] == 3 for stage in changed)
    assert changed[1]["strength"] == 0.9
    for nowhere in ("0.strength", "9.steps", "1.strength.x", "lora.scale", "1", "1."):
        with refused("unknown_field", nowhere, "no stage of this chain has this parameter"):
            override(HIRES, {nowhere: 0.9})


def test_an_override_takes_the_place_of_the_alias_that_was_written() -> None:
    (changed,) = override([{**TEXT, "steps": 9, "cfg_scale": 2.0}], {"num_inference_steps": 3})
    assert changed == {**TEXT, "cfg_scale": 2.0, "num_inference_steps": 3}


def test_a_size_is_set_where_the_chain_begins() -> None:
    assert override([TEXT, REDRAW], {"width": 128, "height": 64}) == [{**TEXT, "width": 128, "height": 64}, REDRAW]


@pytest.mark.parametrize(
    ("stages", "multiple"), [([REDRAW], 8), ([REDRAW, X2], 32), ([REDRAW, X2, X4], 32), ([X4, REDRAW, X2], 8)]
)
def test_an_input_image_fits_all_stages(stages: list[dict[str, Any]], multiple: int) -> None:
    assert input_multiple(chain(*stages)) == multiple


def test_presets_are_possible(catalog: Catalog, here: Settings) -> None:
    for preset in catalog.presets.values():
        parsed = parse_chain({"stages": preset.stages})
        plan(parsed, catalog, here, Size(64, 64) if parsed.stages[0].takes else None)


class TestRecipes:
    def test_a_recipe_says_all_that_decides_the_output(self, catalog: Catalog, here: Settings) -> None:
        # Given
        image = InputImage(sha256="a" * 64, width=64, height=64)
        asked = chain({**REDRAW, "steps": 4, "prompt": "a pear", "seed": 5}, X4, seed=7, negative_prompt="blur")
        # When
        first, last = (job := make_job(asked, catalog, here, image=image)).recipes
        # Then
        assert first == {
            "kind": "img2img",
            "version": 1,
            "parameters": {
                "prompt": "a pear",
                "negative_prompt": "blur",
                "strength": 0.5,
                "num_inference_steps": 4,
                "guidance_scale": 7.5,
                "scheduler": None,
                "scheduler_options": SchedulerOptions().model_dump(),
                "timesteps": None,
                "eta": 0.0,
                "clip_skip": None,
                "loras": [],
                "embeddings": [],
                "ip_adapters": [],
                "controls": [],
                "freeu": None,
                "vae": None,
                "weighting": "none",
                "guidance_rescale": 0.0,
                "denoising_start": None,
                "aesthetic_score": 6.0,
                "negative_aesthetic_score": 2.5,
                "vae_tiling": False,
            },
            "checkpoint": {
                "name": "tiny",
                "manifest": catalog.lock(catalog.checkpoints["tiny"]).manifest,
                "variant": None,
                "dtype": "float32",
                "space": "tiny",
            },
            "seed": 5,
            "size": [64, 64],
            "emits": "image",
            "exact": False,
            "given": {"image": "a" * 64},
        }
        assert (last["given"], last["seed"], last["size"]) == (job.keys[0], stage_seed(7, 1), [256, 256])
        assert (last["parameters"]["prompt"], last["parameters"]["negative_prompt"]) == ("a red apple", "blur")

    def test_a_recipe_read_back_is_the_same_recipe(self, catalog: Catalog, here: Settings) -> None:
        image = InputImage(sha256="a" * 64, width=64, height=64)
        for stages, given in (([{**TEXT, "width": 128, "height": 96}, *HIRES[1:]], None), ([REDRAW, X2], image)):
            job = make_job(chain(*stages, seed=7, negative_prompt="blur"), catalog, here, image=given)
            again = parse_chain({"stages": [stage_of(recipe) for recipe in job.recipes]})
            assert make_job(again, catalog, here, image=given).keys == job.keys

    def test_a_recipe_of_an_unknown_kind_is_refused(self, catalog: Catalog, here: Settings) -> None:
        (recipe,) = make_job(chain(TEXT), catalog, here).recipes
        with pytest.raises(InvalidJob, match="no stage of the kind paint is installed") as info:
            stage_of({**recipe, "kind": "paint"})
        assert info.value.code == "unknown_kind"

    def keys(self, catalog: Catalog, here: Settings, *stages: dict[str, Any], **fields: Any) -> tuple[str, ...]:
        return make_job(chain(*stages, **{"seed": 7, **fields}), catalog, here).keys

    def test_equal_chains_have_equal_keys_and_equal_prefixes_share_them(self, catalog: Catalog, here: Settings) -> None:
        first = self.keys(catalog, here, *HIRES)
        assert first == self.keys(catalog, here, *HIRES)
        assert first[:3] == self.keys(catalog, here, TEXT, REDRAW, X2, {**X4, "noise_level": 5})[:3]

    @pytest.mark.parametrize(
        "changed",
        [
            {"prompt": "a pear"},
            {"negative_prompt": "blur"},
            {"seed": 8},
            {"exact": True},
        ],
    )
    def test_what_the_chain_says_is_in_every_key(
        self, catalog: Catalog, here: Settings, changed: dict[str, Any]
    ) -> None:
        before, after = self.keys(catalog, here, *HIRES), self.keys(catalog, here, *HIRES, **changed)
        assert not set(before) & set(after)

    def test_a_parameter_changes_its_own_key_and_all_after(self, catalog: Catalog, here: Settings) -> None:
        before, after = (
            self.keys(catalog, here, *HIRES),
            self.keys(catalog, here, TEXT, {**REDRAW, "strength": 0.6}, X2, X4),
        )
        assert before[0] == after[0]
        assert not set(before[1:]) & set(after[1:])

    def test_a_prompt_of_its_own_overrides_the_chain_s(self, catalog: Catalog, here: Settings) -> None:
        before, after = (
            self.keys(catalog, here, *HIRES),
            self.keys(catalog, here, TEXT, REDRAW, X2, {**X4, "prompt": "sharp"}),
        )
        assert before[:3] == after[:3]
        assert before[3] != after[3]

    def test_other_weights_of_the_same_name_are_another_recipe(self, catalog: Catalog, here: Settings) -> None:
        before = self.keys(catalog, here, *HIRES)
        catalog.lock_path(catalog.checkpoints["tiny-x4"]).write_text(
            Lock(files={"unet/weights.safetensors": "f" * 64}).model_dump_json()
        )
        after = self.keys(catalog, here, *HIRES)
        assert before[:3] == after[:3]
        assert before[3] != after[3]

    def test_the_medium_it_emits_is_part_of_the_recipe(self, catalog: Catalog, here: Settings) -> None:
        assert self.keys(catalog, here, TEXT)[0] != self.keys(catalog, here, *HIRES)[0]
        assert self.keys(catalog, here, TEXT)[0] == self.keys(catalog, here, TEXT, X4)[0]

    def test_the_input_image_is_part_of_the_recipe(self, catalog: Catalog, here: Settings) -> None:
        images = [InputImage(sha256=digit * 64, width=64, height=64) for digit in "ab"]
        keys = [make_job(chain(REDRAW, seed=7), catalog, here, image=image).keys for image in images]
        assert keys[0] != keys[1]

    def test_what_is_kept_is_no_part_of_the_recipe(self, catalog: Catalog, here: Settings) -> None:
        # Given the same chain twice, of which something is kept once
        stages = [{"kind": "text2img"}, {"kind": "img2img"}]
        plain, kept = (
            make_job(parse_chain({"stages": stages, "seed": 1, **more}), catalog, here)
            for more in ({}, {"keep": "preview"})
        )
        # Then both have the same executions, and the workers of all stages but the last are told
        assert kept.keys == plain.keys
        assert [json.loads(kept.payload(index)).get("keep") for index in (0, 1)] == ["preview", None]
        assert [json.loads(plain.payload(index)).get("keep") for index in (0, 1)] == [None, None]

    @pytest.mark.parametrize("keep", ["all", "", None, True, ["image"]])
    def test_only_three_things_can_be_kept(self, keep: object) -> None:
        with pytest.raises(InvalidJob) as info:
            parse_chain({"stages": [{"kind": "text2img"}], "keep": keep})
        assert [(each.loc, each.code) for each in info.value.errors] == [("keep", "invalid_field")]

    def test_no_recipe_or_payload_holds_the_job(self, catalog: Catalog, here: Settings) -> None:
        job = make_job(chain(*HIRES), catalog, here, idempotency_key="mine")
        for index in range(4):
            assert json.loads(job.payload(index)) == {"v": 1, "recipes": list(job.recipes[: index + 1])}
            assert job.id not in job.payload(index)
            assert "mine" not in job.payload(index)

    def test_reuse_off_gives_executions_of_its_own_and_the_same_recipe(self, catalog: Catalog, here: Settings) -> None:
        jobs = [make_job(chain(*HIRES, seed=7, reuse=False), catalog, here) for _ in range(2)]
        assert jobs[0].keys == jobs[1].keys == self.keys(catalog, here, *HIRES)
        assert not {jobs[0].execution(i) for i in range(4)} & {jobs[1].execution(i) for i in range(4)}
        shared = make_job(chain(*HIRES, seed=7), catalog, here)
        assert tuple(shared.execution(i) for i in range(4)) == shared.keys

    def test_unpulled_checkpoints_are_refused_with_the_command(self, catalog: Catalog, here: Settings) -> None:
        catalog.lock_path(catalog.checkpoints["tiny"]).unlink()
        with pytest.raises(InvalidJob) as info:
            make_job(chain(TEXT), catalog, here)
        assert info.value.code == "not_pulled"
        assert "farm models pull tiny" in info.value.hint
        assert str(catalog.lock_path(catalog.checkpoints["tiny"])).endswith(LOCK)


class TestSeeds:
    def test_the_first_stage_has_the_job_s_seed_and_later_ones_a_hash(self, catalog: Catalog, here: Settings) -> None:
        job = make_job(chain(*HIRES, seed=7), catalog, here)
        seeds = [recipe["seed"] for recipe in job.recipes]
        assert seeds[0] == 7
        assert seeds[1:] == [stage_seed(7, index) for index in (1, 2, 3)]
        assert len(set(seeds)) == 4
        assert all(0 <= seed <= MAX_SEED for seed in seeds)
        # What old pictures were made with stays as it is.
        assert stage_seed(7, 1) == 7586741312996310

    def test_a_stage_s_own_seed_wins(self, catalog: Catalog, here: Settings) -> None:
        job = make_job(chain(TEXT, {**REDRAW, "seed": 99}, seed=7), catalog, here)
        assert [recipe["seed"] for recipe in job.recipes] == [7, 99]

    def test_image_i_of_a_run_has_seed_plus_i(self, catalog: Catalog, here: Settings) -> None:
        jobs = make_jobs(chain(TEXT, seed=7), catalog, here, idempotency_key="k", count=3)
        assert [job.seed for job in jobs] == [7, 8, 9]
        assert len({job.idempotency_key for job in jobs}) == 3

    def test_a_job_of_a_run_is_the_one_that_its_seed_alone_would_make(self, catalog: Catalog, here: Settings) -> None:
        """And written as `canonical` writes it, though what the jobs of a run share is worked out once."""
        image = InputImage(sha256="0" * 64, width=64, height=64)
        for stages in ((TEXT, REDRAW, X2, X4), (REDRAW, {**X2, "seed": 3}, X4)):
            given = None if stages[0] == TEXT else image
            asked = {"prompt": 'Bär \u2028 "x"', "reuse": False}
            run = make_jobs(chain(*stages, seed=7, **asked), catalog, here, image=given, count=3)
            for job in run:
                alone = make_job(chain(*stages, seed=job.seed, **asked), catalog, here, image=given)
                assert (alone.recipes, alone.keys) == (job.recipes, job.keys)
                assert [recipe_key(recipe) for recipe in job.recipes] == list(job.keys)
                written = {**job.chain.model_dump(mode="json", exclude_unset=True), "seed": job.seed}
                spec = {"v": 1, "chain": written, "image": given and given.model_dump(), "recipes": job.recipes}
                assert job.spec == alone.spec == canonical(spec)
                for index in range(len(stages)):
                    assert job.payload(index) == canonical({"v": 1, "recipes": job.recipes[: index + 1]})
            assert len({key for job in run for key in job.keys}) == 3 * len(stages)

    def test_a_seed_drawn_at_random_is_the_same_for_the_same_key(self, catalog: Catalog, here: Settings) -> None:
        first, again, other, more = (
            make_job(chain(TEXT), catalog, here, idempotency_key=key) for key in ("k#1", "k#1", "k#2", None)
        )
        assert first.seed == again.seed == 2372954686
        assert first.spec == again.spec
        assert len({first.seed, other.seed, more.seed, make_job(chain(TEXT), catalog, here).seed}) == 4

    def test_a_run_ends_with_the_largest_seed(self, catalog: Catalog, here: Settings) -> None:
        assert make_jobs(chain(TEXT, seed=MAX_SEED - 1), catalog, here, count=2)[1].seed == MAX_SEED
        with refused("invalid_field", "seed", "seed: seed + count goes beyond 9007199254740991"):
            make_jobs(chain(TEXT, seed=MAX_SEED), catalog, here, count=2)


def test_the_largest_numbers_survive_the_spec(catalog: Catalog, here: Settings) -> None:
    job = make_job(chain(TEXT, seed=MAX_SEED), catalog, here)
    assert json.loads(job.spec)["chain"]["seed"] == MAX_SEED
    assert canonical({"b": MAX_SEED, "a": [], "ü": "ß"}) == '{"a":[],"b":9007199254740991,"ü":"ß"}'
    with pytest.raises(ValueError, match="not JSON"):
        canonical(float("nan"))


def test_ids_sort_by_time_and_are_version_7() -> None:
    before = int(time.time() * 1000)
    ids = [new_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert sorted(found[:13] for found in ids) == [found[:13] for found in ids]
    read = [UUID(found) for found in ids]
    assert {(found.version, found.variant) for found in read} == {(7, RFC_4122)}
    assert all(before <= found.int >> 80 <= time.time() * 1000 for found in read)
    # And all that is left is drawn: of twelve and of sixty-two bits each is set somewhere
    drawn = [(found.int >> 64 & 0xFFF, found.int & (1 << 62) - 1) for found in read]
    assert [reduce(or_, bits) for bits in zip(*drawn, strict=True)] == [0xFFF, (1 << 62) - 1]


def test_the_installed_kinds() -> None:
    assert {"img2img", "text2img", "upscale", "upscale_latent"} <= set(kinds())


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "deadline_s",
            [0, -1, MAX_DEADLINE_S + 1, float("nan"), 1e30, True, "5"],
            "deadline_s: more than 0 and at most",
        ),
        ("priority", [-1, 101, True, 5.0, "5"], "priority: a whole number from 0 to 100"),
        ("lane", ["", "fast", None, 1], "lane: one of interactive, bulk"),
        ("idempotency_key", ["", "x" * 256, "a\nb", "\ud800", b"x", 7], "idempotency_key: 1 to 255 characters"),
    ],
)
def test_an_impossible_option_is_refused(
    catalog: Catalog, here: Settings, name: str, values: list[Any], words: str
) -> None:
    for value in values:
        with refused("invalid_field", name, words):
            make_job(chain(TEXT), catalog, here, **{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("deadline_s", [None, 0.5, 1, MAX_DEADLINE_S]),
        ("priority", [0, 50, 100]),
        ("lane", ["interactive", "bulk"]),
        ("run", ["", "r"]),
    ],
)
def test_a_possible_option_is_the_job_s(catalog: Catalog, here: Settings, name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(make_job(chain(TEXT), catalog, here, **{name: value}), name) == value


def test_what_nobody_says_is_the_default(catalog: Catalog, here: Settings) -> None:
    job = make_job(chain(TEXT), catalog, here)
    assert (job.lane, job.priority, job.deadline_s, job.run, job.image) == ("interactive", 50, None, "", None)
    assert (job.plan, job.idempotency_key[36:]) == (plan(job.chain, catalog, here), "#0")


def test_the_longest_key_is_taken_and_numbered(catalog: Catalog, here: Settings) -> None:
    job = make_jobs(chain(TEXT), catalog, here, idempotency_key="x" * 255, count=4)[3]
    assert job.idempotency_key == "x" * 255 + "#3"


def test_the_input_image_is_the_job_s(catalog: Catalog, here: Settings) -> None:
    image = InputImage(sha256="a" * 64, width=64, height=64)
    job = make_job(chain(REDRAW, seed=7), catalog, here, image=image)
    assert job.image == image
    assert json.loads(job.spec) == {
        "v": 1,
        "chain": {"prompt": "a red apple", "seed": 7, "stages": [REDRAW]},
        "image": {"sha256": "a" * 64, "width": 64, "height": 64},
        "recipes": list(job.recipes),
    }


def test_overrides_leave_what_is_no_stage_for_the_parser_to_name() -> None:
    with refused("unknown_kind", "stages.0.kind", "mapping"):
        parse_chain({"stages": override(["text2img"], {"steps": 3})})


def test_a_border_is_no_scale() -> None:
    wide = {"kind": "inpaint", "border": {"right": 128}}
    assert input_multiple(chain(wide, REDRAW, X2)) == input_multiple(chain(REDRAW, X2))
    large = {"kind": "esrgan", "factor": 2, "checkpoint": "tiny-compact"}
    assert input_multiple(chain(large, REDRAW)) == 8


def test_two_embeddings_of_one_word_are_refused(catalog: Catalog, here: Settings) -> None:
    word = catalog.adapters["tiny-word"]
    catalog.adapters["twin"] = word.model_copy(update={"name": "twin"})
    with refused("wrong_adapter", "stages.0.embeddings.1", "same word"):
        plan(chain({**TEXT, "embeddings": ["tiny-word", "twin"]}), catalog, here)


def advised(catalog: Catalog, **recommended: Any) -> Catalog:
    """The catalog with recommendations for `tiny`."""
    entry = catalog.checkpoints["tiny"].model_copy(update={"recommended": Recommended.model_validate(recommended)})
    return catalog.model_copy(update={"checkpoints": {**catalog.checkpoints, "tiny": entry}})


def test_what_is_recommended_for_a_checkpoint_is_its_default(catalog: Catalog, here: Settings) -> None:
    # Given a checkpoint that wants four trailing steps and no guidance
    trailing = {"scheduler": "Euler", "scheduler_options": {"timestep_spacing": "trailing"}}
    quick = advised(catalog, num_inference_steps=4, guidance_scale=0.0, **trailing)
    # And a chain that leaves all of it open, and one that gives some
    given = {**REDRAW, "num_inference_steps": 9, "scheduler": "DDIMScheduler"}
    # When
    job = make_job(chain(TEXT, given, X2), quick, here)
    # Then each has what it has a field for, and what was given stays, a schedule as a whole
    first, second, third = (recipe["parameters"] for recipe in job.recipes)
    assert (first["num_inference_steps"], first["guidance_scale"]) == (4, 0.0)
    assert (first["scheduler"], first["scheduler_options"]["timestep_spacing"]) == (
        "EulerDiscreteScheduler",
        "trailing",
    )
    assert (second["num_inference_steps"], second["guidance_scale"]) == (9, 0.0)
    assert (second["scheduler"], second["scheduler_options"]["timestep_spacing"]) == ("DDIMScheduler", None)
    assert third == make_job(chain(TEXT, REDRAW, X2), catalog, here).recipes[2]["parameters"]


def test_timesteps_that_are_given_are_all_the_steps(catalog: Catalog, here: Settings) -> None:
    quick = advised(catalog, num_inference_steps=4)
    given = {**TEXT, "scheduler": "LCMScheduler", "timesteps": [999, 500]}
    (stage,) = (item.stage for item in plan(chain(given), quick, here))
    assert stage == plan(chain(given), catalog, here)[0].stage


def test_a_recommendation_ends_where_it_was_recorded(catalog: Catalog, here: Settings) -> None:
    # Given a job of when nothing was recommended
    before = make_job(chain(TEXT), catalog, here, idempotency_key="key")
    # When its recipe is read after something is
    again = parse_chain({"prompt": "", "stages": [stage_of(before.recipes[0])]})
    later = make_job(again, advised(catalog, num_inference_steps=4, guidance_scale=0.0), here, idempotency_key="key")
    # Then
    assert later.recipes[0]["parameters"] == before.recipes[0]["parameters"]


def test_what_is_given_must_go_with_what_is_recommended(catalog: Catalog, here: Settings) -> None:
    with refused("invalid_field", "stages.0.eta", "EulerDiscreteScheduler", "the catalog recommends for tiny"):
        plan(chain({**TEXT, "eta": 0.5}), advised(catalog, scheduler="EulerDiscreteScheduler"), here)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE Karras", "PLMS", "KDPM2DiscreteScheduler"])
def test_a_scheduler_that_a_checkpoint_does_not_go_with_is_refused(here: Settings, sampler: str) -> None:
    # Given an upscaler whose denoiser names the picture itself
    catalog = Catalog.load(here)
    upscale = {**X4, "checkpoint": "demo-x4"}
    with refused("unknown_scheduler", "stages.0.scheduler", "demo-x4", "another stage alone"):
        plan(chain({**upscale, "scheduler": sampler}), catalog, here, Size(64, 64))
    # Then others go
    assert plan(chain({**upscale, "scheduler": "DPM++ 2M Karras"}), catalog, here, Size(64, 64))


def test_what_only_a_chain_can_give_is_no_fault_of_a_recommendation(here: Settings) -> None:
    # Given a kind that needs a mask or a border
    demo = Catalog.load(here).checkpoints["demo"]
    # Then
    assert "inpaint" in demo.kinds
    assert demo.recommended.num_inference_steps
    assert demo.misadvised() is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("{ num_inference_steps = 0 }", ("num_inference_steps", "greater than or equal to 1")),
        ('{ num_inference_steps = "4" }', ("num_inference_steps", "valid integer")),
        ("{ num_inference_steps = 1 }", ("strength", "1 steps is less than one step")),
        ("{ step = 4 }", ("step", "Extra inputs")),
        ("{ seed = 4 }", ("seed", "Extra inputs")),
        ('{ scheduler = "euler" }', ("scheduler", "EulerDiscreteScheduler")),
        ('{ scheduler_options = { timestep_spacing = "trailing" } }', ("scheduler_options", "scheduler")),
    ],
)
def test_a_recommendation_that_no_stage_takes_is_refused(tmp_path: Path, told: str, words: tuple[str, ...]) -> None:
    with refused("bad_file", "", "checkpoints.mine.recommended", *words):
        one_checkpoint(tmp_path, '["text2img", "img2img"]', told)


def test_a_recommendation_for_what_no_stage_of_a_checkpoint_has_is_refused(tmp_path: Path) -> None:
    with refused("bad_file", "", "num_inference_steps: not a parameter of esrgan"):
        one_checkpoint(tmp_path, '["esrgan"]', "{ num_inference_steps = 4 }", family="esrgan-x4")


def test_a_recommendation_for_a_kind_that_is_not_installed_is_let_be(tmp_path: Path) -> None:
    found = one_checkpoint(tmp_path, '["text2img", "video"]', "{ guidance_scale = 3.0 }")
    assert found.checkpoints["mine"].recommended.guidance_scale == 3.0


def one_checkpoint(folder: Path, kinds: str, recommended: str, family: str = "sd") -> Catalog:
    """The farm's catalog with one more checkpoint, `mine`."""
    path = folder / "catalog.toml"
    path.write_text(
        f'[checkpoints.mine]\nkinds = {kinds}\nnative = 512\nspace = "sd1"\nlicence = "none"\n'
        f'repo = "owner/name"\nfamily = "{family}"\nrecommended = {recommended}\n'
    )
    return Catalog.load(Settings(data=folder, catalog=path))
