"""Which lines does a wildcard stand for?

A folder of files, as people share them: `a/b.txt` is the wildcard `a/b`, one line each, blank ones and those that begin
with `#` left out. YAML and JSON hold several: `a/x.yaml` with `{colours: {warm: [red, orange]}}` has `a/colours/warm`;
a file that is a list is called as the file. A line is a template again; `0.5::red` is half as likely as `red`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from farm.errors import InvalidJob

SUFFIXES = {".txt", ".yaml", ".yml", ".json"}
MAX_FILES, MAX_LINES, MAX_FILE_BYTES, MAX_BYTES = 10_000, 1_000_000, 16 * 2**20, 64 * 2**20
"""Of one folder. Source: the largest collections that are shared have some thousand files and some 10 MB."""
MAX_DEPTH = 32
"""How deep mappings may lie within each other."""
MAX_FOUND = 16
"""Patterns whose names are remembered: rows mostly have the same ones, and each may mean a million names."""


@dataclass(frozen=True)
class Wildcards:
    """The lines of each wildcard, by its name."""

    lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    known: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    """What `prompts` made of them, so that it is made once."""
    found: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)
    """The names that the last patterns meant."""

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) of names and lines: equal ones mean the same."""
        return hashlib.sha256(json.dumps(sorted(self.lines.items()), ensure_ascii=True).encode()).hexdigest()

    def matching(self, pattern: str) -> list[str]:
        """The names that a pattern means, sorted: `*` is any part of a name without `/`, `**` any part."""
        if "*" not in pattern:
            return [pattern] if pattern in self.lines else []
        if pattern not in self.found:
            if len(self.found) >= MAX_FOUND:
                self.found.clear()
            is_meant = _matcher(pattern)
            self.found[pattern] = sorted(name for name in self.lines if is_meant(name))
        return self.found[pattern]

    @classmethod
    def read(cls, folder: Path) -> Wildcards:
        """The wildcards of a folder and those in it. Hidden files, links and other kinds of files are passed over.

        Raises:
            InvalidJob: (`bad_file`) there is no such folder, it is too large, a file in it cannot be read, or two of
                them give the same wildcard.
        """
        if not folder.is_dir():
            raise _bad(folder, "there is no such folder")
        found: dict[str, tuple[str, ...]] = {}
        size = lines_in_all = 0
        for path in _files(folder):
            data = _bytes(path, folder)
            size += len(data)
            if size > MAX_BYTES:
                raise _bad(folder, f"more than {MAX_BYTES // 2**20} MiB of wildcards")
            for name, lines in _wildcards(path, data, folder):
                if name in found:
                    raise _bad(path.relative_to(folder), f"the wildcard {name!r} is given by another file, too")
                found[name] = lines
                lines_in_all += len(lines)
                if lines_in_all > MAX_LINES:
                    raise _bad(folder, f"more than {MAX_LINES:,} lines")
        return cls(found)


def _matcher(pattern: str) -> Callable[[str], bool]:
    """What says whether a pattern means a name; `**/` is any folders, or none.

    No expression: those of `re` take exponential time for stars, and names and patterns are strangers'. This goes once
    through the name, and knows at each sign how many signs of the pattern may have been read, as bits of a number.
    """
    signs: dict[str, int] = {}
    stars = {"*": 0, "**": 0, "**/": 0}
    end = 0
    for part in re.split(r"(\*\*/?|\*)", pattern):
        if part in stars:
            stars[part] |= 1 << end
        else:
            for sign in part:
                signs[sign] = signs.get(sign, 0) | 1 << end
                end += 1
    within, anywhere, folders = stars["*"] | stars["**"], stars["**"], stars["**/"]

    def is_meant(name: str) -> bool:
        read, below = 1, 0
        for sign in name:
            below |= read & folders
            slash = sign == "/"
            read = (read & signs.get(sign, 0)) << 1 | read & (anywhere if slash else within) | (below if slash else 0)
            if not read and not below:
                return False
        return bool(read >> end & 1)

    return is_meant


def _bad(path: Path, why: str) -> InvalidJob:
    return InvalidJob(f"wildcards: {path}: {why}", code="bad_file")


def _files(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and not path.is_symlink() and path.is_file():
            found.append(path)
        if len(found) > MAX_FILES:
            raise _bad(folder, f"more than {MAX_FILES:,} files")
    return sorted(found)


def _bytes(path: Path, folder: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _bad(path.relative_to(folder), f"it cannot be opened: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _bad(path.relative_to(folder), f"more than {MAX_FILE_BYTES // 2**20} MiB")
    return data


def _wildcards(path: Path, data: bytes, folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The wildcards of one file."""
    own = path.relative_to(folder)
    try:
        text = data.decode("utf-8-sig")
        if path.suffix.lower() == ".txt":
            found: Any = [line for line in re.split(r"\r\n|\r|\n", text) if not line.lstrip().startswith("#")]
        elif path.suffix.lower() == ".json":
            found = json.loads(text, object_pairs_hook=_object)
        else:
            found = _yaml(text)
        if isinstance(found, list):
            yield own.with_suffix("").as_posix(), _lines(found)
        elif isinstance(found, dict):
            yield from _named(found, (*own.parent.parts,))
        elif found:
            raise ValueError("a list of lines, or a mapping of such lists, is needed")
    except UnicodeDecodeError:
        raise _bad(own, "this is not UTF-8: save it so") from None
    except RecursionError:
        raise _bad(own, f"more than {MAX_DEPTH} mappings within each other") from None
    except (ValueError, yaml.YAMLError) as error:
        raise _bad(own, f"it cannot be read: {error}") from None


def _named(found: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, value in found.items():
        name = (*above, str(key))
        if isinstance(value, dict):
            if len(name) > MAX_DEPTH:
                raise RecursionError
            yield from _named(value, name)
        elif value:
            yield "/".join(name), _lines(value if isinstance(value, list) else [value])


def _lines(found: list[Any]) -> tuple[str, ...]:
    """The lines of a list, each once; `{text: red, weight: 0.5}` is a line, too."""
    lines = []
    for value in found:
        text = value
        if isinstance(value, dict):
            text = value.get("text", value.get("content"))
            if isinstance(text, str) and "weight" in value:
                text = f"{value['weight']}::{text}"
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ValueError(f"{str(value)[:50]!r} is no line; quote it where it is meant as text")
        if line := str(text).strip():
            lines.append(line)
    return tuple(dict.fromkeys(lines))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("a key is no text")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _yaml(text: str) -> Any:
    """YAML without aliases, whose scalars are all texts: `no` is a word, `1990` too."""
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    depth = 0
    # Looked through first: a loader is lost in what is too deep, and aliases make much of little.
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not taken: write the lines out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError
    node = yaml.compose(text, loader)
    return None if node is None else _value(node)


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _object([(_value(key), _value(value)) for key, value in node.value])
    if isinstance(node, yaml.SequenceNode):
        return [_value(value) for value in node.value]
    return node.value
