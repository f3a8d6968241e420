"""Does the command line say what happened, to people and to programs, and with the right exit status?"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from PIL import Image
from pydantic import SecretStr

from farm import models
from farm.catalog import Catalog
from farm.cli import main
from farm.client import Farm
from farm.dataset.encoding import decode, encode
from farm.errors import Failure
from farm.image import to_png
from farm.job import canonical
from farm.ledger import Ledger
from farm.records import Claim, Commit
from farm.servers import environment
from farm.settings import Settings
from farm.store import Store
from tests.conftest import Valkey, free_port, pause

Json = dict[str, Any]
NO_AWS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


@dataclass(frozen=True)
class Ran:
    """What one command line gave."""

    status: int
    out: str
    err: str

    @property
    def envelope(self) -> Json:
        """The one envelope on stdout."""
        (line,) = self.out.splitlines()
        found: Json = json.loads(line)
        assert list(found) == ["ok", "command", "version", "data", "error"]
        assert found["ok"] is (found["error"] is None) is (self.status == 0)
        return found

    @property
    def said(self) -> str:
        """What stands on stderr but for the log, into which servers in this process write at any time."""
        return "".join(line for line in self.err.splitlines(keepends=True) if not line.startswith("timestamp="))

    @property
    def code(self) -> str:
        """The error's code in the envelope."""
        return str(self.envelope["error"]["code"])


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command line in this process."""
    for name, value in NO_AWS.items():
        monkeypatch.setenv(name, value)

    def command(*words: object) -> Ran:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Ran(status, *capsys.readouterr())

    yield command
    structlog.reset_defaults()


@pytest.fixture
def farm(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """A farm on the real Valkey that the command line finds too; its tiny checkpoints hold one small file each."""
    monkeypatch.setenv("FARM_REDIS_URL", settings.redis_url.get_secret_value())
    with Farm(settings) as found:
        record_tiny(found.catalog)
        yield found


def record_tiny(catalog: Catalog) -> None:
    """Files and locks of the default checkpoints: a submit needs their hashes, not their weights."""
    for name in set(catalog.defaults.values()):
        place = catalog.path(catalog.checkpoints[name])
        place.mkdir(parents=True)
        (place / "model_index.json").write_text(json.dumps({"name": name}))
        models.record(catalog, catalog.checkpoints[name])


@pytest.fixture
def env(farm: Farm, s3: dict[str, str], store: Store, s3_settings: Settings) -> dict[str, str]:
    """The environment of a command in a process of its own, on the real Valkey and S3."""
    update = {name: getattr(s3_settings, name) for name in ("s3_endpoint", "s3_access_key", "s3_secret_key", "bucket")}
    found = environment(farm.settings.model_copy(update=update))
    return {**os.environ, **found, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}


def start(env: dict[str, str], *words: object, **streams: Any) -> subprocess.Popen[str]:
    """`farm` in a process of its own."""
    code = "import sys; from farm.cli import main; sys.exit(main())"
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=env, text=True, **streams)


def ended(process: subprocess.Popen[str]) -> Ran:
    """What a process gave in the end."""
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err or "")


class Hand:
    """A worker by hand: draws one colour in the right size, without torch."""

    def __init__(self, settings: Settings, store: Store, colour: str = "teal") -> None:
        self.ledger, self.store, self.colour = Ledger(settings), store, colour

    def claim(self, *queues: str) -> Claim:
        """The next claim on `queues`, waited for."""
        for _ in range(1500):
            claims, _ = self.ledger.claim(queues, "hand", "boot")
            if claims:
                return claims[0]
            pause()
        raise AssertionError(f"no work on {queues}")

    def serve(self, claim: Claim) -> None:
        """Draws, stores and commits."""
        recipes = json.loads(claim.payload)["recipes"]
        width, height = recipes[-1]["size"]
        data = to_png(Image.new("RGB", (width, height), self.colour), {"recipes": recipes})
        blob = self.store.put_blob(data, "image/png")
        for job in claim.finishing:
            self.store.put_result(job, len(recipes) - 1, data, {}, blob)
        output = canonical({"blob": blob, "medium": "image", "size": [width, height]})
        self.ledger.commit([Commit(claim, output, claim.finishing)])


def write(path: Path, chain: object) -> Path:
    """A chain file."""
    path.write_text(chain if isinstance(chain, str) else json.dumps(chain))
    return path


# ------------------------------------------------------------------------------------------- the frame


def test_version(run: Run) -> None:
    # When the version is asked for, for people and for programs
    plain, data = run("--version"), run("--version", "--json")
    # Then both say it
    assert (plain.status, plain.out) == (0, "farm 0.1.0\n")
    assert data.envelope["data"] == {"version": "0.1.0"}


@pytest.mark.parametrize(
    "words", [[], ["jobs"], ["jobs", "tag"], ["render"], ["chain", "show"], ["models", "pull"], ["worker"]]
)
def test_help_everywhere_has_an_example(run: Run, words: list[str]) -> None:
    # When help is asked for by -h and --help
    short, long = run(*words, "-h"), run(*words, "--help")
    # Then both give the same, on stdout, and a command shows how it is used
    assert (short.status, short.err) == (0, "")
    assert short == long
    assert "Usage: farm" in short.out
    assert words in ([], ["jobs"]) or f"\n  farm {' '.join(words)} " in short.out


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], ["pydantic", "boto3", "redis", "celery", "structlog", "torch"]),
        (["chain", "ls"], ["torch", "numpy", "diffusers", "boto3", "celery"]),
        (["chain", "show", "hires"], ["torch", "numpy", "diffusers"]),
        (["models", "ls"], ["torch", "numpy", "huggingface_hub"]),
        (["jobs", "ls"], ["torch", "numpy", "diffusers"]),
    ],
)
def test_commands_import_only_what_they_need(words: list[str], heavy: list[str]) -> None:
    # Given a fresh interpreter
    code = f"import sys; from farm.cli import main; main({words}); print([m for m in {heavy} if m in sys.modules])"
    # When the command has run in it
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    # Then nothing heavy was imported
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "command", "told"),
    [
        (["nope"], "", "No such command 'nope'"),
        (["render", "--nope"], "render", "No such option: --nope"),
        (["jobs", "show"], "jobs show", "Missing argument"),
        (["jobs", "ls", "--limit", "many"], "jobs ls", "Invalid value for '--limit'"),
        (["jobs"], "jobs", "`farm jobs` needs a command"),
        ([], "", "`farm` needs a command"),
        (["render"], "render", "nothing to draw"),
        (["render", "a pear", "--count", "2", "-o", "a.png"], "render", "several pictures"),
        (["render", "a pear", "--set", "strength"], "render", "not [I.]NAME=VALUE"),
        (["render", "a pear", "--seed", "1", "--set", "seed=2"], "render", "seed is given twice"),
        (["chain", "comfy", "img", "--image-size", "big"], "chain comfy", "not WxH"),
        (["chain", "show", "img", "--image-size", "big"], "chain show", "not WxH"),
    ],
)
def test_misuse_is_told_and_exits_2(run: Run, words: list[str], command: str, told: str) -> None:
    # When a command line cannot be meant
    plain, data = run(*words), run(*words, "--json")
    # Then people get one error line on stderr and nothing on stdout
    assert (plain.status, plain.out) == (2, "")
    (error,) = [line for line in plain.err.splitlines() if line.startswith("error: ")]
    assert told in error
    # And programs get an envelope, wherever --json stands
    assert (data.status, data.code, data.envelope["command"]) == (2, "usage", command)
    assert told in data.envelope["error"]["message"]


def test_a_wrong_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a variable that holds what it cannot hold
    monkeypatch.setenv("FARM_LEASE_S", "soon")
    # When any command runs
    found = run("chain", "ls")
    # Then the variable is named
    assert found.status == 2
    assert found.err.startswith("error: FARM_LEASE_S: ")


@pytest.mark.parametrize("target", ["{tmp}/file/x", "{tmp}/picture.jpg"])
def test_a_target_that_cannot_be_written_is_refused_before_anything_runs(run: Run, tmp_path: Path, target: str) -> None:
    # Given a file where a folder is wanted, and a name that is no PNG
    (tmp_path / "file").touch()
    # Then no server is even asked
    done = run("models", "pull", "tiny")
    assert done.status == 0, done.err
    found = run("render", "x", "--chain", "txt", "-o", target.format(tmp=tmp_path))
    assert (found.status, found.out) == (2, "")
    assert found.err.startswith("error: -o ")


def test_an_unusable_data_folder_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FARM_DATA", str(tmp_path / "file" / "data"))
    found = run("up")
    assert found.status == 1
    assert found.err.startswith("error: the data folder")
    assert "FARM_DATA" in found.err


def test_a_redis_url_of_another_kind_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", "http://x")
    found = run("jobs", "ls")
    assert found.status == 2
    assert "FARM_REDIS_URL: a URL that begins with redis://" in found.err


@pytest.mark.parametrize(
    "words", [["--count", "0"], ["--count", "100000000"], ["--priority", "101"], ["--deadline-s", "nan"]]
)
def test_a_dry_run_refuses_what_a_submit_refuses(run: Run, words: list[str]) -> None:
    run("models", "pull", "tiny")
    assert run("render", "x", "--chain", "txt", "--dry-run", *words).status == 2


def test_unreachable_exits_4(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a port where nobody listens
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://:secret-word@127.0.0.1:{free_port()}/0")
    # When the ledger is needed
    plain, data = run("jobs", "ls"), run("--json", "jobs", "ls")
    # Then it is said without a traceback, and without the password
    assert (plain.status, plain.out) == (4, "")
    assert plain.err.startswith("error: the farm's Redis does not answer")
    assert "Traceback" not in plain.err
    assert "secret-word" not in plain.err + data.out
    assert (data.status, data.code) == (4, "unavailable")


def test_no_colours_where_none_are_wanted(env: dict[str, str]) -> None:
    # Given a terminal
    def on_terminal(*words: str, **more: str) -> str:
        ours, theirs = pty.openpty()
        process = start({**env, "TERM": "xterm", **more}, *words, stdout=theirs, stderr=theirs)
        process.wait(60)
        os.close(theirs)
        told = read_until(ours, "PULLED")
        os.close(ours)
        return told

    # Then headings are bold there, but not with --no-color or NO_COLOR
    assert "\033[" in on_terminal("models", "ls")
    assert "\033[" not in on_terminal("models", "ls", "--no-color")
    assert "\033[" not in on_terminal("models", "ls", NO_COLOR="1")


def test_a_reader_that_leaves_early_is_no_error(env: dict[str, str]) -> None:
    # Given a reader that has gone
    process = start(env, "chain", "ls")
    assert process.stdout
    process.stdout.close()
    # When the command writes to it
    process.wait(60)
    # Then there is no traceback
    assert process.stderr
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.returncode == 0


# ------------------------------------------------------------------------------------------- chains


def test_chain_show_tells_the_typed_edges(run: Run) -> None:
    # When the four-stage preset is shown
    found = run("chain", "show", "hires")
    data = run("chain", "show", "hires", "--json").envelope["data"]["stages"]
    # Then each edge has its medium, space and size: latents until the x4 upscaler, which takes images
    assert [(item["takes"], item["emits"], item["size"]) for item in data] == [
        (None, "latents", [64, 64]),
        ("latents", "latents", [64, 64]),
        ("latents", "image", [128, 128]),
        ("image", "image", [512, 512]),
    ]
    assert "latents (tiny) 64×64 → 128×128 image" in " ".join(found.out.split())


def test_every_preset_can_be_shown(run: Run) -> None:
    # Given the list of presets
    presets = [item["name"] for item in run("chain", "ls", "--json").envelope["data"]]
    assert {"txt", "img", "hires", "upscale"} <= set(presets)
    # Then each is a possible chain that ends in an image
    for name in presets:
        stages = run("chain", "show", name, "--json").envelope["data"]["stages"]
        assert stages[-1]["emits"] == "image", name


def test_chain_show_takes_an_image_size(run: Run) -> None:
    # When the input image has a size
    stages = run("chain", "show", "img-hires", "--image-size", "99x70", "--json").envelope["data"]["stages"]
    # Then every size follows from it, rounded to the cells of the latents
    assert [stage["size"] for stage in stages] == [[96, 64], [192, 128], [768, 512]]


def test_validate_accepts_what_a_submit_would(run: Run, tmp_path: Path) -> None:
    # Given a possible chain file
    file = write(tmp_path / "chain.yaml", "stages:\n- {kind: text2img, width: 96}\n- {kind: upscale}\n")
    # Then it is told what it gives
    found = run("chain", "validate", file)
    assert found.status == 0
    assert "2 stages that gives 384×256" in found.out


STAGE = {"kind": "text2img"}


@pytest.mark.parametrize(
    ("name", "chain", "code", "told"),
    [
        ("a.json", {"stages": [STAGE] * 20}, "bad_length", "stages: 1 to 8 stages, not 20"),
        ("a.json", {"stages": []}, "bad_length", "stages: 1 to 8 stages, not 0"),
        ("a.json", {"stages": [{**STAGE, "stepz": 4}]}, "unknown_field",
         "stages.0.stepz: no such field; did you mean steps?"),
        ("a.json", {"stages": [{"kind": "img2vid"}]}, "unknown_kind", "stages.0.kind: not an installed kind"),
        ("a.json", {"stages": [{**STAGE, "checkpoint": "sd9"}]}, "unknown_checkpoint", "stages.0.checkpoint: 'sd9'"),
        ("a.json", '{"stages": [{"kind": "text2img", "guidance_scale": NaN}]}', "bad_file", "NaN is not a number"),
        ("a.json", '{"stages": [], "stages": []}', "bad_file", "a key is given twice"),
        ("a.yaml", "stages: []\nstages: []\n", "bad_file", "a key is given twice"),
        ("a.yaml", "stages: [{kind: text2img, guidance_scale: .nan}]", "invalid_field", "stages.0.guidance_scale: "),
        ("a.yaml", "{", "bad_file", "not a chain file"),
        ("a.json", "[]", "bad_file", "one mapping"),
    ],
)  # fmt: skip
def test_bad_chain_files_are_refused(run: Run, tmp_path: Path, name: str, chain: object, code: str, told: str) -> None:
    # Given a file that describes no possible chain
    file = write(tmp_path / name, chain)
    # When it is checked
    plain, data = run("chain", "validate", file), run("chain", "validate", file, "--json")
    # Then what is wrong is named, and where
    assert (plain.status, plain.out) == (2, "")
    assert told in plain.err
    assert (data.status, data.code) == (2, code)


def test_each_wrong_field_has_its_line(run: Run, tmp_path: Path) -> None:
    # Given two mistakes in one file
    file = write(
        tmp_path / "a.json", {"seed": -1, "stages": [{**STAGE, "width": 65}, {"kind": "img2img", "strength": 2}]}
    )
    # When it is checked
    plain, data = run("chain", "validate", file), run("chain", "validate", file, "--json")
    # Then every one has a line for people and an entry for programs
    fields = {"seed", "stages.0.width", "stages.1.strength"}
    assert {line.removeprefix("error: ").split(": ")[0] for line in plain.err.splitlines()} == fields
    assert {wrong["loc"] for wrong in data.envelope["error"]["errors"]} == fields


# ------------------------------------------------------------------------------------------- models, doctor, workers


def test_models_ls_says_what_is_pulled(run: Run, farm: Farm) -> None:
    # Given the default checkpoints, recorded
    found = {item["name"]: item for item in run("models", "ls", "--json").envelope["data"]}
    # Then the list tells them from the others
    assert (found["tiny"]["pulled"], found["sd15"]["pulled"]) == (True, False)
    assert found["sd15"]["kinds"] == ["text2img", "img2img", "inpaint"]
    assert (found["tiny"]["size_bytes"] > 0, found["sd15"]["size_bytes"]) == (True, 0)
    # And the adapters are there, by their type
    assert (found["control-canny"]["type"], found["control-canny"]["family"]) == ("controlnet", "sd")


def test_models_rm_removes_files_and_hashes(run: Run, farm: Farm) -> None:
    # Given a recorded checkpoint
    assert run("models", "rm", "tiny").status == 0
    # Then neither its files nor its lock are there, and it is said how to get it back
    assert not [path for path in farm.settings.models_dir.iterdir() if path.name.partition(".")[0] == "tiny"]
    assert run("models", "rm", "tiny", "--json").code == "not_pulled"
    assert run("models", "rm", "nothing", "--json").code == "unknown_checkpoint"


def test_stages_tells_kinds_and_parameters(run: Run) -> None:
    listed = {item["kind"]: item for item in run("stages", "--json").envelope["data"]}
    assert {"text2img", "img2img", "inpaint", "depth2img", "upscale_latent", "upscale", "esrgan"} <= {*listed}
    assert (listed["inpaint"]["takes"], listed["inpaint"]["gives"]) == (["image"], ["image"])
    one = run("stages", "inpaint")
    for word in ("padding_mask_crop", "mask", "an image, white where it is drawn anew"):
        assert word in " ".join(one.out.split())
    assert run("stages", "paint").status == 2
    # And what is piped stays narrow enough to be read
    assert max(len(line) for kind in listed for line in run("stages", kind).out.splitlines()) <= 140


def test_models_verify_finds_a_changed_file(run: Run, farm: Farm) -> None:
    # Given recorded checkpoints, all as they were
    assert run("models", "verify").status == 0
    # When a file of one changes
    (farm.settings.models_dir / "tiny-x4" / "model_index.json").write_text("{}")
    # Then it is named, alone
    found = run("models", "verify", "--json")
    assert (found.status, found.code) == (1, "bad_checkpoint")
    assert [item["name"] for item in found.envelope["data"] if item["problems"]] == ["tiny-x4"]
    assert run("models", "verify", "tiny").status == 0


def test_models_nothing_pulled_and_unknown_names(run: Run) -> None:
    # Given nothing pulled: verifying and unknown names are refused
    assert run("models", "verify", "--json").code == "not_pulled"
    assert run("models", "pull", "tinny", "--json").code == "unknown_checkpoint"
    # And a pull from a folder that holds nothing is a failure
    assert run("models", "pull", "sd15", "--from", "/nonexistent").status == 1


def test_doctor_with_nothing_running(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a farm of which nothing runs
    monkeypatch.setenv("FARM_REDIS_URL", f"redis://:secret-word@127.0.0.1:{free_port()}/0")
    # When the doctor looks
    found = run("doctor")
    # Then the needed parts are broken, each with a remedy, and no secret is told
    assert found.status == 1
    assert "error: needed, but broken: redis, s3" in found.err
    for remedy in (
        "redis: start `farm up`",
        "s3: start `farm up`, or check AWS_ENDPOINT_URL_S3",
        "farm models pull tiny tiny-x2 tiny-x4",
    ):
        assert remedy in found.out
    assert "secret-word" not in found.out + found.err


def test_doctor_tells_of_a_disk_without_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.doctor.ROOM_BYTES", 1 << 60)
    found = run("doctor")
    assert "disk: make room, or move FARM_DATA" in found.out
    assert "broken: disk" in found.err


def test_doctor_with_a_farm(run: Run, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, valkey: Valkey) -> None:
    # Given Redis, S3 and checkpoints, but no worker
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    # When the doctor looks
    found = run("doctor", "--json")
    states = {item["name"]: item["state"] for item in found.envelope["data"]}
    # Then all that is needed works, and the unserved queues are told
    assert found.status == 0
    assert {states[name] for name in ("redis", "redis aof", "redis eviction", "redis cluster", "s3")} == {"ok"}
    assert states["queues"] == "missing"
    # And when the server would lose jobs, that is broken
    client = redis.Redis.from_url(valkey.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        broken = run("doctor", "--json")
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert broken.status == 1
    assert "redis eviction" in broken.envelope["error"]["message"]


@pytest.mark.parametrize(
    ("stage", "code"),
    [("img2vid", "unknown_kind"), ("text2img=sd9", "unknown_checkpoint"), ("text2img=sd-x4", "wrong_checkpoint"),
     ("text2img=sd15", "not_pulled"), ("text2img,text2img", "usage")],
)  # fmt: skip
def test_a_worker_is_refused_before_it_starts(run: Run, farm: Farm, stage: str, code: str) -> None:
    # When a worker is asked for that could never work: it is refused at once
    found = run("worker", "--stage", stage, "--json")
    assert (found.status, found.code) == (2, code)


def test_worker_becomes_the_supervisor(env: dict[str, str]) -> None:
    # When workers are started
    words = ("--stage", "text2img,img2img=tiny", "--stage", "upscale", "--name", "w1")
    process = start(env, "worker", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # Then the process becomes their supervisor, one slot per --stage, with queues by kind and checkpoint
        cmdline = Path(f"/proc/{process.pid}/cmdline")
        for _ in range(1500):
            if "workers.supervisor" in (found := cmdline.read_text().split("\0")):
                break
            pause()
        slots = [found[index + 1] for index, word in enumerate(found) if word == "--slot"]
        assert slots == ["text2img.tiny,img2img.tiny", "upscale.tiny-x4"]
        assert found[found.index("--name") + 1] == "w1"
    finally:
        process.kill()
        process.wait(30)


# ------------------------------------------------------------------------------------------- submitting


def test_dry_run_checks_and_stores_nothing(run: Run, farm: Farm, tmp_path: Path) -> None:
    # Given an input image
    Image.new("RGB", (96, 64)).save(tmp_path / "in.png")
    # When a run from it is tried dry, without any S3
    words = ("render", "a pear", "--image", tmp_path / "in.png", "--chain", "img-hires", "--count", "3", "--seed", "5")
    found = run(*words, "--strength", "0.5", "--set", "1.steps=4", "--dry-run", "--json").envelope["data"]
    # Then the typed chain with its parameters is shown
    assert [stage["size"] for stage in found["stages"]] == [[96, 64], [192, 128], [768, 512]]
    assert found["stages"][0]["parameters"]["strength"] == 0.5
    assert [stage["parameters"]["num_inference_steps"] for stage in found["stages"]] != [4, 4, 4]
    assert found["stages"][1]["parameters"]["num_inference_steps"] == 4
    assert "seeds 5 to 7; not submitted" in run(*words, "--dry-run").out
    assert (found["cost_s"], found["eta_s"]) == (None, None)
    # And nothing was submitted
    assert farm.jobs() == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--strength", "2"], "invalid_field", "stages.1.strength"),
        (["--noise-level", "20", "--chain", "txt"], "unknown_field", "noise_level"),
        (["--chain", "hirez"], "unknown_preset", "chain"),
        (["--chain", "img"], "no_image", "image"),
        (["--image", "/nonexistent.png"], "bad_image", "image"),
        (["--count", "0"], "invalid_field", "count"),
        (["--priority", "101"], "invalid_field", "priority"),
        (["--tag", "fine", "--tag", "not fine"], "invalid_field", "tags.1"),
        (["--width", "65"], "bad_size", "stages.0.width"),
        (["--scheduler", "Eulerish"], "unknown_scheduler", "stages.0.scheduler"),
        (["--set", "9.strength=0.4"], "unknown_field", "9.strength"),
        (["--set", 'steps="many"'], "invalid_field", "stages.0.num_inference_steps"),
        (["--set", "0.guidance_scale=NaN"], "invalid_field", "stages.0.guidance_scale"),
    ],
)
def test_render_refuses_by_field(run: Run, farm: Farm, words: list[str], code: str, told: str) -> None:
    # When something about the pictures is not possible
    found = run("render", "a pear", *words, "--json")
    # Then the field is named, and nothing was submitted
    assert (found.status, found.code) == (2, code)
    assert told in [wrong["loc"] for wrong in found.envelope["error"]["errors"]]
    assert farm.jobs() == []


def test_render_prints_the_ids_and_jobs_ls_lists_them(run: Run, farm: Farm) -> None:
    # When two pictures are asked for
    ids = run("render", "a secret pear", "--count", "2", "--seed", "3", "--lane", "bulk").out.split()
    # Then they are in the ledger, newest first, with neighbouring seeds
    assert [record.job for record in farm.jobs()] == ids[::-1]
    assert [farm.job(job).seed for job in ids] == [3, 4]
    listed = run("jobs", "ls")
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ids[::-1]
    assert "pear" not in listed.out
    data = run("jobs", "ls", "--state", "queued", "--limit", "1", "--json").envelope["data"]
    assert [(job["id"], job["state"], job["lane"], job["n"]) for job in data] == [(ids[1], "queued", "bulk", 4)]
    assert run("jobs", "ls", "--state", "done", "--json").envelope["data"] == []
    assert len(run("jobs", "ls", "--run", data[0]["run"], "--json").envelope["data"]) == 2


def test_size_is_of_the_first_stage(run: Run, farm: Farm) -> None:
    # When a size is given to a chain whose later stages have one too
    (job,) = run("render", "a pear", "--width", "96", "--height", "64").out.split()
    # Then the first stage has it
    stages = json.loads(farm.job(job).record.spec)["chain"]["stages"]
    assert (stages[0]["width"], stages[0]["height"], stages[1].get("width")) == (96, 64, None)


def test_an_idempotency_key_yields_one_job(run: Run, farm: Farm) -> None:
    # When the same is asked for twice with one key
    words = ("render", "a pear", "--idempotency-key", "k1")
    assert run(*words).out == run(*words).out
    assert len(farm.jobs()) == 1
    # Then another prompt with that key is refused
    found = run("render", "an apple", "--idempotency-key", "k1", "--json")
    assert (found.status, found.code) == (1, "idempotency_conflict")


def test_jobs_are_found_by_their_last_characters(run: Run, farm: Farm) -> None:
    # Given a job that no worker serves
    (job,) = run("render", "a pear", "--seed", "3").out.split()
    # When it is shown by the end of its id
    plain, data = run("jobs", "show", job[-6:]), run("jobs", "show", job[-6:], "--json").envelope["data"]
    # Then it says what was asked for and why it waits
    assert "no worker serves text2img.tiny" in plain.out
    assert "a pear" in plain.out
    assert (data["id"], data["chain"]["seed"], data["waits_for"]) == (job, 3, "no worker serves text2img.tiny")
    assert [stage["queue"] for stage in data["stages"]][3] == "upscale.tiny-x4"
    # And ids that are no job's, or too short, are not found
    for wrong in ("zzzz", job[-3:]):
        found = run("jobs", "show", wrong, "--json")
        assert (found.status, found.code) == (1, "not_found")


def test_jobs_are_steered(run: Run, farm: Farm) -> None:
    # Given two jobs
    ids = run("render", "a pear", "--count", "2").out.split()
    # Then they pause, resume, end and start again
    for command, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        found = run("jobs", command, *ids)
        assert found.status == 0, found.err
        assert found.out.split() == [ids[0], state, ids[1], state]
    # And where one is refused, the others are steered all the same
    mixed = run("jobs", "cancel", "zzzz", ids[1], "--json")
    assert (mixed.status, mixed.code) == (1, "not_found")
    assert mixed.envelope["data"]["jobs"][1] == {"id": ids[1], "state": "cancelled"}
    conflict = run("jobs", "retry", ids[0], "--json")
    assert (conflict.status, conflict.code) == (1, "conflict")
    # And all that is left of their run is ended by its name
    name = farm.job(ids[0]).record.run
    ended_ = run("runs", "cancel", name, "--json").envelope["data"]
    assert (ended_["id"], ended_["count"], ended_["states"]) == (name, 2, {"cancelled": 2})
    assert run("runs", "cancel", name).out == f"{name}  2 cancelled\n"


def test_jobs_are_tagged_and_found_again(run: Run, farm: Farm) -> None:
    # Given two jobs with two tags, and one without
    ids = run("render", "a pear", "--count", "2", "--tag", "fruit", "--tag", "Entwurf").out.split()
    (other,) = run("render", "a table").out.split()
    assert [record.job for record in farm.jobs(tag="fruit")] == ids[::-1]
    # When one gets a star, and has a tag taken off
    told = run("jobs", "tag", ids[0][-6:], other, "--add", "starred", "--remove", "Entwurf")
    assert told.out.splitlines() == [f"{ids[0]}  fruit starred", f"{other}  starred"]
    # Then it is listed so, and told so
    rows = [line.split() for line in run("jobs", "ls", "--tag", "starred").out.splitlines()]
    assert (rows[0][-1], [row[0] for row in rows[1:]]) == ("TAGS", [other, ids[0]])
    data = run("jobs", "ls", "--tag", "fruit", "--json").envelope["data"]
    assert [(one["id"], one["tags"]) for one in data] == [
        (ids[1], ["fruit", "Entwurf"]),
        (ids[0], ["fruit", "starred"]),
    ]
    assert run("jobs", "show", ids[0], "--json").envelope["data"]["tags"] == ["fruit", "starred"]
    assert "tags       fruit starred" in run("jobs", "show", ids[0]).out
    counts = {"starred": 2, "fruit": 2, "Entwurf": 1}
    assert {one["tag"]: one["count"] for one in run("jobs", "tags", "--json").envelope["data"]} == counts
    assert run("jobs", "tags").out.split()[:2] == ["TAG", "JOBS"]
    # And where one is not found the other is tagged all the same
    mixed = run("jobs", "tag", "zzzz", ids[1], "--add", "new", "--json")
    assert (mixed.status, mixed.code) == (1, "not_found")
    assert mixed.envelope["data"]["jobs"][1] == {"id": ids[1], "tags": ["fruit", "Entwurf", "new"]}
    # And what is no change is refused
    for words in ([], ["--add", "a b"], ["--add", "x", "--remove", "x"]):
        assert (run("jobs", "tag", ids[0], *words, "--json").code, words) == ("invalid_field", words)
    assert run("jobs", "ls", "--tag", "a b", "--json").code == "invalid_field"


def test_queue_status_counts(run: Run, farm: Farm) -> None:
    # Given a ready job and a worker
    run("render", "a pear")
    Ledger(farm.settings).register("w1", "b1", ["text2img.tiny"], "idle", {"host": "h", "pid": "1"})
    # Then both are told
    found = run("queue", "status", "--json").envelope["data"]
    asked = {"queue": "text2img.tiny", "ready": 1, "running": 0, "live": 1, "mean_s": None, "wall_s": None, "work": 0.0}
    assert asked in found["queues"]
    assert [worker["worker"] for worker in found["workers"]] == ["w1"]
    assert "w1" in run("queue", "status").out


def test_a_job_that_is_not_done_cannot_be_downloaded(run: Run, farm: Farm, tmp_path: Path) -> None:
    # Given a queued job
    (job,) = run("render", "a pear").out.split()
    # Then there is nothing to download, and it is said how to wait
    found = run("jobs", "download", job, "-o", tmp_path, "--json")
    assert (found.status, found.code) == (1, "conflict")
    assert "farm jobs wait" in found.envelope["error"]["hint"]


# ------------------------------------------------------------------------------------------- waiting


def test_wait_shows_progress_and_writes_the_picture(
    env: dict[str, str], farm: Farm, store: Store, tmp_path: Path
) -> None:
    # Given a command that waits for its picture
    process = start(env, "render", "a pear", "--chain", "txt", "--seed", "1", "-o", tmp_path / "pear.png")
    # When a worker draws it
    hand = Hand(farm.settings, store)
    hand.serve(hand.claim("text2img.tiny"))
    found = ended(process)
    # Then stdout holds the URI and the path, stderr the progress in plain lines
    assert found.status == 0, found.err
    (record,) = farm.jobs()
    uri, path = found.out.splitlines()
    assert uri.startswith("s3://")
    assert record.job in uri
    assert path == str(tmp_path / "pear.png")
    assert Image.open(path).size == (64, 64)
    assert f"{record.job}  done" in found.err
    assert "\033" not in found.err
    # And a dry run of as much tells what it would cost
    dry = ended(start(env, "render", "a pear", "--chain", "txt", "--count", "40", "--dry-run"))
    assert re.search(r"^device time about \d+ \w+$", dry.out, re.M)
    # And from here on it can be downloaded, watched, printed as a program and made again
    again = start(env, "jobs", "download", record.job, "-o", tmp_path / "more")
    assert ended(again).out == f"{tmp_path / 'more' / record.job}.png\n"
    watched = ended(start(env, "jobs", "watch", record.job, "--json"))
    assert watched.envelope["data"]["events"][0]["type"] == "submitted"
    assert "done" in watched.err
    assert "import torch" in ended(start(env, "script", record.job)).out
    # Until it is deleted
    removed = ended(start(env, "jobs", "rm", record.job))
    assert (removed.status, removed.out.split()) == (0, [record.job, "deleted"])
    assert farm.jobs() == store.results_of(record.job) == []


@pytest.mark.parametrize("form", ["png", "webp", "jpg"])
@pytest.mark.parametrize(("colour", "identical"), [("teal", True), ("pink", False)])
def test_rerun_compares_the_pixels(
    env: dict[str, str], farm: Farm, store: Store, tmp_path: Path, colour: str, identical: bool, form: Any
) -> None:
    # Given a picture that the farm made
    first = start(env, "render", "a pear", "--chain", "txt", "-o", tmp_path / "pear.png")
    hand = Hand(farm.settings, store)
    hand.serve(hand.claim("text2img.tiny"))
    assert ended(first).status == 0
    # When it is made again, from the PNG or what a dataset makes of it
    data = (tmp_path / "pear.png").read_bytes()
    (tmp_path / f"pear.{form}").write_bytes(encode(data, decode(data), form, 20))
    process = start(env, "rerun", tmp_path / f"pear.{form}", "--json")
    hand.colour = colour
    hand.serve(hand.claim("text2img.tiny"))
    found = ended(process)
    # Then it is said whether the pixels are the same
    assert found.status == 0, found.err
    assert found.envelope["data"]["identical"] is identical
    assert found.envelope["data"]["same_recipe"] is True
    assert len(farm.jobs()) == 2


def test_rerun_of_a_foreign_picture(run: Run, farm: Farm, tmp_path: Path) -> None:
    # Given a PNG without a recipe
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    # Then it cannot be made again
    found = run("rerun", tmp_path / "in.png", "--json")
    assert (found.status, found.code) == (2, "bad_file")


def test_a_failed_job_exits_3(env: dict[str, str], farm: Farm, store: Store) -> None:
    # Given a command that waits for two pictures
    process = start(env, "render", "a pear", "--chain", "txt", "--count", "2", "--wait", "--json")
    hand = Hand(farm.settings, store)
    # When one is drawn and the other fails
    hand.serve(hand.claim("text2img.tiny"))
    hand.ledger.fail([hand.claim("text2img.tiny")], Failure.DETERMINISTIC, "nan_output", "the picture is NaN")
    found = ended(process)
    # Then the status is 3, the reason is told, and the good picture is there
    assert (found.status, found.code) == (3, "job_failed")
    assert "the picture is NaN" in found.envelope["error"]["message"]
    jobs = found.envelope["data"]["jobs"]
    assert sorted((job["state"], job["code"], len(job["results"])) for job in jobs) == [
        ("done", "", 1),
        ("failed", "nan_output", 0),
    ]
    # And so do `jobs wait` and `jobs watch` when they come later
    assert ended(start(env, "jobs", "wait", *[job["id"] for job in jobs])).status == 3
    failed = next(job["id"] for job in jobs if job["state"] == "failed")
    assert ended(start(env, "jobs", "watch", failed)).status == 3


def test_waiting_outlives_a_restart_of_the_ledger(
    env: dict[str, str], farm: Farm, store: Store, tmp_path: Path
) -> None:
    # Given a command that waits for a picture, on a Valkey of its own
    valkey = Valkey(tmp_path / "own").start()
    process = start({**env, "FARM_REDIS_URL": valkey.url}, "render", "a pear", "--chain", "txt", "--wait")
    try:
        assert process.stderr
        process.stderr.readline()
        # When the Valkey goes away for a moment, and the picture is drawn after that
        valkey.stop()
        valkey.start()
        settings = farm.settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
        hand = Hand(settings, store)
        hand.serve(hand.claim("text2img.tiny"))
        # Then the command still gets it
        found = ended(process)
        assert found.status == 0, found.err
        assert found.out.startswith("s3://")
    finally:
        process.kill()
        valkey.kill()


def test_without_a_store_the_ids_are_told(env: dict[str, str], farm: Farm, store: Store, tmp_path: Path) -> None:
    # Given a command that waits for a picture and cannot reach the store
    nowhere = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1"}
    process = start({**env, **nowhere}, "render", "a pear", "--chain", "txt", "-o", tmp_path)
    # When the picture is drawn
    hand = Hand(farm.settings, store)
    hand.serve(hand.claim("text2img.tiny"))
    found = ended(process)
    # Then the status is "unreachable", and the job can still be found
    assert (found.status, found.out) == (4, f"{farm.jobs()[0].job}\n")


def test_interrupted_without_a_terminal_the_job_goes_on(env: dict[str, str], farm: Farm) -> None:
    # Given a command that waits for a job that nobody serves, and says so
    process = start(env, "render", "a pear", "--wait")
    assert process.stderr
    assert "no worker serves text2img.tiny" in process.stderr.readline()
    # When it is interrupted
    process.send_signal(signal.SIGINT)
    found = ended(process)
    # Then the id is printed, the job goes on, and the status is 130
    (record,) = farm.jobs()
    assert (found.status, found.out) == (130, f"{record.job}\n")
    assert "the jobs go on" in found.err
    assert record.state == "queued"


@pytest.mark.parametrize(("answer", "state"), [("c\n", "cancelled"), ("d\n", "queued"), (None, "queued")])
def test_interrupted_on_a_terminal_asks(env: dict[str, str], farm: Farm, answer: str | None, state: str) -> None:
    # Given a command that waits on a terminal
    ours, theirs = pty.openpty()
    process = start({**env, "TERM": "xterm"}, "render", "a pear", "--wait", stdin=theirs, stderr=theirs)
    read_until(ours, "no worker serves")
    # When Ctrl+C is pressed, and the question answered or Ctrl+C pressed again
    process.send_signal(signal.SIGINT)
    read_until(ours, "cancel them")
    if answer is None:
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, answer.encode())
    # Then the jobs are cancelled or go on, as was said
    found = ended(process)
    os.close(ours)
    os.close(theirs)
    (record,) = farm.jobs()
    assert (found.status, found.out, record.state) == (130, f"{record.job}\n", state)


def read_until(fd: int, word: str) -> str:
    """What a terminal shows, up to `word`."""
    seen = ""
    while word not in seen:
        ready, _, _ = select.select([fd], [], [], 60)
        assert ready, seen
        try:
            seen += os.read(fd, 65536).decode(errors="replace")
        except OSError:
            break
    assert word in seen, seen
    return seen
