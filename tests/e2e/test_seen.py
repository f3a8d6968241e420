"""Is a chain of real pipelines seen while it runs, and kept where a job asks for it?"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from sd_parsers import ParserManager

from farm.handle import JobHandle
from farm.image import pixels_sha256, read_recipe
from farm.label import SOURCE_TYPE
from tests.api.conftest import serving
from tests.api.listener import Heard, Listener
from tests.conftest import pause
from tests.e2e.rig import Rig

CHAIN = "hires"
KINDS = ["text2img", "img2img", "upscale_latent", "upscale"]
STEPS = {"steps": 50, "2.steps": 20, "3.steps": 10}
"""Steps of the chain's stages, all of about the same time."""


@pytest.fixture(scope="module", autouse=True)
def workers(rig: Rig) -> None:
    """Four children, each owning one stage, which show as many pictures as they can."""
    rig.supervise(FARM_PREVIEW_S="0.01")
    rig.ready()


@pytest.fixture(scope="module")
def api(rig: Rig) -> Iterator[httpx2.Client]:
    """A caller of the farm's API."""
    with (
        serving(rig.farm.settings, auth=False, heartbeat_s=0.5) as url,
        httpx2.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        yield client


def blob(job: JobHandle) -> bytes:
    (result,) = job.results
    return job.farm.store.get_blob(result.sha256, max_bytes=1 << 24)


def all_of(ear: Listener) -> Iterator[Heard]:
    """The events as they are heard, to the last."""
    told = 0
    while not ear.over.is_set() or told < len(ear.heard):
        if told < len(ear.heard):
            yield ear.heard[told]
            told += 1
        else:
            pause()


def pictures_of(api: httpx2.Client, job: JobHandle) -> dict[str, list[bytes]]:
    """The pictures of a job's stages, by kind, that a listener is told of and fetches until it is done."""
    seen: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    told: set[str] = set()
    with Listener(api, f"/api/v1/jobs/{job.id}/events") as ear:
        for event in all_of(ear):
            address = event.data["preview"]
            if address and address not in told:
                told.add(address)
                answer = api.get(address)
                if answer.status_code == 200:  # the stage may be over by now
                    seen[event.data["kind"]].append(answer.content)
    assert job.state == "done"
    return seen


def test_each_stage_of_a_chain_is_seen(rig: Rig, api: httpx2.Client) -> None:
    # Given a listener, and a chain of four stages, on a fast machine a longer one: who looks does so twice a second
    for times in (1, 2, 4, 8, 16):
        steps = {name: count * times for name, count in STEPS.items()}
        job = rig.farm.render("a red apple", chain=CHAIN, seed=3, reuse=False, **steps)
        seen = pictures_of(api, job)
        if all(seen.values()):
            break
    # Then each stage was seen, in small pictures, of which no two are the same
    assert [kind for kind in KINDS if not seen[kind]] == []
    for pictures in seen.values():
        assert all(len(data) <= 20 * 1024 for data in pictures)
        assert all(max(Image.open(io.BytesIO(data), formats=["WEBP"]).size) == 256 for data in pictures)
        assert len(set(pictures)) == len(pictures)
    # And none is left
    assert [rig.farm.ledger.preview(stage.exec) for stage in job.record.stages] == [None] * 4


def test_pixels_are_the_same_whoever_looks(rig: Rig, api: httpx2.Client) -> None:
    # Given a chain at which somebody looks
    job = rig.farm.render("a pear", chain=CHAIN, seed=4, steps=50, reuse=False)
    assert any(pictures_of(api, job).values())
    # When the same is made in bulk, where nothing is shown to anybody
    other = rig.farm.render("a pear", chain=CHAIN, seed=4, steps=50, reuse=False, lane="bulk")
    assert not any(pictures_of(api, other).values())
    # Then
    assert blob(job) == blob(other)


@pytest.mark.parametrize("how", ["image", "preview"])
def test_what_a_job_asks_for_is_kept(rig: Rig, api: httpx2.Client, how: str) -> None:
    # Given a chain of which nothing is kept
    plain = rig.farm.render("a plum", chain=CHAIN, seed=5, steps=4, reuse=False).wait(120)
    assert plain.intermediates == []
    # When
    job = rig.farm.render("a plum", chain=CHAIN, seed=5, steps=4, reuse=False, keep=how).wait(120)
    # Then what goes on from stage to stage is what it was
    outputs, others = ([json.loads(stage.output) for stage in each.record.stages] for each in (job, plain))
    for one, other in zip(outputs[:2], others[:2], strict=True):  # the headers of two equal tensors may differ
        tensors = [load(rig.farm.store.get_blob(each["blob"], 1 << 20))["latents"] for each in (one, other)]
        assert torch.equal(*tensors)
    assert outputs[2]["blob"] == others[2]["blob"]
    assert blob(job) == blob(plain)
    # And each stage before the last has its picture
    assert [(one.stage, one.keep) for one in job.intermediates] == [(0, how), (1, how), (2, how)]
    pictures = [Image.open(io.BytesIO(job.read(one))) for one in job.intermediates]
    if how == "image":
        assert [picture.size for picture in pictures] == [(64, 64), (64, 64), (128, 128)]
        # a stage that hands on an image has no second one
        assert outputs[2]["kept"]["blob"] == outputs[2]["blob"]
        assert len(read_recipe(job.read(job.intermediates[1]))["recipes"]) == 2
    else:
        assert [picture.size for picture in pictures] == [(256, 256)] * 3
        assert all(one.size_bytes <= 20 * 1024 for one in job.intermediates)
    # And over HTTP
    listed = api.get(f"/api/v1/jobs/{job.id}/artifacts").json()
    assert [(one["index"], one["kind"]) for one in listed] == [
        (0, "result"), (1, "intermediate"), (2, "intermediate"), (3, "intermediate"),
    ]  # fmt: skip
    assert all(api.get(one["thumbnail"]).headers["content-type"] == "image/webp" for one in listed)


def test_the_command_line_asks_for_pictures_and_fetches_them(rig: Rig, tmp_path: Path) -> None:
    def farm(*words: str) -> Any:
        code = "import sys; from farm.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "--json", *words]
        done = subprocess.run(command, env={**os.environ, **rig.env}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["data"]

    # Given
    given = ("--chain", "x2", "--seed", "9", "--steps", "4", "--no-reuse", "--keep", "image", "--wait")
    (made,) = farm("render", "a lime", *given)["jobs"]
    # When
    paths = farm("jobs", "download", made["id"], "-o", str(tmp_path / "out"), "--intermediates")["paths"]
    # Then
    names = [f"{made['id']}.png", f"{made['id']}-0.png"]
    assert [Path(path).name for path in paths] == names
    assert [Image.open(path).size for path in paths] == [(128, 128), (64, 64)]
    (kept,) = farm("jobs", "show", made["id"])["intermediates"]
    assert (kept["stage"], kept["keep"]) == (0, "image")
    assert kept["uri"].startswith("s3://")


def test_a_kept_picture_is_what_a_shorter_chain_makes(rig: Rig) -> None:
    # Given what was kept of the first stage
    long = {"stages": [{"kind": "text2img", "steps": 4}, {"kind": "img2img", "steps": 4}], "keep": "image"}
    job = rig.farm.render("a fig", chain=long, seed=6).wait(120)
    # When that stage is a chain of its own
    short = rig.farm.render("a fig", chain={"stages": long["stages"][:1]}, seed=6).wait(120)
    # Then
    (kept,) = job.intermediates
    assert pixels_sha256(job.read(kept)) == pixels_sha256(blob(short))


def test_what_was_made_before_is_kept_as_it_was_then(rig: Rig) -> None:
    # Given a chain of which nothing was kept
    rig.farm.render("a date", chain=CHAIN, seed=7, steps=4).wait(120)
    # When an equal one asks for more, then it takes what is there, unless it is to run again
    assert rig.farm.render("a date", chain=CHAIN, seed=7, steps=4, keep="image").wait(120).intermediates == []
    again = rig.farm.render("a date", chain=CHAIN, seed=7, steps=4, keep="image", reuse=False).wait(120)
    assert len(again.intermediates) == 3


def test_nothing_is_kept_that_a_policy_would_hide(rig: Rig) -> None:
    # Given workers that blur, and that refuse, what their checker finds, which is everything
    for policy, checkpoint in (("blur", "tiny-style"), ("refuse", "tiny-sd2")):
        told = {"FARM_SAFETY": policy, "FARM_SAFETY_CHECKER": "tiny-prude"}
        rig.supervise([f"text2img.{checkpoint}"], policy, **told)
    rig.ready(6)

    def job(checkpoint: str, keep: str) -> JobHandle:
        stages = [{"kind": "text2img", "checkpoint": checkpoint, "steps": 4}, {"kind": "img2img", "steps": 4}]
        return rig.farm.render("a nut", chain={"stages": stages, "keep": keep}, seed=2, reuse=False).wait(120)

    # When pictures of both are to be kept
    clear, blurred, refused = (job(name, "image") for name in ("tiny", "tiny-style", "tiny-sd2"))
    # Then they are blurred, or not there
    (plain,), (smooth,) = clear.intermediates, blurred.intermediates
    assert roughness(blurred.read(smooth)) < roughness(clear.read(plain)) / 2
    assert refused.intermediates == []
    # And what nobody could judge is not kept
    assert [job(name, "preview").intermediates for name in ("tiny-style", "tiny-sd2")] == [[], []]


def roughness(data: bytes) -> float:
    """How much neighbouring pixels differ."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)
    return float(np.abs(np.diff(pixels, axis=0)).mean())


def test_a_result_tells_other_programs_what_made_it(rig: Rig) -> None:
    # Given
    job = rig.farm.render('a "red" <apple>\n& Steps: 3', chain=CHAIN, seed=8, steps=4, reuse=False).wait(120)
    data = blob(job)
    # When
    (sampler,) = ParserManager().parse(io.BytesIO(data)).samplers
    # Then
    assert sampler.prompts[0].value == 'a "red" <apple>\n& Steps : 3'
    assert (sampler.model.name, sampler.parameters["seed"], sampler.parameters["steps"]) == ("tiny", "8", "4")
    assert SOURCE_TYPE.encode() in data
    assert job.id.encode() not in data
