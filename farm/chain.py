"""What may a person write as a chain?

Prompts, a seed, stages: a mapping, or a JSON or YAML file. `parse_chain` checks every field of it and says all that is
wrong at once; whether the stages fit each other is for `farm.plan` to say.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PrivateAttr, SerializeAsAny, ValidationError

from farm.errors import FieldError, InvalidJob
from farm.image import Fit
from farm.sampler import SAMPLERS
from farm.stage import ALIASES, MAX_SEED, Prompt, Stage, kinds

Keep = Literal["none", "preview", "image"]
MAX_STAGES = 8
MAX_FILE_BYTES = 1 << 20
"""Largest chain file; eight stages with the longest prompts take about 200 KiB."""
MAX_NODES, MAX_DEPTH = 4000, 32
"""How many keys and values a YAML file holds at most, and how deep: more costs seconds, and no chain has them."""
MAX_TOLD = 50
"""Of so many wrong fields of one mapping it is said what is wrong."""
_FILE_HINT = "a chain file is JSON or YAML in UTF-8; the README shows one under Chains"


class Chain(BaseModel):
    """The ordered stages of a job and what they inherit. Build it with `parse_chain`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: Prompt = Field("", description="what to draw; a stage may have its own")
    negative_prompt: Prompt = Field("", description="what to keep out; a stage may have its own")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="default: drawn at random and recorded")
    fit: Fit = Field("cover", description="how an input image meets a size of another aspect: crop, pad or stretch")
    exact: bool = Field(False, description="run alone in every batch, so that the bits do not depend on companions")
    reuse: bool = Field(True, description="take committed outputs of equal recipes instead of running them again")
    keep: Keep = Field(
        "none", description="of each stage before the last: its picture, a small preview of it (WebP), or nothing"
    )
    stages: tuple[SerializeAsAny[InstanceOf[Stage]], ...] = Field(min_length=1, max_length=MAX_STAGES)
    _given_files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    @property
    def given_files(self) -> dict[str, bytes]:
        """Images that stages name and that were given as bytes; no part of what the chain is."""
        return self._given_files


def read_chain_file(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML chain file, unchecked.

    Raises:
        InvalidJob: (`bad_file`) it cannot be read, is not one mapping, or repeats a key.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError("larger than 1 MiB")
        text = data.decode("utf-8-sig")
        if path.suffix in {".yaml", ".yml"}:
            found = yaml.load(text, _OneKeyLoader)  # noqa: S506 — a SafeLoader
        else:
            found = json.loads(text, object_pairs_hook=_one_key, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = str(error).partition("; use sys.")[0]  # of a number too long Python tells how to allow it
        raise InvalidJob(f"{path}: not a chain file: {why}", code="bad_file", hint=_FILE_HINT) from None
    if not isinstance(found, dict):
        raise InvalidJob(f"{path}: a chain file is one mapping with `stages`", code="bad_file", hint=_FILE_HINT)
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number that JSON has")


def _one_key(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


class _OneKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses repeated keys, where YAML's own takes the last, and what is too deep or too much."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._nodes > MAX_NODES or self._depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_NODES} entries, or more than {MAX_DEPTH} within each other")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # What `<<` brings in may be given again.
        own = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if any(own.count(key) > 1 for key in own):
            raise ValueError("a key is given twice")
        return super().construct_mapping(node, deep)


def override(stages: Sequence[Any], changes: Mapping[str, Any]) -> list[Any]:
    """The stages with parameters changed: `name` in every stage that has it, `1.name` in stage 1 alone (from 0).

    `width` and `height` are the first stage's: later ones take what they are given.

    Raises:
        InvalidJob: (`unknown_field`) no stage of the chain has the parameter.
    """
    if not all(isinstance(stage, Mapping) for stage in stages):
        return list(stages)  # `parse_chain` names what is wrong
    changed = [dict(stage) for stage in stages]
    for key, value in changes.items():
        places = places_of(stages, key)
        if not places:
            raise InvalidJob(errors=(FieldError(key, "no stage of this chain has this parameter", "unknown_field"),))
        for index, name in places:
            for alias in [alias for alias, field in ALIASES.items() if field == name]:
                changed[index].pop(alias, None)
            changed[index][name] = value
    return changed


def places_of(stages: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, str]]:
    """The stages, from 0, that `override` changes for a name, each with what its field is called."""
    where, _, rest = (f"0.{key}" if key in {"width", "height"} else key).partition(".")
    name = rest if (one := where.isdigit() and bool(rest)) else key
    name = ALIASES.get(name, name)
    return [
        (index, name)
        for index, stage in enumerate(stages)
        if (not one or index == int(where))
        and (cls := kinds().get(str(stage.get("kind")))) is not None
        and name in cls.model_fields
    ]


def parse_chain(data: Mapping[str, Any]) -> Chain:
    """The chain that `data` describes, every field checked.

    Raises:
        InvalidJob: names each wrong field with its path (`stages.1.strength`) and what would be right.
    """
    errors: list[FieldError] = []
    stages: list[Stage] = []
    raw = data.get("stages")
    if not isinstance(raw, list | tuple):
        raise InvalidJob(errors=(FieldError("stages", "a list of 1 to 8 stages, each with its `kind`", "bad_length"),))
    if not 1 <= len(raw) <= MAX_STAGES:
        raise InvalidJob(errors=(FieldError("stages", f"1 to {MAX_STAGES} stages, not {len(raw)}", "bad_length"),))
    for index, item in enumerate(raw):
        kind = item.get("kind") if isinstance(item, Mapping) else None
        cls = kinds().get(kind) if isinstance(kind, str) else None
        if cls is None:
            what = (
                "not an installed kind" if kind else "missing" if isinstance(item, Mapping) else "a stage is a mapping"
            )
            msg = f"{what}; choose one of {', '.join(kinds())}"
            errors.append(FieldError(f"stages.{index}.kind", msg, "unknown_kind"))
            continue
        try:
            stage = cls.model_validate(dict(item))
        except ValidationError as error:
            errors += _field_errors(error, f"stages.{index}.", cls)
            continue
        errors += [FieldError(f"stages.{index}.{found.loc}", found.msg, found.code) for found in stage.check()]
        stages.append(stage)
    try:
        # Where a stage is wrong, any installed one stands in, so that the other fields are still checked.
        chain = Chain.model_validate({**data, "stages": tuple(stages) or (Stage(kind=""),)})
    except ValidationError as error:
        errors += _field_errors(error, "", Chain)
    if errors:
        raise InvalidJob(errors=tuple(errors))
    return chain


def value_errors(stages: Sequence[Mapping[str, Any]], name: str, value: Any) -> list[FieldError]:
    """What is wrong with a parameter, named as for `override`, whatever the others of these stages are."""
    if name in Chain.model_fields:
        try:
            parse_chain({"stages": stages, name: value})
        except InvalidJob as error:
            return [one for one in error.errors if one.loc == name]
        return []
    found: list[FieldError] = []
    for bare in override([{"kind": stage["kind"]} for stage in stages], {name: value}):
        cls = kinds()[bare["kind"]]
        try:
            cls.model_validate(bare)
        except ValidationError as error:
            told = _field_errors(error, "", cls)
            found += [one for one in told if one not in found and one.loc.partition(".")[0] in bare.keys() - {"kind"}]
    return found


def _words(cls: type[BaseModel]) -> list[str]:
    """What the fields of `cls` may be called."""
    return [*cls.model_fields, *(alias for alias, name in ALIASES.items() if name in cls.model_fields)]


def _field_errors(error: ValidationError, prefix: str, cls: type[BaseModel]) -> list[FieldError]:
    """pydantic's findings in the farm's words; the input itself is not repeated."""
    found = []
    for item in error.errors(include_url=False, include_input=True)[:MAX_TOLD]:
        name = ".".join(map(str, item["loc"]))[:100]
        loc, msg, code = (prefix + name).rstrip(".") or "chain", item["msg"], "invalid_field"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, _words(cls), 1) if "." not in name else None
            msg, code = f"no such field{f'; did you mean {near[0]}?' if near else ''}", "unknown_field"
        elif item["type"] == "multiple_of" and name in {"width", "height"}:
            low = int(item["input"]) // 8 * 8
            msg, code = f"a multiple of 8, such as {_within(cls, name, low, low + 8)}", "bad_size"
        elif name in {"width", "height"}:
            code = "bad_size"
        elif item["type"] == "string_pattern_mismatch":
            msg = "no control characters, but tab and newline"
        elif name == "scheduler" and item["type"] == "literal_error":
            msg, code = f"{msg}; or A1111's {', '.join(SAMPLERS)}", "unknown_scheduler"
        elif item["type"] == "value_error":
            msg = str(item["ctx"]["error"])
        found.append(FieldError(loc, msg, code))
    return found


def _within(cls: type[BaseModel], name: str, *sides: int) -> str:
    """Those of `sides` that the field takes, or its limit where they are beyond it: `504 or 512`."""
    limits = [(getattr(rule, "ge", None), getattr(rule, "le", None)) for rule in cls.model_fields[name].metadata]
    low = max((ge for ge, _ in limits if ge is not None), default=8)
    high = min((le for _, le in limits if le is not None), default=max(sides))
    return " or ".join(dict.fromkeys(str(min(max(side, low), high)) for side in sides))
