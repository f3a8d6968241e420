"""How do a checkpoint's files get onto this machine, and are they the ones that were recorded?

`pull` fetches them from the hub (or from a copy of its cache), or builds them, checks that they are whole and hold
nothing but data, puts them in place and records the revision and each file's SHA-256 in the lock. A later pull must
find the same files: other ones are refused, and nothing changes, unless they are wanted (`force`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from farm.catalog import Adapter, Catalog, Lock, Weights
from farm.errors import FarmError, FieldError, InvalidJob
from farm.hub import bad, fetch

UNSAFE = (
    ".py", ".pyc", ".so", ".bin", ".ckpt", ".pt", ".pth",
    ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack",
)  # fmt: skip
"""Suffixes of files that are code, or may run code when they are read; nothing of the kind lies in a checkpoint."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Ends of files that `convert` makes safetensors of."""
MAX_HEADER = 100_000_000
"""Bytes of a safetensors file's header at most, as the format's own reader has it."""


def pull(
    catalog: Catalog,
    name: str,
    source: Path | None = None,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Lock:
    """The lock of the checkpoint `name`, whose files are in place and as it says; fetches or builds what is not.

    What was built is built anew where its builder is newer: another version of the package may build another one.

    `source` is a copy of the hub's cache folder (with `models--OWNER--NAME` in it) to take the files from, offline.
    `say` is told how large a download is; of one that is begun again, files that are whole are not fetched once more.

    Raises:
        InvalidJob: (`unknown_checkpoint`) the catalog has no such checkpoint.
        FarmError: (`bad_checkpoint`) the files are incomplete, unsafe, or not those of the lock or of the catalog's
            revision; (`disk_full`) the disk has no room for them; nothing was changed.
        Unavailable: the hub cannot be reached.
    """
    checkpoint = _find(catalog, name)
    force = force or is_outdated(catalog, checkpoint)
    if not force and not verify(catalog, name):
        return catalog.lock(checkpoint)
    if checkpoint.folder is not None or checkpoint.file is not None:
        return record(catalog, checkpoint, force=force)
    place = catalog.path(checkpoint)
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name}.", dir=place.parent) as scratch:
        fresh, revision = Path(scratch) / "fresh", None
        if checkpoint.repo is not None:
            locked = _lock_of(catalog, checkpoint)
            revision = checkpoint.revision or (locked.revision if locked and not force else None)
            revision = fetch(checkpoint, revision, source, fresh, say)
        else:
            _build(checkpoint, fresh)
        lock = _agreed(catalog, checkpoint, _whole(checkpoint, fresh, revision), force)
        if place.exists():
            place.rename(Path(scratch) / "old")
        fresh.rename(place)
    _write(catalog, checkpoint, lock)
    return lock


def record(catalog: Catalog, checkpoint: Weights, revision: str | None = None, *, force: bool = False) -> Lock:
    """The lock of the files that lie in place now, written beside them.

    Raises:
        FarmError: (`bad_checkpoint`) the files are missing, unsafe, or not those of an existing lock.
    """
    lock = _agreed(catalog, checkpoint, _whole(checkpoint, catalog.path(checkpoint), revision), force)
    _write(catalog, checkpoint, lock)
    return lock


def is_outdated(catalog: Catalog, checkpoint: Weights) -> bool:
    """Whether the checkpoint was built, by files that have changed since: those beside its builder and below."""
    lock, found = catalog.lock_path(checkpoint), None
    if checkpoint.build and lock.exists():
        with suppress(ImportError):  # without its builder, it stays as it is
            found = find_spec(checkpoint.build)
    if found is None or found.origin is None:
        return False
    files = (file for file in Path(found.origin).parent.rglob("*") if file.suffix in (".py", ".safetensors", ".json"))
    return max(file.stat().st_mtime for file in files) > lock.stat().st_mtime


def verify(catalog: Catalog, name: str) -> list[str]:
    """What is wrong with the files of the checkpoint `name`, one line each; empty where they are as recorded.

    Raises:
        InvalidJob: (`unknown_checkpoint`) the catalog has no such checkpoint.
    """
    checkpoint = _find(catalog, name)
    try:
        lock = catalog.lock(checkpoint)
        found = Lock(revision=lock.revision, files=_hashes(checkpoint, catalog.path(checkpoint)))
    except FarmError as error:
        return [error.message]
    pinned = checkpoint.revision in (None, lock.revision)
    return _differences(lock, found) + ([] if pinned else [f"the catalog pins the revision {checkpoint.revision}"])


def size_bytes(catalog: Catalog, entry: Weights) -> int:
    """What the files of `entry` take on the disk; 0 where there are none."""
    path = catalog.path(entry)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def remove(catalog: Catalog, name: str) -> int:
    """Removes the lock of the entry `name`, and its files where the farm has fetched or built them; the bytes freed.

    Raises:
        InvalidJob: (`unknown_checkpoint`) the catalog has no such entry; (`not_pulled`) nothing of it is here.
    """
    entry = _find(catalog, name)
    catalog.lock(entry)
    # The lock first: without it no worker takes what may be gone by half.
    catalog.lock_path(entry).unlink()
    if entry.folder is not None or entry.file is not None:
        return 0
    path = catalog.path(entry)
    # What the hub's cache has too takes its room there still.
    freed = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.stat().st_nlink == 1)
    shutil.rmtree(path, ignore_errors=True)
    return freed


def convert(source: Path, target: Path, config: Path | None = None) -> None:
    """Makes of a file what the catalog can name, in a process of its own; see `workers.convert`.

    Raises:
        InvalidJob: (`bad_file`, `usage`) the file is not there, the target is, or they do not go together.
        FarmError: (`bad_checkpoint`) the file cannot be converted; nothing was written.
    """
    if not source.is_file():
        raise InvalidJob(f"there is no file {source}", code="bad_file")
    if target.exists():
        raise InvalidJob(f"{target} exists already", code="bad_file", hint="choose another name, or remove it first")
    pickled = source.suffix in PICKLES
    if not pickled and source.suffix != ".safetensors":
        raise InvalidJob(f"{source} is neither a .safetensors nor a {', '.join(PICKLES)}", code="bad_file")
    if pickled and (target.suffix != ".safetensors" or config is not None):
        hint = "make a .safetensors of it first, without --config; then a folder of that"
        raise InvalidJob(f"{source.suffix} becomes a .safetensors", code="usage", hint=hint)
    if not pickled and (config is None or not (config / "model_index.json").is_file()):
        hint = "a repository of the same family without its weights will do"
        raise InvalidJob("--config names a folder with a model_index.json", code="usage", hint=hint)
    ended = _module("workers.convert", str(source), str(target), *(["--config", str(config)] if config else []))
    if ended.returncode:
        raise FarmError(f"{source} cannot be converted: {_last(ended)}", code="bad_checkpoint")


def _find(catalog: Catalog, name: str) -> Weights:
    """The catalog's entry."""
    entries: dict[str, Weights] = {**catalog.checkpoints, **catalog.adapters}
    if name not in entries:
        message = f"{name!r} is not in the catalog; choose one of {', '.join(sorted(entries))}"
        raise InvalidJob(errors=(FieldError("checkpoint", message, "unknown_checkpoint"),))
    return entries[name]


def _lock_of(catalog: Catalog, checkpoint: Weights) -> Lock | None:
    """The lock, where there is a readable one."""
    try:
        return catalog.lock(checkpoint)
    except InvalidJob:
        return None


# where the files come from


def _build(checkpoint: Weights, fresh: Path) -> None:
    """Builds the checkpoint into the folder `fresh`."""
    ended = _module(str(checkpoint.build), checkpoint.name, str(fresh))
    if ended.returncode:
        raise bad(checkpoint, f"building it failed: {_last(ended)}", "is latent-farm[worker] installed?")


def _module(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module that imports torch, in a process of its own."""
    # -P: what runs is what is installed, not what happens to lie in the current folder.
    command = [sys.executable, "-P", "-m", name, *arguments]
    # A group of its own: Ctrl+C is for the farm to answer, not for half of it to die of.
    return subprocess.run(command, capture_output=True, text=True, check=False, process_group=0)


def _last(ended: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process said of its end."""
    return (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]


# what the files are


def _whole(checkpoint: Weights, path: Path, revision: str | None) -> Lock:
    """What lies at `path`, of which each safetensors file is one to its end."""
    files = _hashes(checkpoint, path)
    if isinstance(checkpoint, Adapter) and checkpoint.file is None:
        encoder = f"{checkpoint.image_encoder}/config.json" if checkpoint.image_encoder else None
        for needed in filter(None, (checkpoint.weights, encoder)):
            if needed not in files:
                raise bad(checkpoint, f"there is no {needed}")
    for name in files:
        if name.endswith(".safetensors"):
            _check_header(checkpoint, (path if checkpoint.file is None else path.parent) / name)
    return Lock(revision=revision, files=files)


def _hashes(checkpoint: Weights, path: Path) -> dict[str, str]:
    """SHA-256 (hex) of each file of a checkpoint by its path relative to the folder."""
    if not path.exists():
        raise bad(checkpoint, f"there is nothing at {path}")
    if checkpoint.file is None:
        found = _listed(checkpoint, path, path)
    else:
        # The configuration decides about pixels as the weights do, and the lock names files relative to the weights.
        config = Path(str(getattr(checkpoint, "config", None) or path)).expanduser()
        if path.suffix != ".safetensors" or not config.resolve().is_relative_to(path.parent.resolve()):
            raise bad(checkpoint, "`file` must be a .safetensors, and `config` a folder beside it")
        found = [path] if config == path else [path, *_listed(checkpoint, config, path.parent)]
    root = path if checkpoint.file is None else path.parent
    files: dict[str, str] = {}
    for file in found:
        with file.open("rb") as opened:
            files[file.relative_to(root).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    for name in files:
        if ".safetensors.index." in name:
            _check_shards(checkpoint, root / name)
    return dict(sorted(files.items()))


def _listed(checkpoint: Weights, folder: Path, root: Path) -> list[Path]:
    """The files in `folder`; refuses what may run code and links that lead out of `root`."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(root)
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise bad(checkpoint, f"{relative} is a link that leads out of the folder")
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue  # hidden files are the hub's own bookkeeping; no loader reads them
        if path.suffix.lower() in UNSAFE:
            raise bad(checkpoint, f"{relative} may run code when it is read; only safetensors are taken")
        found.append(path)
    if not found:
        raise bad(checkpoint, f"there are no files in {folder}")
    return found


def _check_header(checkpoint: Weights, path: Path) -> None:
    """Refuses what is no safetensors file, or only the beginning of one.

    Source of the layout: 8 bytes with the length of the header, the header as JSON, the tensors without gaps
    (https://github.com/huggingface/safetensors#format).
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_HEADER)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0) == path.stat().st_size
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise bad(checkpoint, f"{path.name} is not a safetensors file") from None
    if not whole:
        raise bad(checkpoint, f"{path.name} is not whole")


def _check_shards(checkpoint: Weights, index: Path) -> None:
    """Refuses an index of shards that are not all there."""
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise bad(checkpoint, f"{index.name} is damaged") from None
    if missing:
        raise bad(checkpoint, f"{missing[0]}, a part of {index.name}, is missing")


def _agreed(catalog: Catalog, checkpoint: Weights, found: Lock, force: bool) -> Lock:
    """`found`, if neither the catalog nor an existing lock says otherwise."""
    if checkpoint.revision is not None and found.revision != checkpoint.revision:
        raise bad(checkpoint, f"the catalog pins the revision {checkpoint.revision}, found was {found.revision}")
    locked = None if force else _lock_of(catalog, checkpoint)
    differences = _differences(locked, found) if locked else []
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        hint = f"if the new files are wanted, run `farm models pull {checkpoint.name} --force`"
        raise bad(checkpoint, f"{differences[0]}{more}", hint)
    return found


def _differences(lock: Lock, found: Lock) -> list[str]:
    """What `found` has other than `lock`, one line each."""
    lines = []
    if found.revision != lock.revision:
        lines.append(f"the revision is {found.revision}, the lock says {lock.revision}")
    lines += [f"{name} is missing" for name in lock.files if name not in found.files]
    lines += [f"{name} is not in the lock" for name in found.files if name not in lock.files]
    lines += [
        f"{name} is not the file that was recorded"
        for name, sha256 in found.files.items()
        if lock.files.get(name, sha256) != sha256
    ]
    return lines


def _write(catalog: Catalog, checkpoint: Weights, lock: Lock) -> None:
    """Writes the lock at once or not at all."""
    path = catalog.lock_path(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(lock.model_dump_json(indent=1) + "\n", "utf-8")
    fresh.replace(path)
