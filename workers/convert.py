"""What others distribute, as what the farm reads: `python -m workers.convert SOURCE TARGET [--config FOLDER]`.

========================== ============================================================================================
SOURCE                     TARGET
========================== ============================================================================================
.safetensors, --config     a new folder in the hub's layout: what a single file says, configured as the folder is
.ckpt, .pt, .pth, .bin     a new .safetensors with the tensors of it; names of nested tables are joined by dots
========================== ============================================================================================

Only here are pickles read, in a process of its own and by torch's reader that knows tensors, numbers and containers and
calls nothing else (`torch.load(weights_only=True)`). The rest of the farm takes safetensors alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from farm.models import PICKLES


def main() -> None:
    """Converts one file; what cannot be converted is told in one line on stderr, exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m workers.convert", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--config", type=Path)
    given = parser.parse_args()
    given.target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that it appears at once and whole.
    with TemporaryDirectory(prefix=f".{given.target.name}.", dir=given.target.parent) as scratch:
        fresh = Path(scratch) / given.target.name
        try:
            if given.source.suffix in PICKLES:
                unpickled(given.source, fresh)
            else:
                unpacked(given.source, fresh, given.config)
        except Exception as error:  # noqa: BLE001 - loaders raise anything, and the caller shows one line
            first = (str(error).splitlines() or [""])[0]
            sys.exit(f"{type(error).__name__}: {first[:200]}")
        os.rename(fresh, given.target)


def unpacked(source: Path, target: Path, config: Path) -> None:
    """A single file as the folder `target`, with the pipeline class and configurations of the folder `config`.

    Raises:
        Exception: whatever diffusers says of files that do not fit each other.
    """
    import diffusers

    from workers.pipelines import LEFT_OUT, UNCHECKED

    name = json.loads((config / "model_index.json").read_text("utf-8"))["_class_name"]
    known = LEFT_OUT.get(name, UNCHECKED)
    pipe = getattr(diffusers, name).from_single_file(str(source), config=str(config), local_files_only=True, **known)
    pipe.save_pretrained(target, safe_serialization=True)


def unpickled(source: Path, target: Path) -> None:
    """The tensors of a pickle as the safetensors file `target`.

    Raises:
        pickle.UnpicklingError: the file asks for something other than tensors, numbers and containers.
        ValueError: there are no tensors in it.
    """
    import torch
    from safetensors.torch import save_file

    held = torch.load(source, map_location="cpu", weights_only=True)
    if isinstance(held, dict):
        held = next((held[name] for name in ("state_dict", "params_ema", "params") if name in held), held)
        if isinstance(held.get("string_to_param"), dict):  # a textual inversion as A1111 keeps it
            held = {"emb_params": next(iter(held["string_to_param"].values()))}
    found = dict(_tensors(held, ""))
    if not found:
        raise ValueError("there are no tensors in it")
    save_file(found, target)


def _tensors(held: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The tensors in nested tables, each by its path, and each with memory of its own."""
    import torch

    if isinstance(held, dict):
        for key, value in held.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(held, torch.Tensor):
        yield name, held.detach().clone().contiguous()


if __name__ == "__main__":
    main()
