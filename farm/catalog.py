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
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from farm.errors import FieldError, InvalidJob
from farm.sampler import SchedulerOptions
from farm.settings import Settings
from farm.stage import AdapterType, Stage, kinds

LOCK = "farm.lock.json"
NAME = r"^[a-z0-9][a-z0-9.-]{0,62}$"
_SCHEDULE = {"scheduler", "scheduler_options", "timesteps"}
"""Fields that decide together which timesteps there are."""


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


Family = Literal["sd", "sd2", "sd2-depth", "sdxl", "sdxl-refiner", "esrgan-x2", "esrgan-x4"]
ADAPTED_AS: dict[str, str] = {"sd2-depth": "sd2"}
"""Families whose adapters are those of another one."""
_INSIDE = r"^[\w-]+([./][\w-]+)*"
"""A path that does not lead out of its folder."""


class Switches(_Entry):
    """How a checkpoint is run where memory or time are short. All but offload and slicing change pixels a little."""

    attention: Literal["sdpa", "eager", "sliced", "xformers"] = Field(
        "sdpa", description="torch's scaled dot product attention, plain arithmetic, in slices, or xFormers (CUDA)"
    )
    slicing: bool = Field(False, description="the VAE takes one picture of a batch after the other")
    offload: Literal["none", "model", "sequential"] = Field(
        "none", description="what is not at work lies in the host's memory: whole models, or layer by layer; CUDA only"
    )
    compile: bool = Field(False, description="torch.compile of the UNet: slow at first, then faster")
    fuse_qkv_projections: bool = Field(False, description="one matrix for query, key and value; not with LoRAs")
    channels_last: bool = Field(False, description="memory format of UNet and VAE")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.fuse_qkv_projections and self.attention != "sdpa":
            raise ValueError("fuse_qkv_projections brings its own attention; leave attention at sdpa")
        return self


class Recommended(_Entry):
    """Parameters that a checkpoint's stages have where a chain does not give them."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    noise_level: int | None = None
    scheduler: str | None = Field(None, description="diffusers' class, or a sampler's name in A1111")
    scheduler_options: SchedulerOptions | None = None


class Weights(_Entry):
    """Files of weights. Exactly one of `repo`, `folder`, `file` and `build` says where they come from."""

    name: str = Field(pattern=NAME)
    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="repository on the hub")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="pinned commit; else the first pull records one"
    )
    folder: str | None = Field(None, description="local folder in the hub's layout")
    file: str | None = Field(None, description="single safetensors file")
    build: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*$", description="module that builds it locally")
    variant: Literal["fp16"] | None = None
    family: Family = Field("sd", description="what it is made for: sd is Stable Diffusion 1.x, sd2 is 2.x")
    licence: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.repo, self.folder, self.file, self.build)) != 1:
            raise ValueError("exactly one of repo, folder, file and build says where the files come from")
        return self


class Checkpoint(Weights):
    """Named base weights."""

    kinds: list[str] = Field(min_length=1, description="stage kinds that load it")
    config: str | None = Field(None, description="local folder with the configuration of a single file")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    space: str = Field(description="latent space it works in")
    native: int = Field(ge=8, multiple_of=8, description="side it was trained at, pixels")
    prediction_type: Literal["sample"] | None = Field(
        None, description="sample, where the denoiser names the picture itself: not all schedulers know that"
    )
    switches: Switches = Switches()
    recommended: Recommended = Recommended()

    @model_validator(mode="after")
    def _configured(self) -> Self:
        if self.family.startswith("esrgan-"):
            if self.switches != Switches():
                raise ValueError("switches are for diffusion checkpoints")
            return self  # its tensors say what they are
        if self.family == "sd2-depth" and self.switches.fuse_qkv_projections:
            raise ValueError("the pipeline of sd2-depth cannot fuse_qkv_projections")
        if (self.file is None) != (self.config is None):
            raise ValueError(
                "file and config go together: a single file without a local config would go to the network"
            )
        return self

    def advise(self, stage: Stage) -> Stage:
        """`stage` with what is recommended for this checkpoint, in fields that it has and that were not given.

        A schedule is recommended as a whole: where a chain gives the scheduler, its options or timesteps, none of that
        is, and where it gives timesteps, no number of steps is either.
        """
        given = set(stage.model_fields_set)
        if given & _SCHEDULE:
            given |= _SCHEDULE
        if "timesteps" in given:
            given.add("num_inference_steps")
        told = {name: value for name, value in self._advice(type(stage)).items() if name not in given}
        return type(stage).model_validate({**stage.model_dump(exclude_unset=True), **told}) if told else stage

    def _advice(self, kind: type[Stage]) -> dict[str, Any]:
        """What is recommended for stages of `kind`."""
        told = self.recommended.model_dump(exclude_none=True)
        return {name: value for name, value in told.items() if name in kind.model_fields}

    def misadvised(self) -> str | None:
        """What is wrong with `recommended`: a name that no stage has, a value that one does not take."""
        loads = [kind for name, kind in kinds().items() if name in self.kinds]
        if len(loads) == len(self.kinds):
            for name in self.recommended.model_dump(exclude_none=True):
                if all(name not in kind.model_fields for kind in loads):
                    return f"{name}: not a parameter of {', '.join(self.kinds)}"
        for kind in loads:
            try:
                plain, told = kind.model_validate({}), kind.model_validate(self._advice(kind))
            except ValidationError as error:
                for item in error.errors():
                    if item["type"] != "missing":
                        return f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            else:
                # What a chain must give besides, such as a mask, is not its matter.
                before = [*plain.check(), *plain.fits(self.family)]
                for found in (*told.check(), *told.fits(self.family)):
                    if found not in before:
                        return f"{found.loc}: {found.msg}"
        return None


class Adapter(Weights):
    """Named weights beside a checkpoint's: LoRA, textual inversion, IP-Adapter, ControlNet, VAE, safety checker, …"""

    type: AdapterType
    weights: str | None = Field(
        None, pattern=_INSIDE + r"\.safetensors$", description="the file in a repo or folder that holds them"
    )
    token: str | None = Field(None, min_length=1, max_length=64, description="the word of a textual inversion")
    image_encoder: str | None = Field(
        None, pattern=_INSIDE + "$", description="folder of an IP-Adapter's image encoder, in the repo or folder"
    )
    space: str | None = Field(None, description="latent space of a vae")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        folder = self.type in ("controlnet", "vae", "safety_checker", "clip")
        if folder and self.file is not None:
            raise ValueError(f"a {self.type} is a folder: its config.json says what it is")
        if not folder and self.file is None and self.weights is None:
            raise ValueError(f"weights names the file that holds the {self.type}")
        if (self.type == "textual_inversion") != (self.token is not None):
            raise ValueError("token is the word of a textual_inversion, and each has one")
        if (self.type == "ip_adapter") != (self.image_encoder is not None) or (self.image_encoder and self.file):
            raise ValueError("image_encoder is the folder of an ip_adapter's encoder, in its repo or folder")
        if (self.type == "vae") != (self.space is not None):
            raise ValueError("space is the latent space of a vae, and each has one")
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
    adapters: dict[str, Adapter]
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
        for table in ("spaces", "checkpoints", "adapters", "presets"):
            tables[table] = {
                name: {"name": name, **entry} if isinstance(entry, dict) else entry
                for name, entry in tables[table].items()
            }
        place = settings.catalog or "catalog.toml"
        try:
            catalog = cls(models_dir=settings.models_dir, **tables)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidJob(f"{place}: {where}: {first['msg']}", code="bad_file") from None
        for entry in catalog.checkpoints.values():
            if entry.space not in catalog.spaces:
                raise InvalidJob(f"{place}: checkpoints.{entry.name}.space: no [spaces.{entry.space}]", code="bad_file")
            if entry.recommended != Recommended() and (wrong := entry.misadvised()):
                raise InvalidJob(f"{place}: checkpoints.{entry.name}.recommended.{wrong}", code="bad_file")
        for name in catalog.adapters:
            if name in catalog.checkpoints:
                raise InvalidJob(f"{place}: adapters.{name}: a checkpoint has this name", code="bad_file")
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

    def adapter(self, name: str, type_: AdapterType, checkpoint: Checkpoint, loc: str) -> Adapter:
        """The adapter `name`, which goes on `checkpoint`.

        Raises:
            InvalidJob: (`unknown_adapter`, `wrong_adapter`) names the field at `loc` and what it may hold.
        """
        family = ADAPTED_AS.get(checkpoint.family, checkpoint.family)
        fitting = sorted(
            each.name
            for each in self.adapters.values()
            if (each.type, each.family) == (type_, family) and each.space in (None, checkpoint.space)
        )
        choose = f"choose one of {', '.join(fitting)}" if fitting else f"the catalog has no {type_} for {family}"
        if name not in self.adapters:
            msg = f"{name!r} is not in the catalog; {choose}"
            raise InvalidJob(errors=(FieldError(loc, msg, "unknown_adapter"),))
        if name not in fitting:
            found = self.adapters[name]
            if found.space not in (None, checkpoint.space):
                msg = f"{name} is of the space {found.space}, {checkpoint.name} of {checkpoint.space}; {choose}"
            else:
                msg = f"{name} is a {found.type} for {found.family}, not a {type_} for {family}; {choose}"
            raise InvalidJob(errors=(FieldError(loc, msg, "wrong_adapter"),))
        return self.adapters[name]

    def judge(self, name: str, type_: AdapterType, loc: str) -> Adapter:
        """The adapter `name` of a type that goes on no checkpoint but looks at pictures.

        Raises:
            InvalidJob: (`unknown_adapter`, `wrong_adapter`) names the field at `loc` and what it may hold.
        """
        fitting = sorted(each.name for each in self.adapters.values() if each.type == type_)
        choose = f"choose one of {', '.join(fitting)}" if fitting else f"the catalog has no {type_}"
        if name not in self.adapters:
            msg = f"{name!r} is not in the catalog; {choose}"
            raise InvalidJob(errors=(FieldError(loc, msg, "unknown_adapter"),))
        if name not in fitting:
            msg = f"{name} is a {self.adapters[name].type}, not a {type_}; {choose}"
            raise InvalidJob(errors=(FieldError(loc, msg, "wrong_adapter"),))
        return self.adapters[name]

    def space(self, checkpoint: Checkpoint) -> Space:
        """The latent space of `checkpoint`."""
        return self.spaces[checkpoint.space]

    def path(self, checkpoint: Weights) -> Path:
        """Where the files of `checkpoint` lie: a folder in the hub's layout, or one safetensors file."""
        if checkpoint.file is not None:
            return Path(checkpoint.file).expanduser()
        if checkpoint.folder is not None:
            return Path(checkpoint.folder).expanduser()
        return self.models_dir / checkpoint.name

    def lock_path(self, checkpoint: Weights) -> Path:
        """Where the lock of `checkpoint` lies: always in the models folder, whoever owns the files."""
        return self.models_dir / f"{checkpoint.name}.{LOCK}"

    def lock(self, checkpoint: Weights) -> Lock:
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
            f"the {'adapter' if isinstance(checkpoint, Adapter) else 'checkpoint'} {checkpoint.name} {reason}",
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
