"""What may a person write as a chain?

Prompts, a seed, stages: a mapping, or a JSON or YAML file. `parse_chain` checks every field of it and says all that is
wrong at once; whether the stages fit each other is for `farm.job` to say.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, SerializeAsAny, ValidationError

from farm.errors import FieldError, InvalidJob
from farm.image import Fit
from farm.stage import ALIASES, MAX_SEED, Prompt, Stage, kinds

MAX_STAGES = 8


class Chain(BaseModel):
    """The ordered stages of a job and what they inherit. Build it with `parse_chain`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: Prompt = Field("", description="what to draw; a stage may have its own")
    negative_prompt: Prompt = Field("", description="what to keep out; a stage may have its own")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="default: drawn at random and recorded")
    fit: Fit = Field("cover", description="how an input image meets a size of another aspect: crop, pad or stretch")
    exact: bool = Field(False, description="run alone in every batch, so that the bits do not depend on companions")
    reuse: bool = Field(True, description="take committed outputs of equal recipes instead of running them again")
    stages: tuple[SerializeAsAny[InstanceOf[Stage]], ...] = Field(min_length=1, max_length=MAX_STAGES)


def read_chain_file(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML chain file, unchecked.

    Raises:
        InvalidJob: (`bad_file`) it cannot be read, is not one mapping, or repeats a key.
    """
    try:
        text = path.read_text("utf-8-sig")
        if len(text) > 1 << 20:
            raise ValueError("larger than 1 MiB")
        if path.suffix in {".yaml", ".yml"}:
            found = yaml.load(text, _OneKeyLoader)  # noqa: S506 — a SafeLoader
        else:
            found = json.loads(text, object_pairs_hook=_one_key, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidJob(f"{path}: not a chain file: {str(error) or type(error).__name__}", code="bad_file") from None
    if not isinstance(found, dict):
        raise InvalidJob(f"{path}: a chain file is one mapping with `stages`", code="bad_file")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number that JSON has")


def _one_key(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


class _OneKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses repeated keys, where YAML's own takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            raise ValueError("a key is given twice")
        return found


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
        where, _, rest = (f"0.{key}" if key in {"width", "height"} else key).partition(".")
        picked, name = (changed[int(where) : int(where) + 1], rest) if where.isdigit() and rest else (changed, key)
        name = ALIASES.get(name, name)
        fitting = [
            stage for stage in picked if (cls := kinds().get(str(stage.get("kind")))) and name in cls.model_fields
        ]
        if not fitting:
            raise InvalidJob(errors=(FieldError(key, "no stage of this chain has this parameter", "unknown_field"),))
        for stage in fitting:
            for alias in [alias for alias, field in ALIASES.items() if field == name]:
                stage.pop(alias, None)
            stage[name] = value
    return changed


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


def _field_errors(error: ValidationError, prefix: str, cls: type[BaseModel]) -> list[FieldError]:
    """pydantic's findings in the farm's words; the input itself is not repeated."""
    found = []
    for item in error.errors(include_url=False, include_input=True):
        name = str(item["loc"][0]) if item["loc"] else ""
        loc, msg, code = (prefix + name).rstrip("."), item["msg"], "invalid_field"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, [*cls.model_fields, *ALIASES], 1)
            msg, code = f"no such field{f'; did you mean {near[0]}?' if near else ''}", "unknown_field"
        elif item["type"] == "multiple_of" and name in {"width", "height"}:
            low = int(item["input"]) // 8 * 8
            msg, code = f"a multiple of 8, such as {max(low, 8)} or {low + 8}", "bad_size"
        elif name in {"width", "height"}:
            code = "bad_size"
        elif item["type"] == "string_pattern_mismatch":
            msg = "no control characters, but tab and newline"
        elif name == "scheduler" and item["type"] == "literal_error":
            code = "unknown_scheduler"
        elif item["type"] == "value_error":
            msg = str(item["ctx"]["error"])
        found.append(FieldError(loc, msg, code))
    return found
