"""How are a checkpoint's files fetched from the hub, and which of a repository's are wanted?

Only what loading takes: configurations, vocabularies, and per component one set of safetensors. Nothing that may run
code is fetched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from farm.catalog import Adapter, Weights
from farm.errors import FarmError, Unavailable

WEIGHTS = r"(diffusion_pytorch_model|model)"
"""How diffusers and transformers begin the names of weights that they load by themselves.

Source: diffusers 0.42, `variant_compatible_siblings`; with it the two patterns in `_wanted`.
"""


def fetch(
    checkpoint: Weights, revision: str | None, source: Path | None, fresh: Path, say: Callable[[str], None]
) -> str:
    """The commit (40 hex digits) whose files now lie in the folder `fresh`."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise Unavailable("huggingface_hub is not installed", hint="pip install 'latent-farm[worker]'") from error
    repo, offline = str(checkpoint.repo), source is not None
    with _hub(checkpoint, source):
        index = snapshot_download(
            repo, revision=revision, cache_dir=source, local_files_only=offline, allow_patterns=[_index(checkpoint)]
        )
        snapshot = Path(index)
        if offline:
            names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
        else:
            names = HfApi().list_repo_files(repo, revision=snapshot.name)
        if isinstance(checkpoint, Adapter):
            wanted = _wanted_of_adapter(checkpoint, set(names))
        else:
            wanted = _wanted(checkpoint, _components(checkpoint, snapshot), names)
        if not offline:
            plan = snapshot_download(repo, revision=snapshot.name, allow_patterns=wanted, dry_run=True)
            sizes = [(file.file_size or 0, file.will_download) for file in plan]
            _check_room(checkpoint, sizes, snapshot, fresh.parent, say)
            snapshot_download(repo, revision=snapshot.name, allow_patterns=wanted)
    cache = snapshot.parent.parent.resolve()
    for name in wanted:
        kept = (snapshot / name).resolve()
        if not kept.is_relative_to(cache):
            raise bad(checkpoint, f"{name} is a link that leads out of the hub's cache")
        target = fresh / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(kept, target)  # gigabytes that need not lie there twice
        except OSError:
            shutil.copyfile(kept, target)
    return snapshot.name


def _check_room(
    checkpoint: Weights, sizes: list[tuple[int, bool]], cache: Path, target: Path, say: Callable[[str], None]
) -> None:
    """Refuses a download of files of these sizes (bytes, and whether they are to be fetched) that the disk cannot take.

    What lies in the hub's cache is linked to its place, or copied where that is on another disk.
    """
    whole, missing = sum(size for size, _ in sizes), sum(size for size, fetched in sizes if fetched)
    needed = {cache: missing}
    if cache.stat().st_dev != target.stat().st_dev:
        needed[target] = whole
    say(f"{checkpoint.name}: {len(sizes)} files of {whole / 1e6:,.1f} MB, {missing / 1e6:,.1f} MB are to be fetched")
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise FarmError(
                f"{checkpoint.name} needs {size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free at {folder}",
                code="disk_full",
                hint="`farm models rm` and `hf cache rm` make room; HF_HOME and FARM_DATA name larger disks",
            )


@contextmanager
def _hub(checkpoint: Weights, source: Path | None) -> Iterator[None]:
    """The hub's errors as the farm's own."""
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        hint = f"look at https://huggingface.co/{checkpoint.repo}: is its licence accepted, is HF_TOKEN set?"
        raise bad(checkpoint, f"the hub does not give out {checkpoint.repo}: {type(error).__name__}", hint) from error
    except (OSError, HTTPError) as error:
        if source is not None:
            hint = f"it should hold models--{str(checkpoint.repo).replace('/', '--')}/snapshots/<commit> and refs/main"
            raise bad(checkpoint, f"{source} has no snapshot of {checkpoint.repo}", hint) from error
        raise Unavailable(
            f"the hub cannot be reached: {type(error).__name__}",
            hint="set HF_ENDPOINT to a mirror, or copy a hub cache here and give it with --from",
        ) from error


def _index(checkpoint: Weights) -> str:
    """A small file that a repository of this kind has: with it, its commit is found."""
    if isinstance(checkpoint, Adapter):
        known = dict.fromkeys(("controlnet", "vae", "clip"), "config.json")
        known["safety_checker"] = "safety_checker/config.json"
        return known.get(checkpoint.type) or str(checkpoint.weights)
    return "model_index.json"


def _wanted_of_adapter(adapter: Adapter, names: set[str]) -> list[str]:
    """The files that loading an adapter takes."""
    variant = f".{adapter.variant}" if adapter.variant else ""
    if adapter.type in ("controlnet", "vae"):
        wanted = {"config.json", f"diffusion_pytorch_model{variant}.safetensors"}
    elif adapter.type == "clip":
        wanted = {"config.json", f"model{variant}.safetensors", "preprocessor_config.json"}
        wanted |= {"tokenizer.json"} if "tokenizer.json" in names else {"vocab.json", "merges.txt"}
        wanted |= names & {"tokenizer_config.json", "special_tokens_map.json"}
    elif adapter.type == "safety_checker":
        wanted = {"safety_checker/config.json", f"safety_checker/model{variant}.safetensors"}
        wanted.add("feature_extractor/preprocessor_config.json")
    else:
        wanted = {str(adapter.weights)}
    if adapter.image_encoder is not None:
        wanted |= {f"{adapter.image_encoder}/{name}" for name in ("config.json", "model.safetensors")}
    if missing := sorted(wanted - names):
        raise bad(adapter, f"{adapter.repo} has no {missing[0]}")
    return sorted(wanted)


def _components(checkpoint: Weights, snapshot: Path) -> list[str]:
    """The folders that the pipeline's index names, but for the safety checker, which the farm's stages do not load."""
    try:
        index = json.loads((snapshot / "model_index.json").read_text("utf-8"))
        parts = [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None]
        return [name for name in parts if name != "safety_checker"]
    except (OSError, ValueError, AttributeError):
        raise bad(checkpoint, f"{checkpoint.repo} has no readable model_index.json") from None


def _wanted(checkpoint: Weights, components: list[str], names: Iterable[str]) -> list[str]:
    """The files that loading takes: configurations, vocabularies, and per component one set of safetensors."""
    variant, shard = checkpoint.variant, r"(-\d{5}-of-\d{5})?"
    plain = re.compile(rf"{WEIGHTS}{shard}\.safetensors(\.index\.json)?")
    special = re.compile(rf"{WEIGHTS}\.({variant}{shard}\.safetensors|safetensors\.index\.{variant}\.json)")
    found, varied = {"model_index.json"}, False
    names = set(names)
    for component in components:
        inside = {name.rpartition("/")[2]: name for name in names if name.rpartition("/")[0] == component}
        weights = {file for file in inside if variant and special.fullmatch(file)}
        varied |= bool(weights)
        weights = weights or {file for file in inside if plain.fullmatch(file)}
        if "config.json" in inside and not any(file.endswith(".safetensors") for file in weights):
            raise bad(checkpoint, f"{component}/ of {checkpoint.repo} has no weights as safetensors")
        texts = {file for file in inside if file.endswith((".json", ".txt", ".model")) and ".index." not in file}
        found |= {inside[file] for file in weights | texts}
    if not any(name.endswith(".safetensors") for name in found):
        raise bad(checkpoint, f"{checkpoint.repo} has no weights as safetensors")
    if variant and not varied:
        raise bad(checkpoint, f"{checkpoint.repo} has no {variant} files", "remove `variant` from its catalog entry")
    return sorted(found)


def bad(checkpoint: Weights, reason: str, hint: str = "") -> FarmError:
    """The refusal of a checkpoint's files."""
    return FarmError(
        f"the {'adapter' if isinstance(checkpoint, Adapter) else 'checkpoint'} {checkpoint.name}: {reason}",
        code="bad_checkpoint",
        hint=hint,
    )
