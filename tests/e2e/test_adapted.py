"""A farm of real processes runs chains with images, adapters and a safety policy of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from farm.client import Farm
from farm.errors import InvalidJob, NotFound, StageFailed
from farm.image import pixels_sha256
from tests.e2e.rig import Rig
from tests.e2e.test_chain import PROMPT, pixels

SLOTS = ("text2img.tiny,img2img.tiny", "inpaint.tiny,text2img.tiny-xl,img2img.tiny-xl-refiner")


def forget(rig: Rig, value: str) -> None:
    """Deletes a stored image behind the farm's back."""
    store = rig.farm.store
    store.client.delete_object(Bucket=rig.farm.settings.bucket, Key=store.blob_key(value.removeprefix("sha256:")))


@pytest.fixture(scope="module", autouse=True)
def workers(rig: Rig) -> None:
    """Two children; the first owns two stages of one checkpoint."""
    rig.supervise(SLOTS)
    rig.ready(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain file and the images that it names."""
    found = tmp_path_factory.mktemp("chain")
    mask = Image.new("L", (100, 80))
    ImageDraw.Draw(mask).rectangle((20, 20, 60, 60), 255)
    mask.save(found / "mask.png")
    Image.radial_gradient("L").convert("RGB").save(found / "edges.jpg")
    chain = {
        "prompt": PROMPT,
        "seed": 5,
        "stages": [
            {
                "kind": "text2img",
                "steps": 4,
                "loras": [{"name": "tiny-lora", "weight": 0.6}],
                "ip_adapters": [{"name": "tiny-ip", "image": "edges.jpg"}],
                "controls": [{"name": "tiny-canny", "image": "edges.jpg", "process": "canny"}],
            },
            {"kind": "img2img", "steps": 6, "weighting": "a1111", "prompt": "a (red:1.3) apple"},
            {"kind": "inpaint", "steps": 4, "mask": "mask.png", "border": {"right": 16}},
        ],
    }
    (found / "chain.json").write_text(json.dumps(chain))
    return found


def test_a_chain_with_images_and_adapters_is_made_again_and_by_its_program(
    rig: Rig, folder: Path, tmp_path: Path
) -> None:
    # Given
    job = rig.farm.render(chain=folder / "chain.json").wait(180)
    assert job.images[0].size == (80, 64)
    # Then the record names hashes, and no path of this machine
    assert str(folder) not in job.record.spec
    assert job.record.spec.count('"sha256:') == 6  # three images, in the chain and in the recipes
    # When it is made again from the picture alone
    (path,) = job.download(tmp_path / "made.png")
    again, same = rig.farm.rerun(path)
    assert same
    assert pixels(again.wait(120)) == pixels(job)
    # And by the plain program beside the images that `farm script -o` writes
    for name, data in job.input_images().items():
        (tmp_path / name).write_bytes(data)
    program = job.script()
    assert "farm" not in program.replace(str(rig.farm.settings.models_dir), "").replace(rig.farm.settings.bucket, "")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert pixels_sha256((tmp_path / "out.png").read_bytes()) == pixels(job)


def test_the_same_chain_file_is_the_same_recipe(rig: Rig, folder: Path) -> None:
    first, second = (rig.farm.render(chain=folder / "chain.json").wait(180) for _ in range(2))
    recipes = [json.loads(job.record.spec)["recipes"] for job in (first, second)]
    assert len(recipes[0]) == 3
    assert recipes[0] == recipes[1]


def test_images_are_given_as_files_paths_and_bytes(rig: Rig, folder: Path, tmp_path: Path) -> None:
    chain = {"stages": [{"kind": "inpaint", "steps": 2}]}
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(tmp_path / "in.png")
    masks = (folder / "mask.png", str(folder / "mask.png"), (folder / "mask.png").read_bytes())
    jobs = [rig.farm.render(PROMPT, chain=chain, image=tmp_path / "in.png", seed=2, mask=mask) for mask in masks]
    assert len({job.record.stages[0].exec for job in jobs}) == 1
    assert len({pixels(job.wait(120)) for job in jobs}) == 1


@pytest.mark.parametrize(
    ("mask", "code", "word"),
    [
        ("nowhere.png", "bad_image", "no file of this name"),
        ("sha256:" + "0" * 64, "bad_image", "no such image is stored"),
        ("sha256:../../etc/passwd", "bad_image", "no such image is stored"),
        ("https://example.org/mask.png", "bad_image", "addresses are not fetched"),
        ("~nobody-at-all/mask.png", "bad_image", "no file of this name"),
        ("x" * 4000, "bad_image", "cannot be read"),
        ("m\0ask.png", "bad_image", "cannot be read"),
        (b"no image", "bad_image", "not a PNG, JPEG or WebP"),
        ("black.png", "bad_image", "all black"),
    ],
)
def test_a_bad_mask_is_refused_and_leaves_nothing(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: object, code: str, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (64, 64)).save("black.png")
    Image.new("RGB", (64, 64), "red").save("in.png")
    before = len(rig.farm.jobs(limit=1000))
    with pytest.raises(InvalidJob) as info:
        rig.farm.render(PROMPT, chain={"stages": [{"kind": "inpaint"}]}, image="in.png", mask=mask)
    (wrong,) = info.value.errors
    assert (wrong.loc, wrong.code) == ("stages.0.mask", code)
    assert word in wrong.msg
    assert len(rig.farm.jobs(limit=1000)) == before


def test_a_lost_image_fails_the_job_and_says_which(rig: Rig, folder: Path) -> None:
    # Given a submitted job whose mask is gone before a worker looks
    chain = rig.farm.chain(folder / "chain.json", seed=99)
    (job,) = rig.farm.jobs_of(chain)
    value, _ = job.chain.stages[2].uploads()["mask"]
    forget(rig, value)
    # When
    handle = rig.farm.submit([job])[0]
    with pytest.raises(StageFailed) as info:
        handle.wait(120)
    # Then the stages before it keep their outputs
    assert info.value.code == "image_lost"
    assert "mask" in info.value.message
    assert [stage.state for stage in handle.record.stages][:2] == ["committed"] * 2
    # And a rerun of another picture with it says so at once
    rig.farm.render(chain=folder / "chain.json").wait(120)  # stores it again


def test_base_and_refiner_share_one_schedule(rig: Rig) -> None:
    halves = {"steps": 10, "scheduler": "Euler"}
    chain = {
        "stages": [
            {"kind": "text2img", "checkpoint": "tiny-xl", **halves, "denoising_end": 0.8},
            {"kind": "img2img", "checkpoint": "tiny-xl-refiner", **halves, "denoising_start": 0.8},
        ]
    }
    job = rig.farm.render(PROMPT, chain=chain, seed=3).wait(120)
    assert [stage.steps for stage in job.record.stages] == [8, 2]
    assert json.loads(job.record.stages[0].output)["medium"] == "latents"


def test_what_a_text_encoder_did_not_read_is_told(rig: Rig) -> None:
    chain = {"stages": [{"kind": "text2img", "steps": 1}]}
    job = rig.farm.render("castle " * 80 + "zebra", chain=chain, seed=3).wait(120)
    assert json.loads(job.record.stages[0].output)["unread"].replace(" ", "").endswith("zebra")
    read = rig.farm.render("a castle", chain=chain, seed=3).wait(120)
    assert "unread" not in json.loads(read.record.stages[0].output)


def test_a_farm_with_a_safety_policy_takes_jobs_with_the_same_policy(rig: Rig, tmp_path: Path) -> None:
    # Given a worker that blurs what its checker finds, which is everything
    told = {"FARM_SAFETY": "blur", "FARM_SAFETY_CHECKER": "tiny-prude"}
    rig.supervise(["text2img.tiny-style"], "safe", **told)
    rig.ready(3)
    chain = {"stages": [{"kind": "text2img", "checkpoint": "tiny-style", "steps": 2}]}
    # When a job comes without the policy
    with pytest.raises(StageFailed) as info:
        rig.farm.render(PROMPT, chain=chain, seed=1).wait(120)
    # Then it is refused, and says how to submit it
    assert info.value.code == "wrong_policy"
    # When it comes with it
    safe = Farm(rig.farm.settings.model_copy(update={"safety": "blur", "safety_checker": "tiny-prude"}))
    job = safe.render(PROMPT, chain=chain, seed=1).wait(120)
    # Then the picture is blurred, tagged, and made again the same
    assert json.loads(job.record.stages[0].output)["tags"] == ["nsfw"]
    again, _ = safe.rerun(job.download(tmp_path / "blurred.png")[0])
    assert again.wait(120).images[0].tobytes() == job.images[0].tobytes()
    plain = rig.farm.render(PROMPT, chain={"stages": [{"kind": "text2img", "steps": 2}]}, seed=1).wait(120).images[0]
    rough, smooth = (np.abs(np.diff(np.asarray(each, float), axis=0)).mean() for each in (plain, job.images[0]))
    assert smooth < rough / 2
    safe.close()
    # And one that refuses says so
    strict = Farm(rig.farm.settings.model_copy(update={"safety": "refuse", "safety_checker": "tiny-prude"}))
    with pytest.raises(StageFailed) as info:
        strict.render(PROMPT, chain={"stages": [{"kind": "text2img", "steps": 2}]}, seed=1).wait(120)
    assert info.value.code == "unsafe_output"
    strict.close()


def test_an_unknown_image_in_a_picture_is_named(rig: Rig, folder: Path, tmp_path: Path) -> None:
    job = rig.farm.render(chain=folder / "chain.json", seed=77).wait(120)
    (path,) = job.download(tmp_path / "made.png")
    value, _ = (
        rig.farm.jobs_of(rig.farm.chain(folder / "chain.json"), upload=False)[0].chain.stages[2].uploads()["mask"]
    )
    forget(rig, value)
    with pytest.raises(NotFound, match="no longer stored"):
        rig.farm.rerun(path)
