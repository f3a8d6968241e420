"""A whole farm of real processes renders chains of the tiny family."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from PIL import Image
from redis import Redis

from farm.errors import InvalidJob, StageFailed
from farm.handle import JobHandle
from farm.image import pixels_sha256, read_recipe, to_png
from tests.e2e.rig import Rig, until

PROMPT = "a red apple on a blue background"


def pixels(job: JobHandle) -> str:
    (result,) = job.results
    return pixels_sha256(job.farm.store.get_blob(result.sha256, max_bytes=1 << 24))


@pytest.fixture(scope="module", autouse=True)
def workers(rig: Rig) -> None:
    """Four children, each owning one stage."""
    rig.supervise()
    rig.ready()


def test_a_four_stage_chain_runs_through_four_workers(rig: Rig) -> None:
    # When
    job = rig.farm.render(PROMPT, chain="hires", seed=7, steps=4).wait(120)
    # Then: four stages, each by another worker, latents until x4
    record = job.record
    assert [stage.state for stage in record.stages] == ["committed"] * 4
    assert len({stage.worker for stage in record.stages}) == 4
    assert [json.loads(stage.output)["medium"] for stage in record.stages] == ["latents", "latents", "image", "image"]
    (image,) = job.images
    assert image.size == (512, 512)
    assert image.mode == "RGB"
    assert len(image.getcolors(1 << 18) or range(1 << 18)) > 100, "a picture, not a flat field"


def test_the_result_can_be_read_by_a_program_that_knows_nothing_of_the_farm(rig: Rig) -> None:
    # Given
    job = rig.farm.render(PROMPT, chain="txt", seed=7, steps=4).wait(120)
    (result,) = job.results
    bucket, _, key = result.uri.removeprefix("s3://").partition("/")
    # When
    s3 = boto3.client(
        "s3",
        endpoint_url=rig.env["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=rig.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=rig.env["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    data = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    sidecar = json.loads(s3.get_object(Bucket=bucket, Key=key.removesuffix("png") + "json")["Body"].read())
    # Then
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    assert sidecar["job"] == job.id
    recipe = read_recipe(data)
    assert job.id not in json.dumps(recipe)
    assert recipe["recipes"][0]["seed"] == 7
    assert recipe["made"][0]["torch"]


def test_the_same_job_twice_with_reuse_off_gives_the_same_pixels(rig: Rig) -> None:
    first, second = (rig.farm.render(PROMPT, chain="hires", seed=11, steps=4, reuse=False) for _ in range(2))
    assert pixels(first.wait(120)) == pixels(second.wait(120))
    assert (
        rig.farm.render(PROMPT, chain="hires", seed=12, steps=4).wait(120).results[0].sha256 != first.results[0].sha256
    )


def test_an_equal_job_takes_the_committed_outputs(rig: Rig) -> None:
    # Given
    first = rig.farm.render(PROMPT, chain="refine", seed=21, steps=4).wait(120)
    commits = rig.farm.ledger.stats()["commits"]
    # When
    second = rig.farm.render(PROMPT, chain="refine", seed=21, steps=4).wait(120)
    # Then: a result of its own under its own key, and no stage ran again but the writing of that result
    assert second.results[0].sha256 == first.results[0].sha256
    assert second.results[0].key != first.results[0].key
    assert rig.farm.store.get_blob(second.results[0].sha256, 1 << 24)
    assert int(rig.farm.ledger.stats()["commits"]) - int(commits) == 1


def test_a_chain_that_begins_with_an_image(rig: Rig, tmp_path: Path) -> None:
    # Given a picture with transparency, a size that is no multiple of 8
    Image.linear_gradient("L").resize((101, 75)).convert("RGBA").save(tmp_path / "in.png")
    # When
    job = rig.farm.render(PROMPT, chain="style", image=tmp_path / "in.png", seed=3, steps=6).wait(120)
    # Then
    assert [json.loads(stage.output)["medium"] for stage in job.record.stages] == ["latents", "latents", "image"]
    assert job.images[0].size == (96, 72)


def test_an_image_is_upscaled_alone(rig: Rig, tmp_path: Path) -> None:
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "in.png")
    assert rig.farm.render(chain="upscale", image=tmp_path / "in.png", seed=3, steps=4).wait(120).images[0].size == (
        256,
        256,
    )


def test_rerun_makes_the_same_pixels_from_the_picture_alone(rig: Rig, tmp_path: Path) -> None:
    # Given
    job = rig.farm.render(PROMPT, chain="hires", seed=31, steps=4).wait(120)
    (path,) = job.download(tmp_path)
    # When
    again, same = rig.farm.rerun(path)
    # Then
    assert same
    assert pixels(again.wait(120)) == pixels(job)
    assert again.record.stages[0].exec != job.record.stages[0].exec, "it ran again"


def test_the_printed_program_makes_the_same_pixels(rig: Rig, tmp_path: Path) -> None:
    # Given
    job = rig.farm.render(PROMPT, chain="hires", seed=41, steps=4, negative_prompt="blue").wait(120)
    # When
    program = job.script()
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    # Then
    assert "farm" not in program.replace(str(rig.farm.settings.models_dir), "")
    assert pixels_sha256((tmp_path / "out.png").read_bytes()) == pixels(job)


def test_a_chain_from_an_image_is_made_again_from_its_picture_and_by_the_printed_program(
    rig: Rig, tmp_path: Path
) -> None:
    # Given a chain from an image that was padded to another aspect
    Image.linear_gradient("L").resize((150, 90)).convert("RGB").save(tmp_path / "in.png")
    chain = {"fit": "contain", "stages": [{"kind": "img2img", "steps": 6, "width": 64, "height": 128}]}
    job = rig.farm.render(PROMPT, chain=chain, image=tmp_path / "in.png", seed=61).wait(120)
    (path,) = job.download(tmp_path / "out.png")
    # When it is made again, with the original beside it, for the store may have lost its input
    again, same = rig.farm.rerun(path, image=tmp_path / "in.png")
    # Then
    assert same
    assert pixels(again.wait(120)) == pixels(job)
    with pytest.raises(InvalidJob, match="not the image"):
        rig.farm.rerun(path, image=path)
    # When the printed program runs beside the input that `farm script -o` writes
    (tmp_path / "input.png").write_bytes(job.input_images()["input.png"])
    subprocess.run([sys.executable, "-c", job.script()], cwd=tmp_path, check=True, timeout=240)
    # Then
    assert pixels_sha256((tmp_path / "out.png").read_bytes()) == pixels(job)


@pytest.mark.parametrize("recipe", [{}, {"recipes": []}, {"recipes": [{}]}, {"recipes": "x"}])
def test_a_foreign_recipe_is_refused(rig: Rig, recipe: dict[str, object]) -> None:
    with pytest.raises(InvalidJob) as info:
        rig.farm.rerun(to_png(Image.new("RGB", (64, 64)), recipe))
    assert info.value.code == "bad_file"


def test_a_run_of_four_has_four_seeds_and_four_pictures(rig: Rig) -> None:
    jobs = rig.farm.run(PROMPT, chain="txt", seed=50, steps=3, count=4)
    assert [job.wait(120).seed for job in jobs] == [50, 51, 52, 53]
    assert len({pixels(job) for job in jobs}) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"chain": "img"},
        {"chain": "txt", "width": 63},
        {"chain": "txt", "checkpoint": "nope"},
        {"chain": "txt", "guidance_scale": float("nan")},
        {"chain": {"stages": []}},
        {"chain": {"stages": [{"kind": "text2img"}] * 20}},
        {"chain": {"stages": [{"kind": "text2img", "checkpoint": "tiny-other"}, {"kind": "upscale_latent"}]}},
        {"chain": "upscale", "image": b"not an image"},
        {"chain": "txt", "count": 0},
    ],
)
def test_what_is_refused_leaves_no_trace(rig: Rig, given: dict[str, object]) -> None:
    # Given
    def trace() -> tuple[list[str], list[str]]:
        found = rig.farm.store.client.list_objects_v2(Bucket=rig.farm.store.bucket)
        # What lives on its own: workers' entries, the reconciler's clock, doorbells.
        alive = ("{farm}:worker", "{farm}:serves", "{farm}:reap", "farm:", "_kombu")
        keys = [key for key in map(bytes.decode, redis.scan_iter()) if not key.startswith(alive)]
        return sorted(keys), sorted(item["Key"] for item in found.get("Contents", []))

    redis = Redis.from_url(rig.valkey.url)
    before = trace()
    # When
    with pytest.raises(InvalidJob) as info:
        rig.farm.run("x", **given)
    # Then
    assert str(info.value)
    assert trace() == before


def test_a_job_that_nobody_serves_says_so_and_waits(rig: Rig) -> None:
    # Given
    job = rig.farm.render(PROMPT, chain={"stages": [{"kind": "text2img", "checkpoint": "tiny-style"}]}, steps=3)
    # Then
    assert "no worker serves text2img.tiny-style" in rig.farm.ledger.job(job.id).waits_for
    # When a worker for it comes
    late = rig.supervise(["text2img.tiny-style"], "late")
    # Then it runs
    assert job.wait(120).images
    late.terminate()
    assert late.wait(60) == 0


def test_cancel_is_recorded_at_once_and_frees_the_worker_within_a_step(rig: Rig) -> None:
    # Given a stage of many steps that runs
    job = rig.farm.render(PROMPT, chain="txt", width=1024, height=1024, steps=150)
    until(lambda: job.record.stages[0].step >= 2)
    # When
    assert job.cancel() == "cancelled"
    step = job.record.stages[0].step
    # Then: the record says so; the worker does another job, and the cancelled one went at most one step further
    assert job.state == "cancelled"
    assert rig.farm.render(PROMPT, chain="txt", seed=1, steps=1).wait(60).images
    assert "stopped" in rig.logs()
    assert job.record.stages[0].step <= step + 1
    with pytest.raises(StageFailed):
        job.wait(1)
