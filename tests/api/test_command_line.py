"""Does the command line say the same of a farm elsewhere as of the one here?"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farm.records import JobRecord
from tests.api.conftest import Site, picture
from tests.conftest import free_port
from tests.test_cli import Hand, Ran, run  # noqa: F401 — a fixture

Run = Callable[..., Ran]
QUEUE = "text2img.tiny"
PASSING = re.compile(r"s3://\S+|http://\S+|\b\d+s$")
"""What differs between two looks at the same: where a result is, and how old a job is."""


@pytest.fixture
def hand(site: Site) -> Hand:
    return Hand(site.settings, site.farm.store)


@pytest.fixture
def there(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:  # noqa: F811
    """A command line that reaches the farm by its API alone, as an admin."""
    monkeypatch.setenv("FARM_URL", site.url)
    monkeypatch.setenv("FARM_TOKEN", site.token("root", "read", "submit", "admin"))
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    yield run
    for state in ("queued", "running", "paused"):
        for record in site.farm.jobs(state=state, limit=1000):
            site.farm.ledger.cancel(record.job)


@pytest.fixture
def here(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """The same command line on the farm's own servers."""
    settings = site.settings

    def command(*words: object) -> Ran:
        secret = {"AWS_ACCESS_KEY_ID": settings.s3_access_key, "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key}
        with monkeypatch.context() as patch:
            patch.delenv("FARM_URL", raising=False)
            for name in ("namespace", "bucket", "data"):
                patch.setenv(f"FARM_{name.upper()}", str(getattr(settings, name)))
            patch.setenv("FARM_REDIS_URL", settings.redis_url.get_secret_value())
            patch.setenv("AWS_ENDPOINT_URL_S3", str(settings.s3_endpoint))
            patch.setenv("AWS_REGION", "us-east-1")
            for name, value in secret.items():
                assert value is not None
                patch.setenv(name, value.get_secret_value())
            return run(*words)

    return command


def done(site: Site, hand: Hand, **given: object) -> JobRecord:
    """A job that the hand has drawn."""
    job = site.farm.render("a pear", chain="txt", seed=secrets.randbits(40), **given)
    hand.serve(hand.claim(QUEUE))
    return job.record


def poison(site: Site, hand: Hand) -> JobRecord:
    """A job that is in quarantine."""
    job = site.farm.render("a poison pear", chain="txt", seed=secrets.randbits(40))
    for _ in range(3):
        hand.claim(QUEUE)
        hand.ledger.worker_died("hand", "boot", "signal 9", "killed", log="the last line")
    assert job.state == "quarantined"
    return job.record


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    "words",
    [
        ["jobs", "ls", "--limit", "3"],
        ["jobs", "ls", "--state", "done"],
        ["jobs", "show", "DONE"],
        ["jobs", "show", "OPEN"],
        ["jobs", "show", "zzzz"],
        ["jobs", "show", "POISON"],
        ["jobs", "wait", "DONE"],
        ["jobs", "wait", "POISON"],
        ["jobs", "download", "OPEN"],
        ["jobs", "retry", "DONE"],
        ["jobs", "cancel", "--run", "nothing"],
        ["queue", "status"],
        ["quarantine", "ls"],
        ["quarantine", "show", "POISON"],
        ["quarantine", "show", "zzzz"],
        ["chain", "ls"],
        ["chain", "show", "hires"],
        ["chain", "show", "img", "--image-size", "96x64"],
        ["chain", "show", "img"],
        ["chain", "show", "nothing"],
        ["chain", "validate", "CHAIN"],
        ["stages"],
        ["stages", "inpaint"],
        ["stages", "paint"],
        ["models", "ls"],
        ["render", "a pear", "--chain", "txt", "--count", "3", "--seed", "4", "--dry-run"],
        ["render", "a pear", "--image", "IMAGE", "--dry-run", "--seed", "4"],
        ["render", "--chain", "CHAIN", "--dry-run", "--seed", "4"],
        ["render", "a pear", "--strength", "2"],
        ["render", "a pear", "--set", "9.strength=1"],
        ["render", "a pear", "--chain", "hirez"],
        ["render", "a pear", "--width", "65"],
        ["render", "a pear", "--image", "/nonexistent.png"],
        ["rerun", "IMAGE"],
    ],
    ids=" ".join,
)
def test_the_same_is_said_here_and_there(
    site: Site, hand: Hand, here: Run, there: Run, tmp_path: Path, words: list[str], form: list[str]
) -> None:
    # Given jobs that are done, open and poison, a chain file that names a mask beside it, and a picture
    names = {"DONE": done(site, hand).job, "POISON": poison(site, hand).job}
    names["OPEN"] = site.farm.render("an open pear", chain="txt").id
    stages = [{"kind": "text2img"}, {"kind": "inpaint", "mask": "mask.png"}]
    for name, data in (
        ("chain.json", json.dumps({"prompt": "a pear", "stages": stages}).encode()),
        ("mask.png", picture("white")),
        ("in.png", picture("navy")),
    ):
        (tmp_path / name).write_bytes(data)
    names |= {"CHAIN": str(tmp_path / "chain.json"), "IMAGE": str(tmp_path / "in.png")}
    asked = [names.get(word, word) for word in words] + form
    # When the same is asked here and there
    ours, theirs = here(*asked), there(*asked)
    # Then the answer is the same
    assert theirs.status == ours.status
    if form:
        assert theirs.envelope["command"] == ours.envelope["command"]
        if ours.envelope["error"]:
            assert theirs.envelope["error"]["code"] == ours.envelope["error"]["code"]
            told = [[one["loc"] for one in each.envelope["error"]["errors"]] for each in (ours, theirs)]
            assert told[0] == told[1]
        if isinstance(ours.envelope["data"], dict):
            assert theirs.envelope["data"].keys() == ours.envelope["data"].keys()
        if words[:2] in (["chain", "show"], ["stages", "inpaint"], ["jobs", "ls"]):
            assert theirs.envelope["data"] == ours.envelope["data"]
    elif words[0] not in ("models", "rerun") and words[:2] != ["jobs", "show"]:
        assert [PASSING.sub("…", line) for line in theirs.out.splitlines()] == [
            PASSING.sub("…", line) for line in ours.out.splitlines()
        ]
    elif words[:2] == ["jobs", "show"]:  # of workers only their own machine is told
        assert [line.split()[:3] for line in theirs.out.splitlines() if "://" not in line] == [
            line.split()[:3] for line in ours.out.splitlines() if "://" not in line
        ]


def test_a_picture_is_rendered_waited_for_steered_and_made_again(
    site: Site, hand: Hand, there: Run, tmp_path: Path
) -> None:
    # Given a worker
    def serve(count: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: [hand.serve(hand.claim(QUEUE)) for _ in range(count)])
        thread.start()
        return thread

    worker = serve(1)
    # When a picture is waited for
    found = there("render", "a pear", "--chain", "txt", "--seed", secrets.randbits(40), "-o", tmp_path / "pear.png")
    worker.join()
    # Then it is told where it is, and it is here
    assert found.status == 0, found.err
    uri, path = found.out.splitlines()
    assert uri.startswith(f"{site.url}/api/v1/jobs/")
    assert path == str(tmp_path / "pear.png")
    job = uri.split("/")[-3]
    assert f"{job}  done" in found.err
    # And it is watched, downloaded, written as a program and made again
    watched = there("jobs", "watch", job[-8:], "--json")
    assert watched.envelope["data"]["events"][0]["type"] == "submitted"
    assert there("jobs", "download", job, "-o", tmp_path / "more").out == f"{tmp_path / 'more' / job}.png\n"
    assert "import torch" in there("script", job).out
    worker = serve(1)
    again = there("rerun", path, "--json")
    worker.join()
    assert (again.status, again.envelope["data"]["identical"]) == (0, True), again.err
    assert again.envelope["data"]["same_recipe"] is True
    # And two jobs are steered
    ids = there("render", "a plum", "--chain", "txt", "--count", 2).out.split()
    for command, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        assert there("jobs", command, *ids).out.split() == [ids[0], state, ids[1], state]
    run_of = site.farm.job(ids[0]).record.run
    assert there("jobs", "cancel", "--run", run_of).out == f"{run_of}  now 2 cancelled\n"


def test_a_fork_and_a_quarantine_by_command(site: Site, hand: Hand, there: Run, tmp_path: Path) -> None:
    job = done(site, hand).job
    (tmp_path / "end.json").write_text(json.dumps({"stages": [{"kind": "inpaint", "mask": "mask.png"}]}))
    (tmp_path / "mask.png").write_bytes(picture("white"))
    found = there("jobs", "fork", job[-8:], "--from", 1, "--chain", tmp_path / "end.json", "--set", "1.steps=3")
    assert found.status == 0, found.err
    record = site.farm.job(found.out.strip()).record
    hand.serve(hand.claim("inpaint.tiny"))
    assert [one.stage for one in site.farm.ledger.events(record.job) if one.type == "claimed"] == [1]
    (tmp_path / "end.json").write_text(json.dumps({"prompt": "x", "stages": [{"kind": "img2img"}]}))
    wrong = there("jobs", "fork", job, "--from", 1, "--chain", tmp_path / "end.json", "--json")
    assert (wrong.status, wrong.envelope["error"]["errors"][0]["loc"]) == (2, "stages")
    poisoned = poison(site, hand).job
    assert there("quarantine", "retry", poisoned).out == f"{poisoned}  queued\n"
    assert there("jobs", "cancel", poisoned).status == 0
    name = poison(site, hand).stages[0].exec
    assert there("quarantine", "drop", name[:12]).out == f"{name}  dropped\n"


def test_an_input_image_is_found_again_by_its_picture(site: Site, hand: Hand, there: Run, tmp_path: Path) -> None:
    """The image was fitted at submit, and the picture names it as it was fitted."""
    (tmp_path / "in.png").write_bytes(picture("navy", (300, 200)))
    worker = threading.Thread(target=lambda: hand.serve(hand.claim("img2img.tiny")))
    worker.start()
    words = ("--chain", "img", "--image", tmp_path / "in.png", "--set", "width=96", "--set", "height=64")
    found = there("render", "a pear", *words, "-o", tmp_path / "out.png")
    worker.join()
    assert found.status == 0, found.err
    again = there("rerun", tmp_path / "out.png", "--no-wait", "--json")
    assert (again.status, again.envelope["data"]["same_recipe"]) == (0, True), again.err
    given = there("rerun", tmp_path / "out.png", "--image", tmp_path / "in.png", "--no-wait", "--json")
    assert (given.status, given.envelope["data"]["same_recipe"]) == (0, True), given.err
    inputs = there("script", again.envelope["data"]["jobs"][0]["id"], "-o", tmp_path / "again")
    assert [Path(line).name for line in inputs.out.splitlines()] == ["program.py", "input.png"]


@pytest.mark.parametrize(
    "words",
    [
        ["up"], ["demo"], ["worker", "--stage", "text2img"], ["serve"], ["doctor"],
        ["token", "ls"], ["token", "create", "--owner", "x"], ["token", "rm", "x"],
        ["models", "pull", "tiny"], ["models", "verify"], ["models", "rm", "tiny"], ["models", "convert", "a", "b"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_needs_the_machine_itself_says_so(there: Run, words: list[str]) -> None:
    found = there(*words)
    assert (found.status, found.out) == (2, "")
    (error, hint) = found.err.splitlines()
    assert re.fullmatch(r"error: `farm [a-z ]+` works on the farm's own machine, and FARM_URL names .*", error)
    assert hint == "hint: unset FARM_URL to use this machine"


def test_a_token_that_does_not_hold_and_a_farm_that_is_away(there: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_TOKEN", "secret-word")
    found = there("jobs", "ls", "--json")
    assert (found.status, found.code) == (1, "unauthorized")
    assert "secret-word" not in found.out + found.err
    monkeypatch.setenv("FARM_URL", f"http://127.0.0.1:{free_port()}")
    away = there("jobs", "ls")
    assert (away.status, away.out) == (4, "")
    assert away.err.startswith("error: the farm's API cannot be reached")
    assert "secret-word" not in away.err
    monkeypatch.setenv("FARM_URL", "farm.example.org")
    assert there("jobs", "ls").err.startswith("error: FARM_URL: ")


def test_httpx_is_imported_for_a_farm_elsewhere_alone() -> None:
    code = "import sys; from farm.cli import main; main(['chain', 'ls']); print('httpx2' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "False"
