"""Which checkpoints may a stage load, what are they, and are their files the recorded ones?

The catalog is an allowlist: the farm's own `catalog.toml`, then the user's file (`FARM_CATALOG`, TOML or YAML) over it.
An entry names where the files come from. `pull` (in `farm.models`) fetches or builds them and records the revision and
each file's SHA-256 in a lock file beside them; a submit needs that lock (the hash is part of the recipe), and a worker
checks the files against it before it loads them. No hash and no revision is ever written by hand.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from farm.errors import FieldError, InvalidJob
from farm.settings import Settings
from farm.stage import Stage

LOCK = "farm.lock.json"
NAME = r"^[a-z0-9][a-z0-9.-]{0,62}$"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Space(_Entry):
    """A family of latents: which VAE they belong to, and how they are laid out. The scale is always applied."""

    name: str = Field(pattern=NAME)
    channels: int = Field(ge=1, le=128, description="channels of one latent cell")
    factor: int = Field(ge=1, le=64, description="pixels per latent cell and side")
    preview: list[list[float]] | None = Field(
        None, description="[channels + 1, 3]: a cell's RGB in -1…1 is its channels times the rows, plus the last row"
    )
    description: str = ""

    @model_validator(mode="after")
    def _whole_preview(self) -> Space:
        if self.preview and [len(row) for row in self.preview] != [3] * (self.channels + 1):
            raise ValueError(f"preview has {self.channels + 1} rows of 3 numbers: one per channel, and an offset")
        return self


class Checkpoint(_Entry):
    """Named base weights. Exactly one of `repo`, `folder`, `file` and `build` says where they come from."""

    name: str = Field(pattern=NAME)
    kinds: list[str] = Field(min_length=1, description="stage kinds that load it")
    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="repository on the hub")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="pinned commit; else the first pull records one"
    )
    folder: str | None = Field(None, description="local folder in the hub's layout")
    file: str | None = Field(None, description="single safetensors file; needs `config`")
    config: str | None = Field(None, description="local folder with the configuration of a single file")
    build: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*$", description="module that builds it locally")
    variant: Literal["fp16"] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    space: str = Field(description="latent space it works in")
    native: int = Field(ge=8, multiple_of=8, description="side it was trained at, pixels")
    licence: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_source(self) -> Checkpoint:
        if sum(source is not None for source in (self.repo, self.folder, self.file, self.build)) != 1:
            raise ValueError("exactly one of repo, folder, file and build says where the files come from")
        if (self.file is None) != (self.config is None):
            raise ValueError(
                "file and config go together: a single file without a local config would go to the network"
            )
        return self


class Lock(_Entry):
    """What a pull recorded: the revision (None for local files) and each file's SHA-256 by relative path."""

    revision: str | None = None
    files: dict[str, str]

    @cached_property
    def manifest(self) -> str:
        """SHA-256 (hex) of the recorded revision and files: the checkpoint's part of a recipe."""
        text = json.dumps({"files": self.files, "revision": self.revision}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Preset(_Entry):
    """A named chain: its stages as a chain file would write them."""

    name: str = Field(pattern=NAME)
    description: str = ""
    stages: list[dict[str, Any]] = Field(min_length=1, max_length=8)


class Catalog(_Entry):
    """The allowlist. Build it with `Catalog.load(settings)`."""

    models_dir: Path
    spaces: dict[str, Space]
    checkpoints: dict[str, Checkpoint]
    presets: dict[str, Preset]
    defaults: dict[str, str]

    @classmethod
    def load(cls, settings: Settings) -> Catalog:
        """The farm's own catalog with the user's file over it, table by table and name by name.

        Raises:
            InvalidJob: (`bad_file`) the user's file cannot be read or breaks a rule; names the entry and the rule.
        """
        tables = tomllib.loads(files("farm").joinpath("catalog.toml").read_text("utf-8"))
        if settings.catalog is not None:
            for table, entries in _read(settings.catalog).items():
                if table not in tables or not isinstance(entries, dict):
                    raise InvalidJob(f"{settings.catalog}: {table} is not one of {', '.join(tables)}", code="bad_file")
                tables[table] = {**tables[table], **entries}
        for table in ("spaces", "checkpoints", "presets"):
            tables[table] = {
                name: {"name": name, **entry} if isinstance(entry, dict) else entry
                for name, entry in tables[table].items()
            }
        try:
            catalog = cls(models_dir=settings.models_dir, **tables)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidJob(f"{settings.catalog}: {where}: {first['msg']}", code="bad_file") from None
        for entry in catalog.checkpoints.values():
            if entry.space not in catalog.spaces:
                raise InvalidJob(
                    f"{settings.catalog}: checkpoints.{entry.name}.space: no [spaces.{entry.space}]", code="bad_file"
                )
        return catalog

    def checkpoint(self, stage: Stage, loc: str) -> Checkpoint:
        """The checkpoint that `stage` runs with: its own, or the default of its kind.

        Raises:
            InvalidJob: (`unknown_checkpoint`, `wrong_checkpoint`) names the field at `loc` and what it may hold.
        """
        fitting = sorted(entry.name for entry in self.checkpoints.values() if stage.kind in entry.kinds)
        name = stage.checkpoint or self.defaults.get(stage.kind)
        where = f"{loc}.checkpoint"
        choose = f"choose one of {', '.join(fitting)}" if fitting else f"the catalog has none for {stage.kind}"
        if name is None:
            raise InvalidJob(
                errors=(FieldError(where, f"{stage.kind} has no default checkpoint; {choose}", "unknown_checkpoint"),)
            )
        if name not in self.checkpoints:
            raise InvalidJob(
                errors=(FieldError(where, f"{name!r} is not in the catalog; {choose}", "unknown_checkpoint"),)
            )
        if name not in fitting:
            raise InvalidJob(
                errors=(FieldError(where, f"{name} is not made for {stage.kind}; {choose}", "wrong_checkpoint"),)
            )
        return self.checkpoints[name]

    def space(self, checkpoint: Checkpoint) -> Space:
        """The latent space of `checkpoint`."""
        return self.spaces[checkpoint.space]

    def preset(self, name: str) -> Preset:
        """The chain preset `name`.

        Raises:
            InvalidJob: (`unknown_preset`) lists the names there are.
        """
        if name not in self.presets:
            known = ", ".join(sorted(self.presets))
            raise InvalidJob(
                errors=(FieldError("chain", f"no preset {name!r}; choose one of {known}", "unknown_preset"),)
            )
        return self.presets[name]

    def path(self, checkpoint: Checkpoint) -> Path:
        """Where the files of `checkpoint` lie: a folder in the hub's layout, or one safetensors file."""
        if checkpoint.file is not None:
            return Path(checkpoint.file).expanduser()
        if checkpoint.folder is not None:
            return Path(checkpoint.folder).expanduser()
        return self.models_dir / checkpoint.name

    def lock_path(self, checkpoint: Checkpoint) -> Path:
        """Where the lock of `checkpoint` lies: always in the models folder, whoever owns the files."""
        return self.models_dir / f"{checkpoint.name}.{LOCK}"

    def lock(self, checkpoint: Checkpoint) -> Lock:
        """What the pull of `checkpoint` recorded.

        Raises:
            InvalidJob: (`not_pulled`) there is no readable lock; says how to pull.
        """
        try:
            return Lock.model_validate_json(self.lock_path(checkpoint).read_bytes())
        except FileNotFoundError:
            reason = "has not been pulled"
        except (OSError, ValidationError):
            reason = f"has an unreadable lock at {self.lock_path(checkpoint)}"
        raise InvalidJob(
            f"the checkpoint {checkpoint.name} {reason}",
            code="not_pulled",
            hint=f"run `farm models pull {checkpoint.name}`",
        )


def _read(path: Path) -> dict[str, Any]:
    """The tables of a TOML or YAML file."""
    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidJob(f"{path} cannot be read as a catalog: {type(error).__name__}", code="bad_file") from None
    if not isinstance(found, dict):
        raise InvalidJob(f"{path}: a catalog is a table of tables", code="bad_file")
    return found
