"""Does the command line make datasets on a farm elsewhere, by HTTP alone?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farm.cli import dataset as line
from farm.cli.following import line_of
from farm.dataset.desk import Datasets
from farm.dataset.status import Status
from farm.dataset.tars import entries
from farm.servers import environment
from tests.api.conftest import Site
from tests.conftest import free_port
from tests.e2e.rig import ROOT, until
from tests.test_cli import Ran, run  # noqa: F401 — a fixture

Run = Callable[..., Ran]
CHAIN = {"stages": [{"kind": "text2img", "checkpoint": "tiny"}]}


@pytest.fixture
def there(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """A command line that reaches the farm by its API alone, and is nobody in particular there."""
    monkeypatch.setenv("FARM_URL", site.url)
    monkeypatch.setenv("FARM_TOKEN", site.token("ada", "read", "submit"))
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    return run


@contextmanager
def working(site: Site, *modules: str) -> Iterator[None]:
    """Processes of that farm: who feeds its datasets, who draws."""
    own = {"FARM_URL": "", "FARM_NAMESPACE": site.settings.namespace, "FARM_LEASE_S": "3"}
    env = {**os.environ, **environment(site.settings), **own}
    begun = [
        subprocess.Popen([sys.executable, "-m", *module.split()], env=env, cwd=ROOT, stderr=subprocess.DEVNULL)
        for module in modules
    ]
    try:
        yield
        assert [one.poll() for one in begun] == [None] * len(begun)
    finally:
        for one in begun:
            one.terminate()
            one.wait(60)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Rows, and a chain, in a folder."""
    lines = "".join(f"a {one},{one}\n" for one in ("pear", "plum", "fig"))
    (tmp_path / "rows.csv").write_text("caption,label\n" + lines)
    (tmp_path / "wrong.csv").write_text("prompt,steps\na pear,2\na plum,-1\n")
    (tmp_path / "chain.json").write_text(json.dumps(CHAIN))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "colour.txt").write_text("red\nblue\n")
    return tmp_path


FEEDER = f"farm.dataset.serve --parent {os.getpid()}"


def test_a_line_counts_what_no_shard_has_yet() -> None:
    told = Status(
        "fruit", "running", samples=24, done=0, failed=0, shards=1, shards_done=0, size_bytes=0, rows=24, rejected=0,
        priority=50, fed=True, open={"done": 7, "running": 1, "queued": 16}, rate=1.4, eta_s=13,
    )  # fmt: skip
    assert line_of(told) == "fruit  running, 7 of 24 samples, 0 of 1 shard, 0.0 MB, 1.4 a second, 13 s left"


def test_a_dataset_is_made_and_fetched(site: Site, there: Run, files: Path) -> None:
    plan = [
        "dataset", "plan", files / "rows.csv", "--name", "afar", "--chain", files / "chain.json", "--map",
        "prompt=caption", "--sweep", "guidance_scale=3,5", "--shard-samples", "4", "--set", "steps=2", "--json",
    ]  # fmt: skip
    with working(site, FEEDER, "tests.bench.fake_stage"):
        # When a file is planned
        told = there(*plan)
        # Then it says what planning says here
        assert told.status == 0, told.err
        found = told.envelope["data"]
        assert (found["rows"], found["samples"], found["shards"], found["fresh"]) == (3, 6, 2, True)
        assert [one["prompt"] for one in found["first"]] == ["a pear", "a pear", "a plum", "a plum"]
        assert (found["columns"], found["parameters"]) == (["label"], {"guidance_scale": "number"})
        # And the same words are the same dataset
        assert there(*plan).envelope["data"] == {**found, "fresh": False}
        assert "planned before" in there(*plan[:-1]).out
        # When it runs
        done = there("dataset", "run", "afar", "--priority", "70", "--json")
    # Then it is followed to its end
    assert done.status == 0, done.err
    data = done.envelope["data"]
    assert (data["state"], data["done"], data["failed"], data["priority"]) == ("done", 6, 0, 70)
    (line,) = [row for row in there("dataset", "ls").out.splitlines() if row.startswith("afar")]
    assert line.split()[1:] == ["done", "6", "6", "0", "2/2"]
    assert "# afar" in there("dataset", "card", "afar").out
    assert there("dataset", "status", "afar", "--json").envelope["data"]["failures"] == []
    # When its shards are fetched
    out = files / "out"
    got = there("dataset", "fetch", "afar", "-o", out, "--json").envelope["data"]
    # Then they are those in the store
    assert (got["shards"], got["bytes"]) == (2, data["size_bytes"])
    with entries(out / "00000.tar") as samples:
        assert [one.key for one in samples] == [f"00000{place:04d}" for place in range(4)]
    folder = Datasets(site.farm).folder("afar")
    with folder.tar(1) as whole:
        assert whole.read_bytes() == (out / "00001.tar").read_bytes()
    # And a file that is damaged here is fetched again, and no other
    damaged = bytearray((out / "00001.tar").read_bytes())
    damaged[700] ^= 1
    (out / "00001.tar").write_bytes(damaged)
    (out / "00000.parquet").unlink()
    again = there("dataset", "fetch", "afar", "-o", out)
    assert sorted(line.split()[0] for line in again.err.splitlines()) == ["00000.parquet", "00001.tar"]
    with folder.tar(1) as whole:
        assert whole.read_bytes() == (out / "00001.tar").read_bytes()
    files_ = ["00000.parquet", "00000.tar", "00001.parquet", "00001.tar"]
    assert sorted(path.name for path in out.iterdir()) == [".dataset", ".dataset.json", *files_]
    # And what else is in a folder stays: the shards of two datasets are not mixed
    (files / "mine").mkdir()
    (files / "mine" / "00000.tar").write_text("mine")
    assert there("dataset", "fetch", "afar", "-o", files / "mine", "--json").code == "conflict"
    assert (files / "mine" / "00000.tar").read_text() == "mine"
    (out / ".dataset.json").write_text('{"name": "afar", "identity": "of another plan"}')
    assert there("dataset", "fetch", "afar", "-o", out, "--json").code == "conflict"
    assert there("dataset", "fetch", "afar", "-o", files / "rows.csv", "--json").code == "bad_file"


def test_a_dataset_is_steered_and_deleted(site: Site, there: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "RM_S", 120.0)  # its feeder may be slow to leave
    words = ("--chain", files / "chain.json", "--templates", "all", "--wildcards", files / "words")
    (files / "templates.txt").write_text("a __colour__ pear\n")
    with working(site, FEEDER):
        found = there("dataset", "plan", files / "templates.txt", "--name", "steered", *words, "--json").envelope[
            "data"
        ]
        assert [one["prompt"] for one in found["first"]] == ["a red pear", "a blue pear"]
        # When nobody draws, Then it runs, is held, goes on
        run_ = there("dataset", "run", "steered", "--detach", "--json").envelope["data"]
        assert (run_["state"], run_["done"]) == ("running", 0)
        assert there("dataset", "rm", "steered", "--json").code == "conflict"
        told = there("dataset", "fetch", "steered", "-o", files / "early")
        assert (told.status, "0 of 1 shards" in told.out, "are not made yet" in told.out) == (0, True, True)
        assert there("dataset", "pause", "steered", "--json").envelope["data"]["state"] == "paused"
        assert there("dataset", "resume", "steered", "--json").envelope["data"]["state"] == "running"
        assert there("dataset", "retry", "steered", "--json").code == "conflict"
        there("dataset", "pause", "steered")
        # And its feeder leaves it before it is deleted
        gone = there("dataset", "rm", "steered")
    assert (gone.status, gone.out) == (0, "steered is deleted\n"), gone.err
    assert there("dataset", "status", "steered", "--json").code == "not_found"
    assert there("dataset", "fetch", "steered", "-o", files / "gone", "--json").code == "not_found"
    assert not (files / "gone").exists()


def test_wrong_rows_are_told_by_row_and_column(site: Site, there: Run, files: Path) -> None:
    plan = ("dataset", "plan", files / "wrong.csv", "--name", "wrong-afar", "--chain", files / "chain.json", "--json")
    with working(site, FEEDER):
        refused = there(*plan)
        assert refused.status == 2
        (error,) = refused.envelope["error"]["errors"]
        assert (refused.code, error["loc"], error["code"]) == ("bad_rows", "rows.2.steps", "invalid_field")
        assert refused.envelope["error"]["hint"] == "mend them, or leave them out (partial)"
        # Also when it is looked at later
        told = there("dataset", "status", "wrong-afar").out.splitlines()
        assert told[0] == "wrong-afar  refused: 1 of the file's 2 rows cannot be taken"
        assert told[1].startswith("row 2, steps: ")
        # And without them it is planned
        found = there(*plan, "--partial").envelope["data"]
        assert (found["rows"], found["rejected"], found["rejects"][0]["row"]) == (1, 1, 2)
        # And another file of that name is told as that, though both have the same prompts
        (files / "wrong.csv").write_text("caption,steps\na pear,2\n")
        other = there(*plan, "--map", "prompt=caption")
        assert (other.code, other.status) == ("conflict", 1)
        assert "of another file, wrong.csv and with other columns" in other.envelope["error"]["message"]
        there("dataset", "run", "wrong-afar", "--detach")
    # When nobody feeds it any more, Then that is said of it
    until(lambda: "nobody plans or feeds it now" in there("dataset", "status", "wrong-afar").out, 60)
    there("dataset", "pause", "wrong-afar")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["plan", "no.csv", "--name", "none"], "bad_file"),
        (["plan", "FOLDER", "--name", "none"], "bad_file"),
        (["plan", "rows.csv", "--name", "Not A Name"], "invalid_field"),
        (["plan", "rows.csv", "--name", "none", "--chain", "nochain"], "unknown_preset"),
        (["plan", "rows.csv", "--name", "none", "--map", "prompt=nocolumn"], "unknown_column"),
        (["plan", "rows.csv", "--name", "none", "--format", "parquet"], "bad_file"),
        (["plan", "rows.csv", "--name", "none", "--dry-run"], "usage"),
        (["plan", "s3://bucket/rows.csv", "--name", "none"], "usage"),
        (["status", "none"], "not_found"),
        (["run", "none"], "not_found"),
        (["fetch", "none", "-o", "out"], "not_found"),
        (["fetch", "none", "-o", "rows.csv/below"], "not_found"),
        (["score", "none", "--clip", "clip-b32"], "usage"),
        (["verify", "none"], "not_found"),
        (["export", "none", "-o", "out"], "not_found"),
        (["feed"], "usage"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)  # fmt: skip
def test_what_is_wrong_is_said(
    there: Run, files: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: str
) -> None:
    monkeypatch.chdir(files)
    found = there("dataset", *[str(files) if word == "FOLDER" else word for word in words], "--json")
    assert (found.code, found.status) == (code, 1 if code == "not_found" else 2)


def test_fetch_is_for_a_farm_elsewhere(run: Run, tmp_path: Path) -> None:  # noqa: F811
    found = run("dataset", "fetch", "fruit", "-o", tmp_path, "--json")
    assert (found.status, found.code) == (2, "usage")
    assert "export" in found.envelope["error"]["hint"]
