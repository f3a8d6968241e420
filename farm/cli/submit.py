"""What do the commands that submit have in common: parameters, where pictures go, and what is told in the end?"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.outcome import Outcome, usage
from farm.cli.wait import wait

if TYPE_CHECKING:
    from farm.protocol import AnyFarm, AnyJob

Out = Annotated[Path | None, typer.Option("-o", "--out", help="Folder, or a .png for a single job; implies --wait.")]


def submitted(farm: AnyFarm, handles: Sequence[AnyJob], wait_: bool, out: Path | None) -> Outcome:
    """What came of submitted jobs, if that is waited for; else their ids."""
    if wait_ or out is not None:
        return wait(handles, out, farm.round_s)
    ids = [handle.id for handle in handles]
    return Outcome({"jobs": [{"id": job} for job in ids]}, ids)


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """The names and values of all --set. Raises the usage error where one is none, or a name is given twice."""
    given: dict[str, Any] = {}
    for name, value in map(_assignment, texts):
        if name in given:
            raise usage(f"{name} is given twice")
        given[name] = value
    return given


def _assignment(text: str) -> tuple[str, Any]:
    """The name and value of one --set: JSON where it is JSON, else the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name or name in ("self", "chain", "stages"):
        raise usage(f"--set {text}: not [I.]NAME=VALUE", "for example --set 1.strength=0.4")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def axes(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The axes of all --sweep (see `farm.sweep`), ranges as they stand. Raises the usage error where one is none."""
    return [_axis(text) for text in texts]


def _axis(text: str) -> dict[str, Any]:
    """One axis: NAME=A,B,… with values as those of --set, NAME= and a JSON list or A..B, or a whole axis as JSON."""
    # Here and not above: it imports pydantic, which takes longer than `farm --help` runs.
    from farm.sweep import RANGE

    try:
        found = json.loads(text)
        return {str(name): values if isinstance(values, str) else list(values) for name, values in found.items()}
    except (ValueError, AttributeError, TypeError):
        name, equals, rest = text.partition("=")
    if not equals or not name or not rest:
        hint = (
            'for example --sweep guidance_scale=3,7 or seed=0..9, or --sweep \'{"seed": [1, 2], "0.steps": [10, 20]}\''
        )
        raise usage(f"--sweep {text}: not [I.]NAME=A,B,… or A..B, and no axis as JSON", hint)
    _, value = _assignment(text)
    if isinstance(value, list) or RANGE.fullmatch(rest):
        return {name: value}
    return {name: [_assignment(f"{name}={one}")[1] for one in rest.split(",")]}


def check_out(out: Path | None) -> None:
    """Refuses a target that cannot be written, before anything is rendered for it."""
    if out is None:
        return
    if out.suffix.lower() in {".jpg", ".jpeg", ".webp", ".gif"}:
        raise usage(f"-o {out}: results are PNG files", "give a folder, or a name that ends in .png")
    folder = out.parent if out.suffix == ".png" else out
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise usage(f"-o {out}: the folder cannot be made: {folder} is a file")
    if not os.access(folder, os.W_OK):
        raise usage(f"-o {out}: the folder cannot be written")
