"""A newcomer's first pictures are what they asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.demo import scorer
from workers.demo.scenes import SHAPES
from workers.demo.sprites import OBJECTS


def test_the_demo_renders_what_its_prompts_ask_for(tmp_path: Path) -> None:
    # Given a machine on which no farm has run
    env = {name: value for name, value in os.environ.items() if name != "FARM_CATALOG"}
    env |= {"FARM_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    # When
    code = "import sys; from farm.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "demo", "--json", "--seed", "7", "-o", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    # Then both chains are done
    assert done.returncode == 0, done.stderr
    jobs = json.loads(done.stdout)["data"]["jobs"]
    assert [job["state"] for job in jobs] == ["done", "done"]
    # And the judge sees what was asked for
    pictures = [Image.open(job["path"]).convert("RGB") for job in jobs]
    assert [picture.size for picture in pictures] == [(512, 512), (512, 512)]
    small = [picture.resize((64, 64), Image.Resampling.BOX) for picture in pictures]
    assert [scorer.ground(picture) for picture in small] == ["blue", "blue"]
    assert scorer.Scorer().things(small, [*OBJECTS, *SHAPES]) == ["apple", "basketball"]
