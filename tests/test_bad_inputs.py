"""Is every bad input refused with its code, through every door, quickly, in little memory and without a trace?

What one room refuses by itself is in that room's tests (`test_job`, `test_image`, `test_cli`); here are the inputs that
cross several, and those of the reliability list that no room's own test has.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.errors import FarmError, InvalidJob, NotFound
from tests.conftest import Valkey
from tests.test_cli import Run, run
from tests.test_image import bomb, encoded, noise
from tests.test_outages import Place, open_place, own_s

__all__ = ["run"]

QUICK_S = 3.0
"""Within so many seconds each input is answered, where no other program has the processor."""
FRUGAL_KIB = 64_000
"""So much memory more than before may be held while a bad chain file is read."""
STAGE = {"kind": "text2img"}


@pytest.fixture(scope="module")
def place(shared_valkey: Valkey, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One farm for the module: nothing changes it."""
    with open_place(shared_valkey, s3, tmp_path_factory.mktemp("place"), pytest.MonkeyPatch()) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_trace(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test of this module sends leaves anything in Redis or S3."""
    place.monkeypatch = monkeypatch
    place.through()
    before = place.trace()
    yield
    assert place.trace() == before


def refused(place: Place, **given: Any) -> InvalidJob:
    """The refusal of what Python submits, told quickly."""
    began = own_s()
    with pytest.raises(InvalidJob) as info:
        place.farm.run(**given)
    assert own_s() - began < QUICK_S
    return info.value


def asked(run: Run, *words: object) -> dict[str, Any]:
    """The refusal of a command line, told quickly, without a traceback or a character that steers a terminal."""
    began = own_s()
    data = run("--json", *words)
    assert own_s() - began < QUICK_S
    plain = run(*words)
    assert (data.status, plain.status, plain.out) == (2, 2, "")
    assert "Traceback" not in data.err + plain.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", plain.err)
    assert plain.err.startswith("error: ")
    error: dict[str, Any] = data.envelope["error"]
    return error


# ------------------------------------------------------------------------------------------- chain files


def with_stage(text: str) -> str:
    return '{"stages": [{"kind": "text2img", ' + text + "}]}"


def with_field(text: str) -> str:
    return '{"stages": [{"kind": "text2img"}], ' + text + "}"


FILES: dict[str, tuple[str | bytes, str, str]] = {
    "infinity.json": (with_stage('"guidance_scale": Infinity'), "bad_file", "Infinity is not a number"),
    "1e999.json": (with_stage('"guidance_scale": 1e999'), "invalid_field", "stages.0.guidance_scale: "),
    "seed 1e999.json": (with_field('"seed": 1e999'), "invalid_field", "seed: "),
    "surrogate.json": (with_stage('"negative_prompt": "\\ud800"'), "invalid_field", "stages.0.negative_prompt: "),
    "surrogate kind.json": ('{"stages": [{"kind": "\\ud800"}]}', "unknown_kind", "stages.0.kind: "),
    "surrogate checkpoint.json": (with_stage('"checkpoint": "\\ud800"'), "unknown_checkpoint", "choose one of"),
    "surrogate key.json": (with_field('"\\ud800": 1'), "invalid_field", "chain: "),
    "controls.json": (with_stage('"prompt": "\\u001b[31m"'), "invalid_field", "stages.0.prompt: no control"),
    "control key.json": (with_field('"\\u001b[31m": 1'), "unknown_field", "no such field"),
    "bidi key.json": (with_field('"\\u202egnp": 1'), "unknown_field", "no such field"),
    "digits.json": (with_field('"seed": ' + "9" * 5000), "bad_file", "5000 digits"),
    "digits.yaml": ("seed: " + "9" * 5000, "bad_file", "5000 digits"),
    "nested objects.json": ('{"a":' * 100_000, "bad_file", "recursion"),
    "nested value.json": (with_field('"prompt": ' + "[" * 900 + "]" * 900), "invalid_field", "prompt: "),
    "nested lists.yaml": ("[" * 100_000, "bad_file", "within each other"),
    "nested mappings.yaml": ("{a: " * 100_000, "bad_file", "within each other"),
    "nested dashes.yaml": ("- " * 100_000, "bad_file", "within each other"),
    "repeated in a stage.json": (with_stage('"steps": 1, "steps": 2'), "bad_file", "twice"),
    "repeated in a stage.yaml": ("stages: [{kind: text2img, steps: 1, steps: 2}]", "bad_file", "twice"),
    "seed true.json": (with_field('"seed": true'), "invalid_field", "seed: "),
    "seed text.json": (with_field('"seed": "7"'), "invalid_field", "seed: "),
    "seed float.json": (with_field('"seed": 7.0'), "invalid_field", "seed: "),
    "seed 2^70.json": (with_field(f'"seed": {2**70}'), "invalid_field", "seed: "),
    "yes.yaml": ("seed: yes\nstages: [{kind: text2img}]", "invalid_field", "seed: "),
    "date.yaml": ("seed: 2020-01-01\nstages: [{kind: text2img}]", "invalid_field", "seed: "),
    "bytes.yaml": ("prompt: !!binary aGk=\nstages: [{kind: text2img}]", "invalid_field", "prompt: "),
    "hexadecimal.yaml": ("stages: [{kind: text2img, steps: 0x" + "f" * 9000 + "}]", "invalid_field", "steps: "),
    "UTF-16.json": ('{"stages": []}'.encode("utf-16"), "bad_file", "utf-8"),
    "UTF-16.yaml": ("stages: []".encode("utf-16"), "bad_file", "utf-8"),
    "not UTF-8.json": (b'{"prompt": "\xff"}', "bad_file", "utf-8"),
    "empty.json": ("", "bad_file", "Expecting value"),
    "empty.yaml": ("", "bad_file", "one mapping"),
    "null.json": ("null", "bad_file", "one mapping"),
    "text.json": ('"stages"', "bad_file", "one mapping"),
    "two.json": ('{"stages": []} {"stages": []}', "bad_file", "Extra data"),
    "two.yaml": ("stages: []\n---\nstages: []", "bad_file", "single document"),
    "no kind.json": ('{"stages": [{"kind": []}]}', "unknown_kind", "stages.0.kind: "),
    "null stage.json": ('{"stages": [null]}', "unknown_kind", "a stage is a mapping"),
    "stages are a mapping.json": ('{"stages": {}}', "bad_length", "a list of 1 to 8"),
    "null prompt.json": (with_field('"prompt": null'), "invalid_field", "prompt: "),
    "number as key.yaml": ("1: x\nstages: [{kind: text2img}]", "invalid_field", "1: "),
    "number as key of a stage.yaml": ("stages: [{kind: text2img, 1: 2}]", "invalid_field", "stages.0.1: "),
    "mapping as key.yaml": ("? {a: b}\n: x", "bad_file", "unhashable"),
    "unknown alias.yaml": ("stages: *nope", "bad_file", "undefined alias"),
    "itself.yaml": ("stages: &a [*a]", "unknown_kind", "a stage is a mapping"),
    "laughs.yaml": (
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + "\nstages: *i",
        "unknown_kind",
        "a stage is a mapping",
    ),
    "many keys.yaml": ("\n".join(f"f{i}: 1" for i in range(50_000)), "bad_file", "more than"),
    "many keys.json": (
        with_field(", ".join(f'"f{i}": 1' for i in range(50_000))), "unknown_field", "f0: no such field"
    ),
    "long key.json": (with_field(f'"{"k" * 900_000}": 1'), "unknown_field", "no such field"),
    "long prompt.json": (with_field(f'"prompt": "{"p" * 1_000_000}"'), "invalid_field", "prompt: "),
    "large.json": (with_field(f'"prompt": "{"p" * (2 << 20)}"'), "bad_file", "1 MiB"),
    "large.yaml": ("prompt: " + "p" * (2 << 20), "bad_file", "1 MiB"),
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    """The file `name` of the table."""
    text = FILES[name][0]
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_bad_chain_file_is_refused_through_every_door(name: str, place: Place, run: Run, tmp_path: Path) -> None:
    # Given
    path, (_, code, told) = write(tmp_path, name), FILES[name]
    # When it comes through Python and through two commands
    error = refused(place, prompt=None, chain=path)
    answers = [asked(run, "render", "--chain", path), asked(run, "chain", "validate", path)]
    # Then all say the same
    assert [error.code, *(answer["code"] for answer in answers)] == [code] * 3
    assert all(told in message for message in (error.message, *(answer["message"] for answer in answers)))
    assert len(error.message) < 20_000


def test_a_bad_chain_file_costs_little_memory(tmp_path: Path) -> None:
    # Given all of them, and a file that is no bad one but very large
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from farm.chain import parse_chain, read_chain_file\n"
        "from farm.errors import InvalidJob\n"
        "from farm.stage import kinds\n"
        "kinds()\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"
        "    peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "    before = peak()\n"
        "    try:\n"
        "        parse_chain(read_chain_file(path))\n"
        "    except InvalidJob:\n"
        "        pass\n"
        "    print(peak() - before, path.name)\n"
    )
    hole = tmp_path / "hole.json"
    with hole.open("wb") as file:
        file.truncate(1 << 40)
    paths = [write(tmp_path, name) for name in FILES] + [hole]
    # When they are read, one after the other, in a process of their own
    ended = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, check=True, text=True)
    # Then none of them takes much
    grown = {name: int(kib) for kib, name in (line.split(" ", 1) for line in ended.stdout.splitlines())}
    assert len(grown) == len(paths)
    assert {name: kib for name, kib in grown.items() if kib > FRUGAL_KIB} == {}


def test_a_byte_order_mark_and_a_merged_mapping_are_no_mistake(place: Place, tmp_path: Path) -> None:
    # Given what editors on Windows write, and what `<<` is for
    (tmp_path / "a.yaml").write_bytes(
        b"\xef\xbb\xbfstages:\n- &a {kind: text2img, steps: 3}\n- {<<: *a, kind: img2img, strength: 0.9}\n"
    )
    # When, Then
    chain = place.farm.chain(tmp_path / "a.yaml")
    assert [stage.kind for stage in chain.stages] == ["text2img", "img2img"]
    assert place.farm.chain({"stages": [STAGE], "prompt": "\u202eשלום a\u0301 \ufeff"}).prompt.startswith("\u202e")


@pytest.mark.parametrize("name", ["folder.json", "x" * 5000 + ".json", "a\0b.json", "\ud800.json", "missing.yaml"])
def test_a_chain_file_that_cannot_be_read_is_refused(name: str, place: Place, run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    assert refused(place, chain=str(tmp_path / name)).code == "bad_file"
    assert asked(run, "render", "--chain", tmp_path / name)["code"] == "bad_file"


@pytest.mark.parametrize(
    "name", ["x" * 5000, "../hires", "hires/../hires", "HIRES", "hires ", "\0", "\ud800", "%2e%2e", "", "~"]
)
def test_what_is_no_preset_is_refused(name: str, place: Place, run: Run) -> None:
    codes = {refused(place, prompt="x", chain=name).code, asked(run, "render", "x", f"--chain={name}")["code"]}
    assert codes <= {"unknown_preset", "bad_file"}


# ------------------------------------------------------------------------------------------- parameters

NAN, INF = float("nan"), float("inf")
PARAMETERS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"prompt": "p" * 1_000_000}, "invalid_field", "prompt", "2000"),
    ({"prompt": 7}, "invalid_field", "prompt", "string"),
    ({"negative_prompt": "n" * 2001}, "invalid_field", "negative_prompt", "2000"),
    ({"seed": -1}, "invalid_field", "seed", "greater than or equal to 0"),
    ({"seed": 2**70}, "invalid_field", "seed", "less than or equal"),
    ({"seed": True}, "invalid_field", "seed", "integer"),
    ({"fit": "squeeze"}, "invalid_field", "fit", "'cover', 'contain' or 'stretch'"),
    ({"exact": "yes"}, "invalid_field", "exact", "boolean"),
    ({"strength": 0}, "invalid_field", "stages.1.strength", "greater than 0"),
    ({"strength": -0.1}, "invalid_field", "stages.1.strength", "greater than 0"),
    ({"strength": 1.01}, "invalid_field", "stages.1.strength", "less than or equal to 1"),
    ({"strength": NAN}, "invalid_field", "stages.1.strength", "finite"),
    ({"strength": "0.5"}, "invalid_field", "stages.1.strength", "number"),
    ({"1.steps": 1, "strength": 0.5}, "no_steps", "stages.1.strength", "1"),
    ({"steps": -1}, "invalid_field", "stages.0.num_inference_steps", "greater than or equal to 1"),
    ({"steps": 151}, "invalid_field", "stages.0.num_inference_steps", "less than or equal to 150"),
    ({"steps": 2.5}, "invalid_field", "stages.0.num_inference_steps", "integer"),
    ({"steps": 2**63}, "invalid_field", "stages.0.num_inference_steps", "less than or equal to 150"),
    ({"guidance_scale": -1}, "invalid_field", "stages.0.guidance_scale", "greater than or equal to 0"),
    ({"guidance_scale": 31}, "invalid_field", "stages.0.guidance_scale", "less than or equal to 30"),
    ({"guidance_scale": 1e308}, "invalid_field", "stages.0.guidance_scale", "less than or equal to 30"),
    ({"guidance_scale": INF}, "invalid_field", "stages.0.guidance_scale", "finite"),
    ({"eta": 1.5}, "invalid_field", "stages.0.eta", "less than or equal to 1"),
    ({"clip_skip": 4}, "invalid_field", "stages.0.clip_skip", "less than or equal to 3"),
    ({"noise_level": 351}, "invalid_field", "stages.3.noise_level", "less than or equal to 350"),
    ({"noise_level": -1}, "invalid_field", "stages.3.noise_level", "greater than or equal to 0"),
    ({"width": 0}, "bad_size", "stages.0.width", "greater than or equal to 64"),
    ({"width": 7}, "bad_size", "stages.0.width", "such as 64"),
    ({"width": 511}, "bad_size", "stages.0.width", "such as 504 or 512"),
    ({"height": 2049}, "bad_size", "stages.0.height", "such as 2048"),
    ({"height": 10**9}, "bad_size", "stages.0.height", "less than or equal to 2048"),
    ({"height": 2**63}, "bad_size", "stages.0.height", "less than or equal to 2048"),
    ({"height": "64"}, "bad_size", "stages.0.height", "integer"),
    ({"width": 2048, "height": 2048}, "too_large", "stages.3", "start smaller"),
    ({"scheduler": "../EulerDiscreteScheduler"}, "unknown_scheduler", "stages.0.scheduler", "DDIMScheduler"),
    ({"0.checkpoint": "../../etc/passwd"}, "unknown_checkpoint", "stages.0.checkpoint", "choose one of"),
    ({"0.checkpoint": "https://huggingface.co/x"}, "unknown_checkpoint", "stages.0.checkpoint", "choose one of"),
    ({"0.checkpoint": "c" * 100_000}, "unknown_checkpoint", "stages.0.checkpoint", "choose one of"),
    ({"callback": "http://127.0.0.1"}, "unknown_field", "callback", "no stage"),
    ({"-1.steps": 3}, "unknown_field", "-1.steps", "no stage"),
    ({"1e3.steps": 3}, "unknown_field", "1e3.steps", "no stage"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "code", "loc", "told"), PARAMETERS, ids=[str(row[0])[:40] for row in PARAMETERS])
def test_an_impossible_parameter_is_refused_through_every_door(
    given: dict[str, Any], code: str, loc: str, told: str, place: Place, run: Run
) -> None:
    # When it comes through Python, and through the command line
    error = refused(place, **{"prompt": "x", **given})
    prompt = [] if "prompt" in given else ["x"]
    answer = asked(
        run, "render", *prompt, "--chain", "hires", *(f"--set={n}={json.dumps(v)}" for n, v in given.items())
    )
    # Then both name the field, and what would be right
    assert (error.code, answer["code"]) == (code, code)
    assert loc in [wrong.loc for wrong in error.errors]
    assert loc in [wrong["loc"] for wrong in answer["errors"]]
    assert told in error.message
    assert told in answer["message"]


OPTIONS: list[tuple[str, list[Any], list[str]]] = [
    ("count", [0, -1, 10_001, 2**70, True, "7", 2.5, None, NAN], ["0", "-1", "10001", str(2**70), "2.5", "many"]),
    ("priority", [-1, 101, True, "high", 50.5, NAN], ["-1", "101", "50.5", "high"]),
    ("deadline_s", [0, -1, INF, NAN, 31_536_001, True, "soon"], ["0", "-1", "inf", "nan", "31536001", "soon"]),
    ("lane", ["slow", "", 1, ["bulk"]], ["slow", ""]),
    ("idempotency_key", ["", "k" * 256, "a\nb", "a\0b", "\ud800", 7], ["", "k" * 256, "a\nb", "\ud800"]),
]


@pytest.mark.parametrize(("name", "values", "words"), OPTIONS, ids=[row[0] for row in OPTIONS])
def test_an_impossible_option_is_refused_before_the_image_is_stored(
    name: str, values: list[Any], words: list[str], place: Place, run: Run
) -> None:
    for value in values:
        error = refused(place, prompt="x", chain="img", image=place.image, **{name: value})
        assert (error.code, [wrong.loc for wrong in error.errors]) == ("invalid_field", [name]), value
    for word in words:
        option = f"--{name.replace('_', '-')}={word}"
        error_ = asked(run, "render", "x", "--chain", "img", "--image", place.image, option)
        assert error_["code"] in ("invalid_field", "usage"), word
        assert name.replace("_", "-") in error_["message"].replace("_", "-")


@pytest.mark.parametrize("chain", [None, 7, [], ["hires"], b"hires"])
def test_what_is_no_chain_is_refused(chain: Any, place: Place) -> None:
    assert [wrong.loc for wrong in refused(place, prompt="x", chain=chain).errors] == ["chain"]


def test_a_seed_that_a_run_would_lift_too_high_is_refused(place: Place) -> None:
    assert refused(place, prompt="x", chain="txt", seed=2**53 - 3, count=4).errors[0].loc == "seed"


# ------------------------------------------------------------------------------------------- images

ANIMATION = encoded(noise(), save_all=True, append_images=[noise(seed=seed) for seed in range(20)])
IMAGES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "bad_image"),
    "bomb.png": (bomb(10_000, 10_000), "too_large"),
    "animation.png": (ANIMATION, "bad_image"),
    "truncated.jpg": (encoded(noise(200, 200), "JPEG")[:3000], "bad_image"),
    "gif.png": (encoded(noise(), "GIF"), "bad_image"),
    "tiff.png": (encoded(noise(), "TIFF"), "bad_image"),
    "avif.png": (b"\0\0\0 ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(200), "bad_image"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "bad_image"),
    "html then png.png": (b"<script>alert(1)</script>" + encoded(noise()), "bad_image"),
    "zip then png.png": (b"PK\x03\x04" + encoded(noise()), "bad_image"),
    "text.txt": (b"a pear", "bad_image"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused_through_every_door(name: str, place: Place, run: Run, tmp_path: Path) -> None:
    # Given
    path, (data, code) = tmp_path / name, IMAGES[name]
    path.write_bytes(data)
    # When it comes as a file, as bytes, and through the command line
    errors = [refused(place, prompt="x", chain="img", image=image) for image in (path, str(path), data)]
    answer = asked(run, "render", "x", "--image", path)
    # Then all refuse it by name
    assert [error.code for error in errors] + [answer["code"]] == [code] * 4
    assert all([wrong.loc for wrong in error.errors] == ["image"] for error in errors)


@pytest.mark.parametrize("image", [7, ["a.png"], {"path": "a.png"}, "", "CON", "../../x.png", "x" * 5000, "a\0.png",
    "\ud800.png", "file:///etc/passwd", "http://169.254.169.254/latest", "data:image/png;base64,AAAA", "/dev/zero",
    "/proc/self/mem"])  # fmt: skip
def test_what_names_no_image_is_refused(image: Any, place: Place, run: Run) -> None:
    error = refused(place, prompt="x", chain="img", image=image)
    assert (error.code, error.errors[0].loc) == ("bad_image", "image")
    if isinstance(image, str):
        assert asked(run, "render", "x", f"--image={image}")["code"] == "bad_image"


def test_of_a_polyglot_with_an_odd_name_only_the_pixels_are_taken(place: Place, tmp_path: Path) -> None:
    # Given a PNG that is also a ZIP and a script, under a name that would be a header
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("secret.txt", "secret-word")
    path = tmp_path / "a.png\r\nX-Evil: yes; ..\u202egnp.html"
    path.write_bytes(encoded(Image.new("RGB", (64, 64), "teal")) + b"<?php secret-word ?>" + archive.getvalue())
    # When it is made ready for a chain
    data, found = place.farm.prepare(place.farm.chain("img", "x"), path)
    # Then it is the same as that of the bare picture
    assert data is not None
    assert b"secret" not in data
    assert (data, found) == place.farm.prepare(place.farm.chain("img", "x"), place.image)


# ------------------------------------------------------------------------------------------- ids

IDS = [
    "../", "..%2f", "%2e%2e/", "..%252f", "..\\", "/etc/passwd", "~", "x" * 4096, "\u0661\u0662\u0663\u0664",
    "00000000-0000-7000-8000-000000000000", "0" * 36, "*", "", " ", "job:*", "{farm}:jobs", "\ud800" * 36,
    "a" * 35 + "\n", "\x1b[31mred", "\0" * 36,
]  # fmt: skip
BY_ID = [
    "jobs show", "jobs wait", "jobs watch", "jobs cancel", "jobs retry", "jobs pause", "jobs resume", "jobs download",
    "script",
]  # fmt: skip


def test_what_is_no_id_is_not_found_in_python(place: Place) -> None:
    (job,) = (record.job for record in place.farm.jobs())
    for wrong in [*IDS, job.upper(), job + ".", job + " ", " " + job, job[:-1]]:
        with pytest.raises(NotFound):
            place.farm.job(wrong)
    for wrong in IDS:
        assert place.farm.jobs(run=wrong) == [] or not wrong
        assert place.farm.jobs(state=wrong) == [] or not wrong


@pytest.mark.parametrize("command", BY_ID)
def test_what_is_no_id_is_not_found_by_any_command(command: str, place: Place, run: Run) -> None:
    (job,) = (record.job for record in place.farm.jobs())
    for wrong in [*IDS, job.upper(), job + ".", job + " "]:
        found = run("--json", *command.split(), "--", wrong)
        assert (found.status, found.code) == (1, "not_found"), wrong
        plain = run(*command.split(), "--", wrong)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", plain.err)
        assert len(plain.err) < 6000


@pytest.mark.parametrize("wrong", IDS[:-1])
def test_what_is_no_run_or_checkpoint_is_refused(wrong: str, place: Place, run: Run) -> None:
    if wrong:
        for verb in ("show", "cancel", "pause", "resume", "retry"):
            assert run("--json", "runs", verb, "--", wrong).code == "not_found"
        assert run("--json", "jobs", "ls", f"--run={wrong}").envelope["data"] == []
    for command in ("pull", "verify"):
        found = run("--json", "models", command, "--", wrong)
        assert found.status in (1, 2)
        assert found.code in ("unknown_checkpoint", "usage")
    with pytest.raises(FarmError):
        place.store.get_blob(wrong, 10)
