"""Does the command line say the same of a farm elsewhere as of the one here?"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from farm import __version__, doctor
from farm.records import JobRecord
from tests.api.conftest import Site, picture
from tests.conftest import free_port
from tests.test_cli import Hand, Ran, run  # noqa: F401 — a fixture

Run = Callable[..., Ran]
QUEUE = "text2img.tiny"
PASSING = re.compile(r"s3://\S+|http://\S+|\b\d+[smhd]$")
"""What differs between two looks at the same: where a result is, and how old a job is."""


@pytest.fixture
def hand(site: Site) -> Hand:
    """A worker, in queues where nothing waits."""
    for state in ("queued", "running", "paused"):
        for record in site.farm.jobs(state=state, limit=1000):
            site.farm.ledger.cancel(record.job)
    return Hand(site.settings, site.farm.store)


@pytest.fixture(scope="module")
def names(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Jobs that are done, open and poison, a run, a chain file that names a mask beside it, and a picture."""
    folder = tmp_path_factory.mktemp("names")
    hand = Hand(site.settings, site.farm.store)
    names = {"DONE": done(site, hand).job, "POISON": poison(site, hand).job}
    stages = [{"kind": "text2img"}, {"kind": "inpaint", "mask": "mask.png"}]
    for name, data in (
        ("chain.json", json.dumps({"prompt": "a pear", "stages": stages}).encode()),
        ("mask.png", picture("white")),
        ("in.png", picture("navy")),
    ):
        (folder / name).write_bytes(data)
    names |= {"CHAIN": str(folder / "chain.json"), "IMAGE": str(folder / "in.png")}
    names["RUN"] = site.farm.run("a pear", chain="txt", count=2)[0].record.run
    names["OPEN"] = site.farm.render("an open pear", chain="txt").id
    return names


@pytest.fixture
def there(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    """A command line that reaches the farm by its API alone, as an admin."""
    monkeypatch.setenv("FARM_URL", site.url)
    monkeypatch.setenv("FARM_TOKEN", site.token("root", "read", "submit", "admin"))
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    return run


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
        ["jobs", "reprioritise", "DONE", "--priority", "70"],
        ["jobs", "reprioritise", "OPEN", "--priority", "70", "--lane", "interactive"],
        ["jobs", "reprioritise", "OPEN", "--priority", "101"],
        ["runs", "ls", "--limit", "1"],
        ["runs", "show", "RUN"],
        ["runs", "show", "nothing"],
        ["runs", "pause", "RUN"],
        ["runs", "resume", "RUN"],
        ["runs", "retry", "RUN"],
        ["runs", "cancel", "nothing"],
        ["workers", "drain", "nobody"],
        ["workers", "resume", "nobody"],
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
        [
            "render",
            "a pear",
            "--chain",
            "txt",
            "--seed",
            "4",
            "--dry-run",
            "--sweep",
            "0.steps=2,3",
            "--sweep",
            "fit=cover",
        ],
        ["render", "--chain", "txt", "--dry-run", "--sweep", '{"prompt": ["a, b", "c"], "seed": [1, 2]}'],
        ["render", "a pear", "--chain", "txt", "--dry-run", "--sweep", "0.steps=[2, 3]", "--count", "2", "--seed", "1"],
        ["render", "a pear", "--chain", "txt", "--dry-run", "--sweep", '{"seed": [1, 2], "0.steps": [1]}'],
        ["render", "a pear", "--chain", "txt", "--dry-run", "--sweep", "0.steps=2,many"],
        ["render", "a pear", "--chain", "txt", "--dry-run", "--sweep", "steps"],
        ["render", "a pear", "--strength", "2"],
        ["render", "a pear", "--set", "9.strength=1"],
        ["render", "a pear", "--chain", "hirez"],
        ["render", "a pear", "--width", "65"],
        ["render", "a pear", "--image", "/nonexistent.png"],
        ["rerun", "IMAGE"],
    ],
    ids=" ".join,
)
def test_the_same_is_said_here_and_there(names: dict[str, str], here: Run, there: Run, words: list[str]) -> None:
    # When the same is asked here and there, in both forms
    asked = [names.get(word, word) for word in words]
    ours, theirs = here(*asked), there(*asked)
    our_data, their_data = here(*asked, "--json").envelope, there(*asked, "--json").envelope
    # Then the answer is the same
    assert theirs.status == ours.status
    assert their_data["command"] == our_data["command"]
    if our_data["error"]:
        assert their_data["error"]["code"] == our_data["error"]["code"]
        told = [[one["loc"] for one in each["error"]["errors"]] for each in (our_data, their_data)]
        assert told[0] == told[1]
    if isinstance(our_data["data"], dict):
        assert their_data["data"].keys() == our_data["data"].keys()
    if words[0] == "runs" or words[:2] in (["chain", "show"], ["stages", "inpaint"], ["jobs", "ls"]):
        assert their_data["data"] == our_data["data"]
    if words[:2] == ["jobs", "show"]:  # of workers only their own machine is told
        assert [line.split()[:3] for line in theirs.out.splitlines() if "://" not in line] == [
            line.split()[:3] for line in ours.out.splitlines() if "://" not in line
        ]
    elif words[0] not in ("models", "rerun"):
        assert [PASSING.sub("…", line) for line in theirs.out.splitlines()] == [
            PASSING.sub("…", line) for line in ours.out.splitlines()
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
    drawn = there("chain", "comfy", job)
    assert "KSampler" in {node["class_type"] for node in json.loads(drawn.out).values()}
    assert "ComfyUI's folder models/checkpoints" in drawn.err
    worker = serve(1)
    again = there("rerun", path, "--json")
    worker.join()
    assert (again.status, again.envelope["data"]["identical"]) == (0, True), again.err
    assert again.envelope["data"]["same_recipe"] is True
    # And two jobs are steered
    ids = there("render", "a plum", "--chain", "txt", "--count", 2).out.split()
    for command, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        assert there("jobs", command, *ids).out.split() == [ids[0], state, ids[1], state]
    assert there("jobs", "reprioritise", *ids, "--priority", 90, "--lane", "bulk").status == 0
    assert {(one.priority, one.lane) for one in map(site.farm.ledger.job, ids)} == {(90, "bulk")}
    run_of = site.farm.job(ids[0]).record.run
    for command, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        assert there("runs", command, run_of).out == f"{run_of}  2 {state}\n"


def test_a_sweep_is_submitted_and_a_worker_drained(site: Site, hand: Hand, there: Run) -> None:
    axes = ("--sweep", "guidance_scale=3,7", "--sweep", '{"prompt": ["a pear", "a plum"], "seed": [1, 2]}')
    ids = there("render", "--chain", "txt", *axes).out.split()
    chains = [json.loads(site.farm.job(job).record.spec)["chain"] for job in ids]
    found = [(one["prompt"], one["seed"], one["stages"][0]["guidance_scale"]) for one in chains]
    assert found == [("a pear", 1, 3), ("a plum", 2, 3), ("a pear", 1, 7), ("a plum", 2, 7)]
    several = there("render", "a pear", "--sweep", "seed=1,2", "-o", "one.png")
    assert (several.status, several.out) == (2, "")
    hand.ledger.register("w1", "b1", ["upscale.tiny-x4"], "idle", {"host": "h", "pid": "1"})
    for verb, told in (("drain", "draining"), ("resume", "resumed")):
        assert there("workers", verb, "w1").out == f"w1  {told}\n"
        (worker,) = (one for one in site.farm.workers() if one.worker == "w1")
        assert worker.draining is (verb == "drain")


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
    drawn = there("chain", "comfy", again.envelope["data"]["jobs"][0]["id"], "-o", tmp_path / "comfy")
    image, graph = map(Path, drawn.out.splitlines())
    named = [node["inputs"]["image"] for node in json.loads(graph.read_text()).values() if "image" in node["inputs"]]
    assert named == [image.name]
    assert image.read_bytes() == (tmp_path / "again" / "input.png").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["up"], ["demo"], ["worker", "--stage", "text2img"], ["serve"],
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


def test_doctor_looks_at_the_farm_elsewhere(site: Site, there: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = there("doctor", "--json")
    assert (found.status, {one["name"]: one["state"] for one in found.envelope["data"]}) == (
        0, {"python": "ok", "api": "ok", "version": "ok", "token": "ok"},
    )  # fmt: skip
    assert found.envelope["data"][-1]["found"] == "root: read, submit, admin"
    monkeypatch.setattr(doctor, "__version__", "0.0.1")
    monkeypatch.setenv("FARM_TOKEN", "secret-word")
    wrong = there("doctor")
    assert wrong.status == 1
    assert "secret-word" not in wrong.out + wrong.err
    assert f"version: pip install 'latent-farm[client]=={__version__}'" in wrong.out
    assert "token: put into FARM_TOKEN what `farm token create` prints on its machine" in wrong.out
    monkeypatch.setenv("FARM_URL", f"http://127.0.0.1:{free_port()}")
    away = there("doctor")
    assert (away.status, "api: is `farm serve` running there? FARM_URL says where" in away.out) == (1, True)


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
    monkeypatch.setenv("FARM_URL", "127.0.0.1:8400")
    assert there("jobs", "ls").err.startswith("error: FARM_URL: an address such as http://127.0.0.1:8400 or ")
    monkeypatch.setenv("FARM_URL", "ftp://farm.example.org")
    assert there("jobs", "ls").said == "error: FARM_URL: an address such as https://farm.example.org\n"


def test_the_address_of_the_api_is_one_of_the_farm(site: Site, there: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_URL", f"{site.url}/api/v1/")
    assert there("chain", "ls").status == 0


def test_without_a_token_it_is_said_where_one_comes_from(there: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_TOKEN", "")
    found = there("jobs", "ls")
    assert (found.status, found.out) == (1, "")
    assert found.err.splitlines()[0] == "error: the token is missing, not known, or has expired"
    assert found.err.splitlines()[1].startswith("hint: set FARM_TOKEN: `farm token create` ")


def test_who_the_workers_are_is_withheld_from_others_than_admins(
    site: Site, hand: Hand, there: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.ledger.register("w9", "b1", ["upscale.tiny-x4"], "idle", {"host": "h", "pid": "1"})
    monkeypatch.setenv("FARM_TOKEN", site.token("ada"))
    lines = [one.split() for one in there("queue", "status").out.splitlines()]
    assert ["withheld", "idle", "upscale.tiny-x4", "withheld", "withheld"] in lines
    workers = there("queue", "status", "--json").envelope["data"]["workers"]
    assert {(one["worker"], one["host"], one["pid"]) for one in workers} == {(None, None, None)}


def test_an_image_that_is_not_there_is_named_as_it_was_typed(there: Run) -> None:
    found = there("render", "a pear", "--image", "/nonexist", "--dry-run")
    assert (found.status, found.said) == (2, "error: image: /nonexist cannot be read: No such file or directory\n")


def test_a_program_names_what_is_to_be_pulled_for_it(
    site: Site, hand: Hand, there: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = done(site, hand).job
    monkeypatch.setenv("FARM_MODELS", str(tmp_path))
    assert there("script", job).out.splitlines()[0].endswith("farm models pull tiny")
    monkeypatch.setenv("FARM_MODELS", str(site.settings.models_dir))
    assert there("script", job).out.startswith("import torch\n")


def test_several_pictures_are_made_again(site: Site, hand: Hand, there: Run, tmp_path: Path) -> None:
    # Given two pictures of the farm's
    paths = [site.farm.job(done(site, hand).job).download(tmp_path)[0] for _ in range(2)]
    worker = threading.Thread(target=lambda: [hand.serve(hand.claim(QUEUE)) for _ in paths])
    worker.start()
    # When both are made again
    found = there("rerun", *paths, "-o", tmp_path / "again", "--json")
    worker.join()
    # Then both are, and each is told of
    assert found.status == 0, found.err
    data = found.envelope["data"]
    assert (data["identical"], [one["identical"] for one in data["jobs"]]) == (True, [True, True])
    assert len(list((tmp_path / "again").glob("*.png"))) == 2
    assert there("rerun", *paths, "-o", tmp_path / "one.png").status == 2
    # And where one cannot be, those before it are told
    (tmp_path / "foreign.png").write_bytes(picture("navy"))
    half = there("rerun", paths[0], tmp_path / "foreign.png", "--no-wait", "--json")
    assert (half.status, half.code, len(half.envelope["data"]["jobs"])) == (2, "bad_file", 1)


def test_httpx_is_imported_for_a_farm_elsewhere_alone() -> None:
    code = "import sys; from farm.cli import main; main(['chain', 'ls']); print('httpx2' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "False"
