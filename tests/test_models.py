"""Do a checkpoint's files get into place whole, safe and recorded, and is any change refused?"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest

from farm.catalog import Catalog, Lock
from farm.errors import FarmError, InvalidJob, Unavailable
from farm.models import pull, record, remove, verify
from farm.settings import Settings

FIRST, SECOND = "1" * 40, "2" * 40


def weights(label: str) -> str:
    """A safetensors file without tensors, and with a label."""
    header = json.dumps({"__metadata__": {"label": label}})
    return f"{chr(len(header))}{chr(0) * 7}{header}"


SAFETENSORS = weights("").encode()
REPO = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": [None, None],
            "requires_safety_checker": True,
        }
    ),
    "README.md": "a card",
    "v1-5-pruned.safetensors": weights("the whole model once more"),
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": weights("full"),
    "unet/diffusion_pytorch_model.fp16.safetensors": weights("half"),
    "unet/diffusion_pytorch_model.non_ema.safetensors": weights("other"),
    "unet/diffusion_pytorch_model.fp16.bin": "pickle",
    "unet/diffusion_pytorch_model.bin.index.json": "{}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": weights("words"),
    "text_encoder/pytorch_model.bin": "pickle",
    "tokenizer/vocab.json": "{}",
    "tokenizer/merges.txt": "",
    "tokenizer/custom.py": "import os",
    "scheduler/scheduler_config.json": "{}",
    "safety_checker/config.json": "{}",
    "safety_checker/model.fp16.safetensors": weights("half"),
    "unused/config.json": "{}",
    "unused/model.safetensors": weights("full"),
}
"""A repository as they are: several precisions, pickles, code, single files and folders that no pipeline names."""

COMMON = {
    "model_index.json",
    "unet/config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
}


def hub_cache(root: Path, commit: str = FIRST, files: dict[str, str] = REPO, main: bool = True) -> Path:
    """A copy of the hub's cache with one snapshot of owner/name: links into a folder of blobs."""
    repo = root / "models--owner--name"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "blobs").mkdir(exist_ok=True)
    if main:
        (repo / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = repo / "blobs" / hashlib.sha256(content.encode()).hexdigest()
        blob.write_text(content)
        entry = repo / "snapshots" / commit / name
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(os.path.relpath(blob, entry.parent))
    return root


def catalog_of(tmp_path: Path, **entry: str) -> Catalog:
    """A catalog with one entry, `mine`."""
    entry = {"dtype": "float32", "space": "sd1", "licence": "none", **entry}
    lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    path = tmp_path / "catalog.toml"
    path.write_text("\n".join(["[checkpoints.mine]", 'kinds = ["text2img"]', "native = 512", *lines]))
    return Catalog.load(Settings(data=tmp_path / "data", catalog=path))


def listing(folder: Path) -> dict[str, bytes]:
    """All files below a folder, with their bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(catalog: Catalog, source: Path | None = None, force: bool = False) -> FarmError:
    """The refusal of a pull, which has changed nothing."""
    before = listing(catalog.models_dir)
    with pytest.raises(FarmError) as info:
        pull(catalog, "mine", source, force=force)
    assert listing(catalog.models_dir) == before
    assert info.value.code == "bad_checkpoint"
    return info.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local checkpoint in the hub's layout."""
    found = tmp_path / "local"
    (found / "unet").mkdir(parents=True)
    (found / "model_index.json").write_text("{}")
    (found / "unet" / "model.safetensors").write_bytes(SAFETENSORS)
    return found


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of an installed module `mine_builder`, which writes what `content` beside it says."""
    installed = tmp_path / "installed"
    installed.mkdir()
    source = installed / "mine_builder.py"
    source.write_text(
        "import pathlib, sys\n"
        "name, folder = sys.argv[1], pathlib.Path(sys.argv[2])\n"
        "(folder / 'unet').mkdir(parents=True)\n"
        "(folder / 'model_index.json').write_text(name)\n"
        "(folder / 'unet' / 'model.safetensors').write_text(pathlib.Path(__file__).with_name('content').read_text())\n"
    )
    (installed / "content").write_text(weights("first"))
    monkeypatch.setenv("PYTHONPATH", str(installed))
    return source


# from the hub


def test_a_repository_is_pulled_from_a_copy_of_the_cache(tmp_path: Path) -> None:
    # Given
    catalog, source = catalog_of(tmp_path, repo="owner/name"), hub_cache(tmp_path / "hub")
    # When
    lock = pull(catalog, "mine", source)
    # Then: of each part the weights that loading takes; no pickle, no code, nothing that no pipeline names
    expected = COMMON | {"unet/diffusion_pytorch_model.safetensors"}
    assert lock.files.keys() == expected
    assert listing(catalog.models_dir / "mine").keys() == expected
    assert lock.revision == FIRST
    assert all(lock.files[name] == hashlib.sha256(REPO[name].encode()).hexdigest() for name in expected)
    assert not any(path.is_symlink() for path in (catalog.models_dir / "mine").rglob("*"))
    # and it stays recorded
    assert catalog.lock(catalog.checkpoints["mine"]) == lock
    assert verify(catalog, "mine") == []


def test_of_a_variant_each_part_is_taken_that_has_it(tmp_path: Path) -> None:
    # Given
    catalog, source = catalog_of(tmp_path, repo="owner/name", variant="fp16"), hub_cache(tmp_path / "hub")
    # When
    lock = pull(catalog, "mine", source)
    # Then: the text encoder has no fp16 file
    assert lock.files.keys() == COMMON | {"unet/diffusion_pytorch_model.fp16.safetensors"}


def test_the_choice_of_files_is_that_of_diffusers(tmp_path: Path) -> None:
    # Given
    from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings

    shards = {
        kind: [f"diffusion_pytorch_model{kind}-0000{n}-of-00002.safetensors" for n in (1, 2)] for kind in ("", ".fp16")
    }
    sharded = {f"unet/{name}": weights(name) for names in shards.values() for name in names}
    for name, kind in (("safetensors.index", ""), ("safetensors.index.fp16", ".fp16")):
        index = {"weight_map": dict(enumerate(shards[kind]))}
        sharded[f"unet/diffusion_pytorch_model.{name}.json"] = json.dumps(index)
    whole = {name for name in REPO if name.startswith("unet/") and name.endswith("safetensors")}
    for number, files in enumerate((REPO, {name: REPO[name] for name in REPO if name not in whole} | sharded)):
        for variant in ("", "fp16"):
            place = tmp_path / f"{number}{variant}"
            place.mkdir()
            entry = {"repo": "owner/name"} | ({"variant": variant} if variant else {})
            # When
            lock = pull(catalog_of(place, **entry), "mine", hub_cache(place / "hub", files=files))
            # Then
            parts = [name for name in files if name.partition("/")[0] in ("unet", "text_encoder")]
            theirs, _ = variant_compatible_siblings(parts, variant=variant or None, ignore_patterns=["*.bin"])
            chosen = {name for name in lock.files if ".safetensors" in name}
            assert chosen == {name for name in theirs if ".safetensors" in name}
            assert len(chosen) == (4 if number else 2)


def test_a_second_pull_keeps_the_first_ones_revision(tmp_path: Path) -> None:
    # Given a hub whose main has moved on
    catalog, source = catalog_of(tmp_path, repo="owner/name"), hub_cache(tmp_path / "hub")
    first = pull(catalog, "mine", source)
    hub_cache(source, SECOND, {**REPO, "text_encoder/model.safetensors": weights("newer")})
    # When, Then
    assert pull(catalog, "mine", source) == first
    # also where the files are lost or damaged
    (catalog.models_dir / "mine" / "unet" / "config.json").unlink()
    assert verify(catalog, "mine") == ["unet/config.json is missing"]
    assert pull(catalog, "mine", source) == first
    assert verify(catalog, "mine") == []
    # unless the newer one is wanted
    newer = pull(catalog, "mine", source, force=True)
    assert newer.revision == SECOND
    assert newer.manifest != first.manifest
    assert (catalog.models_dir / "mine" / "text_encoder" / "model.safetensors").read_text() == weights("newer")


def test_a_pinned_revision_is_the_one_that_is_pulled(tmp_path: Path) -> None:
    # Given a hub whose main is another commit
    source = hub_cache(tmp_path / "hub", FIRST)
    hub_cache(source, SECOND)
    catalog = catalog_of(tmp_path, repo="owner/name", revision=FIRST)
    # When, Then
    assert pull(catalog, "mine", source).revision == FIRST


def test_a_revision_that_is_not_there_is_refused(tmp_path: Path) -> None:
    catalog, source = catalog_of(tmp_path, repo="owner/name", revision=SECOND), hub_cache(tmp_path / "hub")
    assert "no snapshot" in refusal(catalog, source).message


def test_another_pin_than_the_locks_is_refused_until_it_is_wanted(tmp_path: Path) -> None:
    # Given a checkpoint that was pulled, and a pin that came later
    source = hub_cache(tmp_path / "hub", FIRST)
    pull(catalog_of(tmp_path, repo="owner/name"), "mine", source)
    hub_cache(source, SECOND)
    catalog = catalog_of(tmp_path, repo="owner/name", revision=SECOND)
    # When, Then
    assert SECOND in verify(catalog, "mine")[0]
    assert "--force" in refusal(catalog, source).hint
    assert pull(catalog, "mine", source, force=True).revision == SECOND


def test_other_bytes_under_the_recorded_revision_are_refused(tmp_path: Path) -> None:
    # Given a cache in which a file was changed, and a folder that has to be pulled again
    catalog, source = catalog_of(tmp_path, repo="owner/name"), hub_cache(tmp_path / "hub")
    pull(catalog, "mine", source)
    place = catalog.models_dir / "mine" / "text_encoder" / "model.safetensors"
    place.unlink()
    place.write_text("damaged here")
    entry = source / "models--owner--name" / "snapshots" / FIRST / "text_encoder" / "model.safetensors"
    entry.unlink()
    entry.write_text(weights("changed there"))
    # When, Then
    assert "text_encoder/model.safetensors is not the file that was recorded" in refusal(catalog, source).message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_index.json": None}, "model_index.json"),
        ({"model_index.json": "{}"}, "no weights"),
        ({"model_index.json": "{"}, "model_index.json"),
        ({"model_index.json": "[]"}, "model_index.json"),
        ({"unet/diffusion_pytorch_model.safetensors": None}, "unet/ of owner/name has no weights"),
        (
            {
                "unet/diffusion_pytorch_model.safetensors.index.json": '{"weight_map": {"x": '
                '"diffusion_pytorch_model-00002-of-00002.safetensors"}}'
            },
            "diffusion_pytorch_model-00002-of-00002.safetensors",
        ),
        ({"unet/diffusion_pytorch_model.safetensors.index.json": "[]"}, "is damaged"),
    ],
)
def test_an_incomplete_repository_is_refused(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    files = {name: content for name, content in (REPO | change).items() if content is not None}
    source = hub_cache(tmp_path / "hub", files=files)
    error = refusal(catalog_of(tmp_path, repo="owner/name"), source)
    assert message in error.message + error.hint


def test_a_variant_that_the_repository_does_not_have_is_refused(tmp_path: Path) -> None:
    files = {name: content for name, content in REPO.items() if ".fp16." not in name}
    catalog = catalog_of(tmp_path, repo="owner/name", variant="fp16")
    assert "no fp16 files" in refusal(catalog, hub_cache(tmp_path / "hub", files=files)).message


def test_a_link_out_of_the_cache_is_refused(tmp_path: Path) -> None:
    # Given
    (tmp_path / "secret").write_text("a private key")
    source = hub_cache(tmp_path / "hub")
    entry = source / "models--owner--name" / "snapshots" / FIRST / "tokenizer" / "vocab.json"
    entry.unlink()
    entry.symlink_to(tmp_path / "secret")
    # When, Then
    assert "leads out" in refusal(catalog_of(tmp_path, repo="owner/name"), source).message


def test_a_source_that_is_no_cache_is_refused_with_what_it_should_hold(tmp_path: Path) -> None:
    error = refusal(catalog_of(tmp_path, repo="owner/name"), tmp_path)
    assert "models--owner--name" in error.hint


def large() -> str:
    """A safetensors file of 24 MB: larger than twice what the hub's client writes at once."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [24_000_000], "data_offsets": [0, 24_000_000]}})
    return f"{chr(len(header))}{chr(0) * 7}{header}{'x' * 24_000_000}"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a pull asks for: what main is, which files there are, and each file, or the rest of it."""

    protocol_version = "HTTP/1.1"
    repos: ClassVar = {
        "owner/name": REPO,
        "owner/large": {**REPO, "unet/diffusion_pytorch_model.safetensors": large()},
        "owner/huge": {**REPO, "unet/diffusion_pytorch_model.safetensors": "huge"},
    }
    asked: ClassVar[list[tuple[str, str]]] = []
    """The files that were asked for, and which part."""
    breaks: ClassVar[bool] = False
    """Whether the next large file ends early, and its connection with it."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        for repo, files in self.repos.items():
            if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
                return self.answer(json.dumps({"id": repo, "sha": FIRST, "siblings": []}))
            if path == f"/api/models/{repo}/tree/{FIRST}":
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data.encode()).hexdigest()}  # noqa: S324
                    for name, data in files.items()
                ]
                return self.answer(json.dumps(entries))
            if path.removeprefix(f"/{repo}/resolve/{FIRST}/") in files:
                return self.answer(files[path.removeprefix(f"/{repo}/resolve/{FIRST}/")])
        return self.answer("", 404)

    do_HEAD = do_GET

    def answer(self, body: str, status: int = 200) -> None:
        data = body.encode()
        etag, start = hashlib.sha1(data).hexdigest(), 0  # noqa: S324
        if part := self.headers.get("Range"):
            start, status = int(part.removeprefix("bytes=").rstrip("-")), 206
        if "/resolve/" in self.path and self.command == "GET":
            self.asked.append((self.path.rpartition("/")[2], part or ""))
        self.send_response(status)
        self.send_header("Content-Length", str(10**15 if body == "huge" else len(data) - start))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", FIRST)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.close_connection = self.breaks and len(data) > 14_000_000
            self.wfile.write(data[start : 14_000_000 if self.close_connection else None])
            type(self).breaks &= not self.close_connection

    def log_message(self, format: str, *args: object) -> None:
        pass


def pulling(tmp_path: Path, endpoint: str) -> subprocess.Popen[str]:
    """A pull from the hub at `endpoint`, in a process that starts with an empty cache."""
    program = (
        "from farm.catalog import Catalog\n"
        "from farm.errors import FarmError\n"
        "from farm.models import pull\n"
        "from farm.settings import Settings\n"
        "try:\n"
        "    print(pull(Catalog.load(Settings()), 'mine', say=print).model_dump_json())\n"
        "except FarmError as error:\n"
        "    print(error.code, error.message, error.hint)\n"
    )
    variables = {
        **os.environ,
        "FARM_DATA": str(tmp_path / "data"),
        "FARM_CATALOG": str(tmp_path / "catalog.toml"),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def pull_online(tmp_path: Path, endpoint: str) -> str:
    """What such a pull prints."""
    with pulling(tmp_path, endpoint) as process:
        return process.communicate(timeout=60)[0]


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a small hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_is_pulled_from_the_hub(tmp_path: Path, hub: str) -> None:
    # Given
    catalog = catalog_of(tmp_path, repo="owner/name", variant="fp16")
    # When
    told, found = pull_online(tmp_path, hub).splitlines()
    # Then
    assert re.fullmatch(r"mine: 8 files of 0.0 MB, 0.0 MB are to be fetched", told)
    lock = Lock.model_validate_json(found)
    assert lock.revision == FIRST
    assert lock.files.keys() == COMMON | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert verify(catalog, "mine") == []
    # and nothing else was downloaded
    fetched = [path for path in (tmp_path / "home").rglob("snapshots/*/**/*") if path.is_file()]
    assert len(fetched) == len(lock.files)


def test_a_repository_that_the_hub_does_not_know_is_refused(tmp_path: Path, hub: str) -> None:
    catalog_of(tmp_path, repo="owner/other")
    printed = pull_online(tmp_path, hub)
    assert printed.startswith("bad_checkpoint")
    assert "does not give out owner/other" in printed


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a connection that ends in the middle of a large file
    catalog = catalog_of(tmp_path, repo="owner/large")
    monkeypatch.setattr(Hub, "breaks", True)
    monkeypatch.setattr(Hub, "asked", [])
    # When
    assert Lock.model_validate_json(pull_online(tmp_path, hub).splitlines()[-1])
    # Then only the rest was asked for once more
    assert verify(catalog, "mine") == []
    (start,) = [int(part.removeprefix("bytes=").rstrip("-")) for _, part in Hub.asked if part]
    assert 10_000_000 <= start <= 14_000_000


def test_a_pull_that_was_killed_fetches_only_what_is_missing(
    tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a hub's cache in which one file of a killed pull is not whole
    catalog = catalog_of(tmp_path, repo="owner/name")
    pull_online(tmp_path, hub)
    (lost,) = (tmp_path / "home").rglob("snapshots/*/unet/diffusion_pytorch_model.safetensors")
    lost.resolve().rename(lost.resolve().with_suffix(".0a1b2c3d.incomplete"))
    remove(catalog, "mine")
    monkeypatch.setattr(Hub, "asked", [])
    # When it is begun again
    assert Lock.model_validate_json(pull_online(tmp_path, hub).splitlines()[-1])
    # Then
    assert [name for name, _ in Hub.asked] == ["diffusion_pytorch_model.safetensors"]


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path: Path, hub: str) -> None:
    catalog = catalog_of(tmp_path, repo="owner/huge")
    printed = pull_online(tmp_path, hub).splitlines()
    assert printed[0].endswith("1,000,000,000.0 MB are to be fetched")
    assert printed[1].startswith("disk_full mine needs 1,000,000,000.0 MB")
    assert "farm models rm" in printed[1]
    assert listing(catalog.models_dir) == {}


def test_without_the_hub_a_pull_is_unavailable_and_says_what_helps(tmp_path: Path) -> None:
    # Given a hub that refuses connections, and an empty cache
    catalog = catalog_of(tmp_path, repo="owner/name")
    # When
    printed = pull_online(tmp_path, "http://127.0.0.1:1")
    # Then
    assert printed.startswith("unavailable")
    assert "HF_ENDPOINT" in printed
    assert "--from" in printed
    assert listing(catalog.models_dir) == {}


def test_without_huggingface_hub_a_pull_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Unavailable) as info:
        pull(catalog_of(tmp_path, repo="owner/name"), "mine", tmp_path)
    assert "latent-farm[worker]" in info.value.hint


# built here


def test_a_checkpoint_is_built_and_recorded(tmp_path: Path, builder: Path) -> None:
    # Given
    catalog = catalog_of(tmp_path, build="mine_builder")
    # When
    lock = pull(catalog, "mine")
    # Then
    built = weights("first").encode()
    assert listing(catalog.models_dir / "mine") == {"model_index.json": b"mine", "unet/model.safetensors": built}
    assert lock.revision is None
    assert lock.files["unet/model.safetensors"] == hashlib.sha256(built).hexdigest()
    # and only these two lie in the folder of checkpoints
    assert sorted(path.name for path in catalog.models_dir.iterdir()) == ["mine", "mine.farm.lock.json"]


def test_a_build_that_gives_other_files_is_refused_until_it_is_wanted(tmp_path: Path, builder: Path) -> None:
    # Given a build that was recorded, whose files are gone, and a builder that has changed
    catalog = catalog_of(tmp_path, build="mine_builder")
    first = pull(catalog, "mine")
    (catalog.models_dir / "mine" / "unet" / "model.safetensors").unlink()
    builder.with_name("content").write_text(weights("second"))
    # When, Then
    assert "--force" in refusal(catalog).hint
    assert catalog.lock(catalog.checkpoints["mine"]) == first
    assert pull(catalog, "mine", force=True).files != first.files
    assert (catalog.models_dir / "mine" / "unet" / "model.safetensors").read_text() == weights("second")


def test_what_is_in_place_is_not_built_again(tmp_path: Path, builder: Path) -> None:
    # Given
    catalog = catalog_of(tmp_path, build="mine_builder")
    first = pull(catalog, "mine")
    builder.write_text("raise SystemExit(1)")
    # When, Then
    assert pull(catalog, "mine") == first


def test_what_an_older_builder_made_is_built_anew(
    tmp_path: Path, builder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a checkpoint that was built before its builder was changed, as by another version of the package
    monkeypatch.syspath_prepend(str(builder.parent))
    catalog = catalog_of(tmp_path, build="mine_builder")
    first = pull(catalog, "mine")
    builder.with_name("content").write_text(weights("second"))
    assert pull(catalog, "mine") == first
    os.utime(catalog.lock_path(catalog.checkpoints["mine"]), (0, 0))
    # When
    second = pull(catalog, "mine")
    # Then it is what the builder makes now, and is not built again
    assert second.files != first.files
    builder.with_name("content").write_text(weights("third"))
    assert pull(catalog, "mine") == second


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path, builder: Path) -> None:
    # Given
    builder.write_text("import pathlib, sys\npathlib.Path(sys.argv[2]).mkdir()\nraise KeyError('no such member')")
    catalog = catalog_of(tmp_path, build="mine_builder")
    # When, Then
    assert "no such member" in refusal(catalog).message
    assert listing(catalog.models_dir) == {}


def test_a_module_that_happens_to_lie_in_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stray_builder.py").write_text("import pathlib\npathlib.Path('ran').touch()")
    # When, Then
    assert "stray_builder" in refusal(catalog_of(tmp_path, build="stray_builder")).message
    assert not (tmp_path / "ran").exists()


def test_a_worker_takes_what_was_pulled(tmp_path: Path) -> None:
    # Given the smallest real checkpoint
    from workers.pipelines import files_of

    catalog = Catalog.load(Settings(data=tmp_path / "data"))
    # When
    lock = pull(catalog, "tiny")
    # Then
    files = files_of(catalog, catalog.checkpoints["tiny"])
    assert files.path == catalog.models_dir / "tiny"
    assert any(name.endswith(".safetensors") for name in lock.files)


# files of one's own


def test_a_folder_is_recorded_where_it_lies(tmp_path: Path, folder: Path) -> None:
    # Given
    (folder / ".cache").mkdir()
    (folder / ".cache" / "bookkeeping.bin").write_text("")
    catalog = catalog_of(tmp_path, folder=str(folder))
    # When
    lock = pull(catalog, "mine")
    # Then
    assert lock.files.keys() == {"model_index.json", "unet/model.safetensors"}
    assert lock.files["unet/model.safetensors"] == hashlib.sha256(SAFETENSORS).hexdigest()
    assert list(catalog.models_dir.iterdir()) == [catalog.lock_path(catalog.checkpoints["mine"])]


def test_a_single_file_is_recorded_with_its_configuration(tmp_path: Path) -> None:
    # Given
    (tmp_path / "weights" / "config" / "unet").mkdir(parents=True)
    (tmp_path / "weights" / "config" / "unet" / "config.json").write_text("{}")
    (tmp_path / "weights" / "one.safetensors").write_bytes(SAFETENSORS)
    (tmp_path / "weights" / "another.safetensors").write_bytes(SAFETENSORS)
    catalog = catalog_of(
        tmp_path, file=str(tmp_path / "weights" / "one.safetensors"), config=str(tmp_path / "weights" / "config")
    )
    # When, Then
    assert pull(catalog, "mine").files.keys() == {"one.safetensors", "config/unet/config.json"}
    assert verify(catalog, "mine") == []
    (tmp_path / "weights" / "config" / "unet" / "config.json").write_text('{"other": 1}')
    assert verify(catalog, "mine") == ["config/unet/config.json is not the file that was recorded"]


@pytest.mark.parametrize(("name", "config"), [("one.ckpt", "weights/config"), ("one.safetensors", "elsewhere")])
def test_a_single_file_must_be_safetensors_with_its_configuration_beside_it(
    tmp_path: Path, name: str, config: str
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / config).mkdir()
    (tmp_path / config / "config.json").write_text("{}")
    (tmp_path / "weights" / name).write_bytes(SAFETENSORS)
    catalog = catalog_of(tmp_path, file=str(tmp_path / "weights" / name), config=str(tmp_path / config))
    assert "`file` must be a .safetensors" in refusal(catalog).message


@pytest.mark.parametrize("suffix", [".py", ".bin", ".ckpt", ".pt", ".pkl", ".BIN"])
def test_a_file_that_may_run_code_is_refused(tmp_path: Path, folder: Path, suffix: str) -> None:
    (folder / "unet" / f"model{suffix}").write_text("")
    assert f"unet/model{suffix} may run code" in refusal(catalog_of(tmp_path, folder=str(folder))).message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x04\x95pickle", "not a safetensors file"),
        (b"", "not a safetensors file"),
        (large().encode()[:-1], "not whole"),
        (b"\xff" * 8 + b"{}", "not whole"),
        (b"\x02\0\0\0\0\0\0\0[]", "not a safetensors file"),
    ],
    ids=["pickle", "empty", "cut short", "endless header", "list"],
)
def test_what_is_no_whole_safetensors_file_is_refused(
    tmp_path: Path, folder: Path, content: bytes, reason: str
) -> None:
    (folder / "unet" / "model.safetensors").write_bytes(content)
    assert reason in refusal(catalog_of(tmp_path, folder=str(folder))).message


def test_a_link_that_leads_out_of_a_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.safetensors").write_bytes(SAFETENSORS)
    (folder / "vae").symlink_to(tmp_path / "outside")
    assert "vae is a link that leads out" in refusal(catalog_of(tmp_path, folder=str(folder))).message


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, folder=str(tmp_path / "mine"))
    assert "nothing at" in refusal(catalog).message
    (tmp_path / "mine").mkdir()
    assert "no files" in refusal(catalog).message


def test_every_difference_is_named(tmp_path: Path, folder: Path) -> None:
    # Given
    catalog = catalog_of(tmp_path, folder=str(folder))
    assert verify(catalog, "mine") == ["the checkpoint mine has not been pulled"]
    pull(catalog, "mine")
    # When
    (folder / "model_index.json").unlink()
    (folder / "more.json").write_text("{}")
    (folder / "unet" / "model.safetensors").write_text(weights("other"))
    # Then
    assert verify(catalog, "mine") == [
        "model_index.json is missing",
        "more.json is not in the lock",
        "unet/model.safetensors is not the file that was recorded",
    ]
    assert "(and 2 more)" in refusal(catalog).message
    # When the new files are wanted
    pull(catalog, "mine", force=True)
    assert verify(catalog, "mine") == []


def test_a_recorded_revision_counts(tmp_path: Path, folder: Path) -> None:
    # Given
    catalog = catalog_of(tmp_path, folder=str(folder))
    checkpoint = catalog.checkpoints["mine"]
    first = record(catalog, checkpoint, FIRST)
    assert record(catalog, checkpoint, FIRST) == first
    # When, Then
    with pytest.raises(FarmError, match=SECOND):
        record(catalog, checkpoint, SECOND)
    assert catalog.lock(checkpoint) == first
    assert record(catalog, checkpoint, SECOND, force=True).manifest != first.manifest


@pytest.mark.parametrize("call", [pull, verify])
def test_a_checkpoint_that_the_catalog_does_not_have_is_named(tmp_path: Path, call: object) -> None:
    with pytest.raises(InvalidJob) as info:
        call(Catalog.load(Settings(data=tmp_path)), "nonesuch")  # type: ignore[operator]
    assert info.value.code == "unknown_checkpoint"
    assert "tiny" in info.value.errors[0].msg
