"""Does every example of the README run against a served farm, with real workers behind it?"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from farm.client import Farm
from farm.dataset.asking import carry_out, is_asked
from farm.dataset.folder import Folder
from farm.scripts import Server
from farm.tokens import Tokens
from tests.api.conftest import picture, serving
from tests.conftest import free_port
from tests.e2e.rig import ALONE, Rig, until
from tests.test_cli import NO_AWS, Hand, Ran, run  # noqa: F401 — a fixture
from tests.test_readme import blocks

Run = Callable[..., Ran]
HERE = "from farm import Farm\n"
OTHERS = ("make", "export", "python")
"""First words of lines that call no farm."""
OWN = (["models", "pull"], ["dataset", "score"])
"""Commands for the farm's own machine."""


@dataclass(frozen=True)
class Served:
    """A farm with workers, whose API is at `url`, and jobs of the owner of `token`."""

    farm: Farm
    url: str
    token: str
    done: str
    poison: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def served(rig: Rig) -> Iterator[Served]:
    """The farm of the module with four workers of the tiny family, a done job and one in quarantine."""
    server = Server(rig.farm.settings)
    token = Tokens(server).create("ada", ("read", "submit", "admin"))[1]
    poison = rig.farm.render("a poison pear", chain="txt")
    hand = Hand(rig.farm.settings, rig.farm.store)
    for _ in range(3):
        hand.claim("text2img.tiny")
        hand.ledger.worker_died("hand", "boot", "signal 9", "killed")
    assert poison.state == "quarantined"
    rig.supervise(ALONE)
    rig.ready(1)
    done = rig.farm.render("a pear", chain="hires", seed=2)
    done.wait(240)
    with serving(rig.farm.settings) as url:
        yield Served(rig.farm, url, token, done.id, poison.id, rig.env)
    server.close()


@pytest.fixture
def there(served: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """A command line in a folder of its own that reaches the farm by its API alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(picture("navy", (96, 64)))
    for name, value in {"URL": served.url, "TOKEN": served.token}.items():
        monkeypatch.setenv(f"FARM_{name}", value)
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    return run


def lines() -> list[str]:
    """Every command of the README's shell blocks, without its comment."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    found = [re.sub(r"\s+#.*", "", line) for line in text.splitlines()]
    return [command.strip() for line in found for command in line.split(";") if command.strip()]


def test_every_line_is_a_command_that_is_tried() -> None:
    first = {line.split()[0] for line in lines()}
    assert {"farm", "curl"} <= first <= {"farm", "curl", *OTHERS}
    assert len(blocks("python")) == 3


@contextmanager
def feeding(farm: Farm, name: str) -> Iterator[None]:
    """Somebody plans the dataset as soon as it is asked for."""

    def plan() -> None:
        folder = Folder(farm.store, name)
        until(lambda: is_asked(folder), 60, "somebody who asks")
        carry_out(farm, name, lambda: False)

    thread = threading.Thread(target=plan)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("line", [line for line in lines() if line.startswith("farm ")])
def test_a_command_of_the_readme(served: Served, there: Run, tmp_path: Path, line: str) -> None:
    # Given what the line names
    words = shlex.split(line)[1:]
    job = served.done
    if words[:2] in (["jobs", "cancel"], ["jobs", "reprioritise"]):
        held = served.farm.render("a held pear", chain="txt")
        held.pause()
        job = held.id
    if words[:2] == ["jobs", "rm"]:
        job = served.farm.render("a passing pear", chain="txt").id
        served.farm.job(job).cancel()
    if words[0] == "quarantine":
        job = served.poison
    if words[0] == "rerun":
        served.farm.job(served.done).download(tmp_path / "out" / "PICTURE.png")
    (tmp_path / "prompts.csv").write_text("prompt\na fig\na plum\n")
    (tmp_path / "my-chain.yaml").write_text("stages: [{kind: text2img}, {kind: img2img, strength: 0.5}]\n")
    plans = words[:2] == ["dataset", "plan"]
    # When it is called with FARM_URL set
    with feeding(served.farm, "fruit") if plans else nullcontext():
        found = there(*(job if word == "ID" else word for word in words))
    # Then it does what it says, or that it is for the farm's own machine
    if words[0] in ("up", "serve", "worker", "token", "webhook") or words[:2] in OWN:
        assert (found.status, "works on the farm's own machine" in found.err) == (2, True)
    elif words[0] == "dataset" and not plans:  # which the first of them has planned, and is gone again
        missing = "no dataset was fetched" if "--from" in words else "there is no such dataset"
        assert (found.status, missing in found.err) == (1, True)
    else:
        assert found.status == 0, found.err
        assert found.out
    if words[:2] == ["chain", "comfy"]:
        assert (tmp_path / "comfy" / "workflow.json").exists()
    elif "-o" in words and not found.status:
        assert list((tmp_path / "out").glob("*.png"))
    if plans:
        assert "2 rows, 4 samples in 1 shards" in found.out
        assert not there("dataset", "rm", "fruit").status
    if words[0] == "rerun":
        assert "the pixels are identical" in found.out
    if words[:2] == ["jobs", "fork"]:
        (uri,) = (one for one in found.out.splitlines() if "://" in one)
        record = served.farm.job(uri.split("/")[-3]).record
        claimed = [one.stage for one in served.farm.ledger.events(record.job) if one.type == "claimed"]
        assert (record.state, claimed) == ("done", [3])


def test_the_calls_of_the_readme_go_from_a_token_to_a_picture(served: Served, tmp_path: Path) -> None:
    # Given what the lines name, but the job, which the first of them makes
    (tmp_path / "in.png").write_bytes(picture("navy", (96, 64)))
    (tmp_path / "rows.csv").write_text("prompt\na fig\na plum\n")
    env = {**os.environ, "API": f"{served.url}/api/v1", "AUTH": f"Authorization: Bearer {served.token}"}
    told, job, file = dict[str, str](), "", ""
    # When they are called one after another
    for line in [line for line in lines() if line.startswith("curl ")]:
        text = line.replace("http://127.0.0.1:8400", served.url).replace("NAME", "gpu-7.0").replace("/ID", f"/{job}")
        text = text.replace('"file": "ID"', f'"file": "{file}"')
        # A worker that does nothing, so that none is drained that others need.
        served.farm.ledger.register("gpu-7.0", "b1", ["upscale.none"], "idle", {"host": "h", "pid": "1"})
        command = ["bash", "-c", f"{text} -sSf"]
        found = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert found.returncode == 0, (line, found.stderr)
        told[line] = found.stdout
        job = job or json.loads(found.stdout)["jobs"][0]["id"]
        if "datasets/files" in line:
            file = json.loads(found.stdout)["id"]
        if '"file"' in line:
            carry_out(served.farm, "fruit", lambda: False)  # as whoever feeds datasets does

    def answer(part: str) -> str:
        (found,) = (text for line, text in told.items() if part in line)
        return found

    # Then the job was awaited, and its picture is here
    assert served.farm.job(job).record.priority == 90
    assert "event: end" in answer("/events")
    assert (tmp_path / "apple.png").read_bytes() == served.farm.job(job).pngs()[0]
    # And each of the others did what it says
    assert json.loads(answer("/fork"))["count"] == 1
    assert json.loads(answer("/uploads"))["image"].startswith("sha256:")
    assert json.loads(answer('"a star"'))["count"] == 4
    assert json.loads(answer("/drain"))["draining"] is True
    assert json.loads(answer("fruit/start"))["state"] == "running"
    assert json.loads(answer("/readyz")) == {"status": "ok"}


@pytest.mark.parametrize(
    ("far", "text"),
    [(True, text) for text in blocks("python")] + [(False, text) for text in blocks("python") if HERE in text],
)
def test_a_program_of_the_readme(served: Served, there: Run, tmp_path: Path, text: str, far: bool) -> None:
    """The words of the farm here are also those of one elsewhere: its program runs there unchanged."""
    env = {**os.environ, **NO_AWS, "FARM_CATALOG": os.environ["FARM_CATALOG"]}
    if far:
        text = text.replace(HERE, "from farm.remote import connect as Farm\n")
    else:
        env = {**env, "FARM_URL": "", **served.env}
    before = {record.job for record in served.farm.jobs(limit=1000)}
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    made = [record for record in served.farm.jobs(limit=1000) if record.job not in before]
    assert made
    for name in re.findall(r'save\("(.*?)"\)', text):
        assert (tmp_path / name).exists()
    if 'download("out")' in text:
        assert list((tmp_path / "out").glob("*.png"))
