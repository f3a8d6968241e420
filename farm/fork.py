"""How does a job's chain go on otherwise, from a stage on, without running again what stands before it?

The stages before are those of the job itself: the same recipes, so the same executions. What they have committed is
taken as it is, whatever became of the job; what is gone is made again, as it would be for the job. Executions are named
as in the job's record, so also those of a job that reuses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.chain import Chain, override, parse_chain, read_chain_file
from farm.errors import FieldError, InvalidJob
from farm.job import InputImage, Job, canonical, recipe_key
from farm.records import JobRecord

StagesSource = str | Path | Sequence[Mapping[str, Any]]
"""Stages, or the path of a chain file that has nothing else."""
PUBLISHES = "p:"
"""How the ledger names the execution that only publishes what another job has made. Source: lua/shared/jobs.lua."""


def forked_chain(
    record: JobRecord, from_stage: int, stages: Sequence[Mapping[str, Any]] | None, parameters: Mapping[str, Any]
) -> tuple[Chain, InputImage | None]:
    """The chain of the job of `record` with other stages or parameters from stage `from_stage` on; its input image.

    `stages` stand in place of those that were there. `parameters` are set over them: NAME in each that has it, I.NAME
    in stage I, counted from 0 over the whole chain.

    Raises:
        InvalidJob: there is no such stage, or a parameter is of a stage before it; names each wrong field.
    """
    spec = json.loads(record.spec)
    written = spec["chain"]["stages"]
    if stages is not None and not stages:
        raise InvalidJob(
            errors=(FieldError("stages", "one stage or more; leave it out to keep the job's", "bad_length"),)
        )
    last = len(written) if stages else len(written) - 1
    if not 1 <= from_stage <= last:
        more = f"; {len(written)} with `stages` that follow the last one" if not stages else ""
        told = f"from 1 to {last}{more}" if last else f"{len(written)}, with `stages` that follow the only one"
        raise InvalidJob(errors=(FieldError("from_stage", f"a stage of the job, {told}; stage 0 stays as it is"),))
    tail: list[Any] = [dict(one) for one in (written[from_stage:] if stages is None else stages)]
    for name, value in parameters.items():
        tail = _set(tail, name, value, from_stage)
    chain = parse_chain({**spec["chain"], "stages": [*written[:from_stage], *tail]})
    return chain, spec["image"] and InputImage.model_validate(spec["image"])


def read_stages(source: StagesSource) -> tuple[list[Any], Path]:
    """The stages of a list or a chain file, and the folder in which the files that they name are.

    Raises:
        InvalidJob: it is none, or says more than stages, which would change those before.
    """
    if not isinstance(source, str | Path):
        return list(source), Path()
    found = read_chain_file(Path(source))
    if extra := sorted({*found} - {"stages"}):
        told = f"{', '.join(extra)} would change the stages before; write it into the stages"
        raise InvalidJob(errors=(FieldError("stages", told),))
    if not isinstance(found.get("stages"), list):
        raise InvalidJob(errors=(FieldError("stages", "a list of stages, each with its `kind`", "bad_length"),))
    return found["stages"], Path(source).parent


def _set(tail: list[Any], name: str, value: Any, from_stage: int) -> list[Any]:
    where, _, rest = name.partition(".")
    if where.isdigit() and rest:
        if int(where) < from_stage:
            told = f"stage {where} stays as it is; fork from an earlier stage to change it"
            raise InvalidJob(errors=(FieldError(name, told),))
        own = f"{int(where) - from_stage}.{rest}"
    else:
        own = name
    try:
        return override(tail, {own: value})
    except InvalidJob as error:
        told = "no stage from from_stage on has this parameter"
        raise InvalidJob(errors=(FieldError(name, told, error.code),)) from None


def kept_executions(record: JobRecord, job: Job, from_stage: int) -> tuple[str, ...]:
    """The executions of the stages before `from_stage`, which the fork `job` takes from the job of `record`.

    Raises:
        InvalidJob: one of them would not be as it was: what it hands on, its checkpoint or the safety policy differ.
    """
    spec = json.loads(record.spec)
    kept = []
    for index in range(from_stage):
        before, now = spec["recipes"][index], job.recipes[index]
        if recipe_key(before) != recipe_key(now):
            raise InvalidJob(errors=(_differs(index, before, now),))
        exec_ = record.stages[index].exec
        if exec_.startswith(PUBLISHES):
            key = recipe_key(before)
            exec_ = key if spec["chain"].get("reuse", True) else f"{key}.{record.job}"
        kept.append(exec_)
    return tuple(kept)


def _differs(index: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> FieldError:
    """Why stage `index` would have to run again."""
    if before["emits"] != now["emits"]:
        told = (
            f"stage {index} handed on {_article(before['emits'])} and would have to hand on {_article(now['emits'])}: "
            f"choose a stage that takes {_article(before['emits'])}, or fork from stage {index}"
        )
        return FieldError(f"stages.{index + 1}", told, "medium_mismatch")
    names = ", ".join(
        sorted(name for name in {*before, *now} if canonical(before.get(name)) != canonical(now.get(name)))
    )
    told = f"it would not be as it was ({names}); submit the chain anew"
    return FieldError(f"stages.{index}", told)


def _article(medium: str) -> str:
    return "an image" if medium == "image" else medium
