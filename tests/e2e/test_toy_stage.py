"""A stage kind that this repository has never heard of: one file, installed like any package, runs in a chain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.e2e.rig import ROOT, Rig, install

STAGE = '''
"""How is a picture turned upside down?"""

from typing import ClassVar, Literal

from PIL import ImageOps
from pydantic import Field

from farm.stage import Medium, Stage


class Flip(Stage):
    """Turn the image upside down."""

    kind: Literal["flip"] = "flip"
    takes: ClassVar = frozenset({Medium.IMAGE})
    gives: ClassVar = frozenset({Medium.IMAGE})
    needs_torch: ClassVar = False
    times: int = Field(1, ge=1, le=3, description="how often")

    def load(self, checkpoint, device):
        return ImageOps.flip

    def run(self, pipe, batch, report):
        images = list(batch.given)
        for time in range(self.times):
            images = [pipe(image) for image in images]
            report.step(time + 1, self.times)
        return images
'''


def test_a_new_kind_is_one_file(rig: Rig, tmp_path: Path) -> None:
    # Given a package with one stage, and a checkpoint for it
    added = install(tmp_path, STAGE, ["flip"])
    env = {**os.environ, **rig.env, **added}

    def farm(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("farm")), *words]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    farm("models", "pull", "none")
    # When it stands in a chain, after a stage of this repository
    rig.supervise(["text2img.tiny", "flip.none"], "toy", **added)
    (tmp_path / "plain.json").write_text(
        json.dumps({"prompt": "x", "seed": 5, "stages": [{"kind": "text2img", "steps": 2}]})
    )
    (tmp_path / "flipped.json").write_text(
        json.dumps(
            {
                "prompt": "x",
                "seed": 5,
                "stages": [{"kind": "text2img", "steps": 2}, {"kind": "flip", "checkpoint": "none"}],
            }
        )
    )
    for name in ("plain", "flipped"):
        farm("render", "--chain", str(tmp_path / f"{name}.json"), "-o", str(tmp_path / f"{name}.png"))
    # Then
    plain, flipped = (Image.open(tmp_path / f"{name}.png") for name in ("plain", "flipped"))
    assert list(flipped.get_flattened_data()) == list(
        plain.transpose(Image.Transpose.FLIP_TOP_BOTTOM).get_flattened_data()
    )
