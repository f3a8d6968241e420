"""Do pictures get the scores that the models themselves give, once, and whatever stands beside them?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from farm import models
from farm.catalog import Adapter, Catalog
from farm.cli.collect import _scored
from farm.cli.outcome import INTERRUPTED
from farm.dataset.choosing import ExportSpec, choose
from farm.dataset.fetched import NOTES, Fetched
from farm.dataset.folder import Folder
from farm.dataset.plans import Plan
from farm.dataset.scores import made_by, tar_of
from farm.dataset.sharding import file_facts
from farm.dataset.spec import DatasetSpec
from farm.dataset.tars import TarWriter
from farm.errors import BadBlob, FarmError, InvalidJob, NotFound, StageFailed
from farm.servers import environment
from farm.settings import Settings
from farm.store import Store
from tests.dataset.made import Maker, drawn
from tests.e2e.rig import until
from workers import scoring
from workers.adapters import files_of
from workers.demo import tiny
from workers.safety import Checker

NAMES = ("tiny-clip", "tiny-prude", "tiny-lax")
PROMPTS = ["a red cat", "", "a photo of " + "mountain " * 100, "an old house at sea", "Ein Füchslein 🦊"]
TINY = Path(__file__).parents[1] / "tiny.toml"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The tiny family's judges, pulled."""
    folder = tmp_path_factory.mktemp("judges")
    found = Catalog.load(Settings(models=folder))
    for name in NAMES:
        tiny.build(name, folder / name)
        models.record(found, found.adapters[name])
    return found


@pytest.fixture(scope="module")
def clip(catalog: Catalog) -> scoring.Clip:
    return scoring.Clip(files_of(catalog, catalog.adapters["tiny-clip"]), "cpu")


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Folder:
    """A dataset of two shards, of 20 pictures and of 3."""
    found = Folder(store, "fruit")
    spec = DatasetSpec(name="fruit", chain={"stages": []}, shard_samples=20)
    told = {"source": {}, "rows": 23, "samples": 23, "shards": 2, "digest": ""}
    found.write("plan.json", Plan(spec=spec, **told).model_dump_json().encode())
    publish(found, tmp_path, 0, [png(drawn(place)) for place in range(20)])
    publish(found, tmp_path, 1, [png(drawn(20 + place)) for place in range(3)])
    return found


def png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def publish(folder: Folder, work: Path, number: int, pictures: Sequence[bytes]) -> None:
    """A shard with as much as scoring looks at."""
    tar, table = work / f"{number:05d}.tar", work / f"{number:05d}.parquet"
    with TarWriter(tar) as writer:
        for place, data in enumerate(pictures):
            prompt = PROMPTS[place % len(PROMPTS)].encode()
            writer.add(f"{number:05d}{place:04d}", {"png": data, "txt": prompt, "json": b"{}"})
        writer.close()
    table.write_bytes(b"")
    facts = {path.name: file_facts(path) for path in (tar, table)}
    folder.publish(number, tar, table, {"shard": number, "files": facts})


def columns(catalog: Catalog, *names: str) -> dict[str, scoring.Wanted]:
    return scoring.wanted(catalog, [catalog.adapters[name] for name in names], "cpu")


def scores(folder: Folder, number: int) -> dict[str, list[Any]]:
    """The table of a shard's scores."""
    table = folder.scores(number)
    assert table is not None
    return table.to_pydict()


def raw(folder: Folder) -> dict[str, bytes | None]:
    """The bytes of all scores."""
    return {name: folder.read(name) for name in folder.names("shards/") if "_scores" in name}


# ------------------------------------------------------------------------------------------------ the numbers


def test_a_clip_score_is_the_cosine_of_what_transformers_makes_of_picture_and_prompt(
    catalog: Catalog, clip: scoring.Clip
) -> None:
    # Given pictures of several shapes
    images = [drawn(place, 32 + 20 * place).resize((64 + 9 * place, 80)) for place in range(len(PROMPTS))]
    # When
    found = clip.score(images, PROMPTS)
    # Then they are what a plain program gives, one by one and without padding
    place = catalog.path(catalog.adapters["tiny-clip"])
    model = transformers.CLIPModel.from_pretrained(place, dtype=torch.float32)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place)
    extractor = transformers.CLIPImageProcessorPil.from_pretrained(place)
    for image, prompt, score in zip(images, PROMPTS, found, strict=True):
        words = tokenizer(prompt, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            text = model.get_text_features(**words).pooler_output
            seen = model.get_image_features(**extractor(image, return_tensors="pt")).pooler_output
        assert score == pytest.approx(torch.cosine_similarity(text, seen).item(), abs=2e-6)
        assert score == round(score, scoring.DIGITS)
    assert len(set(found)) == len(found)


def test_a_picture_has_the_same_scores_whatever_stands_beside_it(catalog: Catalog, clip: scoring.Clip) -> None:
    images, prompts = [drawn(place) for place in range(scoring.BATCH + 3)], ["a red fox"] * (scoring.BATCH + 3)
    safety = scoring.Safety(files_of(catalog, catalog.adapters["tiny-prude"]), "cpu")
    for scorer in (clip, safety):
        alone = [scorer.score([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
        assert scorer.score(images, prompts) == alone
        assert scorer.score(images[::-1], prompts) == alone[::-1]
    assert clip.score([], []) == []


def test_before_it_is_rounded_too(catalog: Catalog, clip: scoring.Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given scores to the last bit
    monkeypatch.setattr(scoring, "DIGITS", 20)
    images = [drawn(place) for place in range(scoring.BATCH)]
    together = clip.score(images, ["a red fox"] * scoring.BATCH)
    # Then
    assert [clip.score([image], ["a red fox"])[0] for image in images] == together


@pytest.mark.parametrize("special", [-1.0, 1.0])
def test_a_safety_score_is_the_greatest_of_the_checkers_own(
    catalog: Catalog, special: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a checker whose thresholds lie among what the pictures have, with special care and without
    files = files_of(catalog, catalog.adapters["tiny-lax"])
    safety, checker = scoring.Safety(files, "cpu"), Checker(files, "cpu")
    images = [drawn(place) for place in range(12)]
    reach = [score + 1 for score in safety.score(images, [""] * 12)]
    for one in (safety._checker, checker):
        one._model.concept_embeds_weights.data.fill_(sorted(reach)[6] + (0.005 if special < 0 else 0))
        one._model.special_care_embeds_weights.data.fill_(special)
    # When
    found = safety.score(images, [""] * 12)
    # Then it is above 0 where the checker finds something, which some have and some have not
    assert [score > 0 for score in found] == [checker.finds(image) for image in images]
    assert {score > 0 for score in found} == {True, False}


def test_other_files_than_those_that_were_pulled_are_not_loaded(catalog: Catalog, tmp_path: Path) -> None:
    # Given a model whose configuration was changed
    mine = Catalog.load(Settings(models=tmp_path))
    tiny.build("tiny-clip", tmp_path / "tiny-clip")
    models.record(mine, mine.adapters["tiny-clip"])
    config = tmp_path / "tiny-clip" / "config.json"
    config.write_text(config.read_text() + " ")
    # When, Then
    with pytest.raises(StageFailed, match=r"config\.json is not the file that was recorded"):
        columns(mine, "tiny-clip")["clip_score"].load()


@pytest.mark.parametrize("change", ["another model", "nothing of the text", "no tokenizer"])
def test_files_that_are_no_clip_are_refused(catalog: Catalog, tmp_path: Path, change: str) -> None:
    # Given
    place, kept = tmp_path / "tiny-clip", load_file(catalog.path(catalog.adapters["tiny-clip"]) / "model.safetensors")
    tiny.build("tiny-clip", place)
    if change == "no tokenizer":
        (place / "tokenizer.json").unlink()
    else:
        left = "nothing" if change == "another model" else "vision"
        save_file({name: tensor for name, tensor in kept.items() if left in name}, place / "model.safetensors")
    mine = Catalog.load(Settings(models=tmp_path))
    models.record(mine, mine.adapters["tiny-clip"])
    # When, Then
    with pytest.raises(StageFailed, match="tiny-clip cannot be loaded as a clip") as caught:
        columns(mine, "tiny-clip")["clip_score"].load()
    assert caught.value.code == "bad_checkpoint"


def test_the_tiny_clip_is_built_alike_each_time(catalog: Catalog, tmp_path: Path) -> None:
    tiny.build("tiny-clip", tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert files == {path.name: path.read_bytes() for path in catalog.path(catalog.adapters["tiny-clip"]).iterdir()}


# ------------------------------------------------------------------------------------------------ shards


def test_every_whole_shard_gets_a_table_of_its_scores(folder: Folder, catalog: Catalog, clip: scoring.Clip) -> None:
    # When
    told = scoring.score(folder, columns(catalog, "tiny-clip"))
    # Then
    assert told == scoring.Scored(shards=2, before=0, samples=23, damaged=0)
    prompts = [PROMPTS[place % 5] for place in range(20)]
    found = scores(folder, 0)
    assert found["key"] == [f"00000{place:04d}" for place in range(20)]
    assert found["clip_score"] == clip.score([drawn(place) for place in range(20)], prompts)
    assert len(scores(folder, 1)["clip_score"]) == 3
    # and it tells of which tar it speaks, and what made it
    table = folder.scores(0)
    assert tar_of(table) == folder.stats(0)["files"]["00000.tar"]["sha256"]
    manifest = catalog.lock(catalog.adapters["tiny-clip"]).manifest
    assert made_by(table) == {"clip_score": {"name": "tiny-clip", "manifest": manifest}}


def test_what_was_scored_is_not_scored_again(folder: Folder, catalog: Catalog, tmp_path: Path) -> None:
    # Given a run that ended after the first shard
    def broken(line: str) -> None:
        if line.startswith("shard 0"):
            raise KeyboardInterrupt

    wanted = columns(catalog, "tiny-clip")
    with pytest.raises(KeyboardInterrupt):
        scoring.score(folder, wanted, broken)
    assert list(raw(folder)) == ["shards/00000_scores.parquet"]
    # When
    told = scoring.score(folder, wanted)
    # Then
    assert (told.shards, told.before, told.samples) == (1, 1, 3)
    # and where nothing is to be done, nothing is loaded
    never = {"clip_score": scoring.Wanted(wanted["clip_score"].made, lambda: pytest.fail("it was loaded"))}
    assert scoring.score(folder, never).before == 2
    # but a shard that was made again is scored again, and until then has no scores
    publish(folder, tmp_path, 1, [png(drawn(place)) for place in range(4)])
    assert folder.scores(1) is None
    assert scoring.score(folder, wanted).shards == 1
    assert len(scores(folder, 1)["clip_score"]) == 4


def test_scores_of_two_runs_stand_side_by_side(folder: Folder, catalog: Catalog) -> None:
    # When one scorer runs after the other
    scoring.score(folder, columns(catalog, "tiny-prude"))
    first = scores(folder, 0)
    assert list(first) == ["key", "safety_score"]
    told = scoring.score(folder, columns(catalog, "tiny-clip"))
    # Then
    assert told.shards == 2
    found = scores(folder, 0)
    assert (found["key"], found["safety_score"]) == (first["key"], first["safety_score"])
    assert list(found) == ["key", "clip_score", "safety_score"]
    assert {name: made["name"] for name, made in made_by(folder.scores(0)).items()} == {
        "clip_score": "tiny-clip",
        "safety_score": "tiny-prude",
    }
    # and they are the bytes that both at once make
    apart = raw(folder)
    folder.delete(apart)
    scoring.score(folder, columns(catalog, "tiny-clip", "tiny-prude"))
    assert raw(folder) == apart
    # and another checkpoint's take the place of the former's, and leave the rest
    scoring.score(folder, columns(catalog, "tiny-lax", "tiny-clip"))
    other = scores(folder, 0)
    assert other["clip_score"] == found["clip_score"]
    assert all(lax < 0 < prude for lax, prude in zip(other["safety_score"], found["safety_score"], strict=True))


def test_a_picture_that_cannot_be_read_has_no_score(folder: Folder, catalog: Catalog, tmp_path: Path) -> None:
    # Given a shard with a cut picture, one that is none, and one that is whole
    publish(folder, tmp_path, 1, [png(drawn(0))[:-200], b"", png(drawn(2))])
    # When
    lines = list[str]()
    told = scoring.score(folder, columns(catalog, "tiny-clip", "tiny-lax"), lines.append)
    # Then
    assert (told.samples, told.damaged) == (23, 2)
    found = scores(folder, 1)
    for name in ("clip_score", "safety_score"):
        assert [one is None for one in found[name]] == [True, True, False]
    assert "3 pictures, 2 cannot be read" in lines[-1]


def test_scores_that_cannot_be_read_are_made_again(folder: Folder, catalog: Catalog) -> None:
    scoring.score(folder, columns(catalog, "tiny-clip"))
    before = raw(folder)
    folder.write("shards/00000_scores.parquet", b"PAR1")
    with pytest.raises(BadBlob, match="cannot be read"):
        folder.scores(0)
    assert scoring.score(folder, columns(catalog, "tiny-clip")).shards == 1
    assert raw(folder) == before


def test_a_tar_that_is_another_than_was_written_is_left_out_and_told(
    folder: Folder, catalog: Catalog, tmp_path: Path
) -> None:
    # Given
    folder.write("shards/00000.tar", b"cut")
    # When, Then: the other shard has its scores
    with pytest.raises(BadBlob, match="shards 0"):
        scoring.score(folder, columns(catalog, "tiny-clip"))
    assert list(raw(folder)) == ["shards/00001_scores.parquet"]
    folder.delete(["shards/00000.tar"])
    with pytest.raises(BadBlob, match="shards 0"):
        scoring.score(folder, columns(catalog, "tiny-clip"))


def test_an_export_chooses_by_a_score(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    # Given a dataset as a farm would have made it, scored
    maker, found = Maker(tmp_path), Folder(store, "fruit")
    plan = Plan(spec=maker.spec, source={}, rows=8, samples=8, shards=1, digest="")
    found.write("plan.json", plan.model_dump_json().encode())
    shard = maker.shard(tmp_path / "shards", [maker.picture(place) for place in range(8)])
    found.publish(0, shard.tar, shard.parquet, shard.facts)
    scoring.score(found, columns(catalog, "tiny-clip"))
    values = scores(found, 0)["clip_score"]
    # When
    chosen = choose(found, ExportSpec(where=(f"clip_score>={sorted(values)[3]}",)))
    # Then
    assert chosen.marks == {0: bytes(value >= sorted(values)[3] for value in values)}
    assert chosen.kept == 5


def test_a_dataset_that_is_not_there_is_refused(store: Store, catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="no dataset 'pears'"):
        scoring.score(Folder(store, "pears"), columns(catalog, "tiny-clip"))


# ------------------------------------------------------------------------------------------------ the catalog


def test_a_name_that_scores_nothing_is_refused_with_those_that_do(catalog: Catalog) -> None:
    with pytest.raises(InvalidJob, match=r"--clip: 'clipp' .* one of clip-b32, clip-l14, tiny-clip") as unknown:
        catalog.judge("clipp", "clip", "--clip")
    with pytest.raises(InvalidJob, match="tiny-prude is a safety_checker, not a clip") as wrong:
        catalog.judge("tiny-prude", "clip", "--clip")
    with pytest.raises(InvalidJob, match="has not been pulled"):
        columns(catalog, "clip-l14")
    assert (unknown.value.code, wrong.value.code) == ("unknown_adapter", "wrong_adapter")


def test_a_clip_is_a_folder() -> None:
    with pytest.raises(ValueError, match="a clip is a folder"):
        Adapter(name="x", type="clip", file="x.safetensors", licence="MIT")


@pytest.mark.parametrize("old", [True, False])
def test_of_a_repository_with_a_clip_only_what_loading_takes_is_pulled(
    catalog: Catalog, clip: scoring.Clip, tmp_path: Path, old: bool
) -> None:
    # Given a copy of the hub's cache, with the tokenizer in one file or, as of old, in two
    made, commit = catalog.path(catalog.adapters["tiny-clip"]), "1" * 40
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    if old:
        told = json.loads(files.pop("tokenizer.json"))["model"]
        merges = [" ".join(each) for each in told["merges"]]
        files |= {"vocab.json": json.dumps(told["vocab"]).encode(), "merges.txt": "\n".join(merges).encode()}
    for name, data in {**files, "pytorch_model.bin": b"pickle", "README.md": b"", "tf_model.h5": b""}.items():
        (snapshot / name).write_bytes(data)
    entry = {"name": "mine", "type": "clip", "repo": "owner/name", "revision": commit, "licence": "MIT"}
    mine = catalog.model_copy(
        update={"models_dir": tmp_path / "models", "adapters": {"mine": Adapter.model_validate(entry)}}
    )
    # When
    lock = models.pull(mine, "mine", tmp_path / "hub")
    # Then
    assert lock.files.keys() == files.keys()
    # and it gives the same scores
    images = [drawn(place) for place in range(len(PROMPTS))]
    assert scoring.Clip(files_of(mine, mine.adapters["mine"]), "cpu").score(images, PROMPTS) == clip.score(
        images, PROMPTS
    )


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def env(s3_settings: Settings, catalog: Catalog) -> dict[str, str]:
    """The environment of a command in a process of its own."""
    found = {**os.environ, **environment(s3_settings), "FARM_MODELS": str(catalog.models_dir)}
    return {**found, "FARM_CATALOG": str(TINY), "FARM_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


def start(env: dict[str, str], *words: str) -> subprocess.Popen[str]:
    code = "import sys; from farm.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--json", "dataset", "score", *words]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_command_scores_a_dataset(folder: Folder, catalog: Catalog, env: dict[str, str]) -> None:
    # When
    process = start(env, "fruit", "--clip", "tiny-clip", "--safety", "tiny-prude")
    out, said = process.communicate(timeout=120)
    # Then
    assert process.returncode == 0, said
    assert json.loads(out)["data"] == {"name": "fruit", "shards": 2, "before": 0, "samples": 23, "damaged": 0}
    assert "shard 1: 3 pictures" in said
    # and they are the bytes that this process makes
    found = raw(folder)
    assert len(found) == 2
    folder.delete(found)
    scoring.score(folder, columns(catalog, "tiny-clip", "tiny-prude"))
    assert raw(folder) == found


def test_the_command_scores_a_folder_without_its_farm(
    folder: Folder, catalog: Catalog, env: dict[str, str], tmp_path: Path
) -> None:
    # Given what a fetch leaves
    out = tmp_path / "fetched"
    notes = out / NOTES
    notes.mkdir(parents=True)
    (notes / "plan.json").write_bytes(folder.read("plan.json") or b"")
    for path in folder.names("shards/"):
        name = path.rpartition("/")[2]
        (notes if "_" in name else out).joinpath(name).write_bytes(folder.read(path) or b"")
    # When it is scored where no farm is reached
    elsewhere = {**env, "FARM_URL": "http://127.0.0.1:1", "FARM_REDIS_URL": "redis://127.0.0.1:1/0"}
    process = start(elsewhere, "--from", str(out), "--clip", "tiny-clip")
    told, said = process.communicate(timeout=120)
    # Then its scores are those that the farm has, byte for byte
    assert process.returncode == 0, said
    assert json.loads(told)["data"] == {"name": "fruit", "shards": 2, "before": 0, "samples": 23, "damaged": 0}
    scoring.score(folder, columns(catalog, "tiny-clip"))
    assert {f"shards/{path.name}": path.read_bytes() for path in notes.glob("*_scores.parquet")} == raw(folder)
    # And they are not made again
    assert scoring.score(Fetched(out), columns(catalog, "tiny-clip")).before == 2


def test_ctrl_c_leaves_what_was_scored(folder: Folder, env: dict[str, str], tmp_path: Path) -> None:
    # Given a command that is at work, with more to do than ends before it hears of it
    pictures = [png(drawn(place)) for place in range(20)]
    for number in range(2, 60):
        publish(folder, tmp_path, number, pictures)
    process = start(env, "fruit", "--clip", "tiny-clip")
    assert process.stderr
    while not process.stderr.readline().startswith("loading"):
        assert process.poll() is None
    # When
    process.send_signal(2)
    # Then
    out, said = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["error"]["code"]) == (INTERRUPTED, "interrupted"), said
    assert "Traceback" not in said
    assert until(lambda: not _living(process.pid), 20, "the end of its child")


def _living(parent: int) -> list[str]:
    """The command lines of a process's children that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().decode().split("\0") if path.exists() else []
        if "workers.scoring" in words and str(parent) in words:
            found.append(" ".join(words))
    return found


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("fruit",), 2, "usage"),
        (("fruit", "--clip", "tiny-lora"), 2, "wrong_adapter"),
        (("fruit", "--safety", "nothing"), 2, "unknown_adapter"),
        (("fruit", "--clip", "clip-b32"), 2, "not_pulled"),
        (("pears", "--clip", "tiny-clip"), 1, "not_found"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(
    folder: Folder, env: dict[str, str], words: tuple[str, ...], status: int, code: str
) -> None:
    process = start(env, *words)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["error"]["code"]) == (status, code), said
    assert "loading" not in said
    assert raw(folder) == {}


def test_what_the_program_says_of_an_error_is_what_the_command_says(
    store: Store, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    # a dataset that is deleted meanwhile
    with pytest.raises(FarmError, match="no dataset 'pears'") as caught:
        _scored(["pears", "--clip", "tiny-clip"])
    assert (caught.value.code, caught.value.hint) == ("not_found", "`farm dataset ls` lists them")
    # a program that says nothing
    with pytest.raises(FarmError, match="exit status 2") as caught:
        _scored(["pears"])
    assert caught.value.code == "internal"
