"""What does schemathesis look at beside its own checks? Loaded by it, in `test_schema`."""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from pydantic import ValidationError

from farm.stage import kinds

BEYOND = {
    "unknown_preset", "unknown_checkpoint", "unknown_scheduler", "wrong_checkpoint", "unknown_adapter", "wrong_adapter",
    "not_pulled", "bad_size", "too_large", "no_image", "unused_image", "space_mismatch", "medium_mismatch",
    "schedule_mismatch", "no_steps", "bad_image", "bad_file",
}  # fmt: skip
"""What a schema cannot say: whether stages fit each other, and what this farm has. Values of parameters and sweeps are
for the stages to check, and a cursor or a tag is for the farm to read."""


@schemathesis.check
def only_what_a_schema_cannot_say_is_refused(ctx: Any, response: Any, case: Any) -> None:
    """A body that the document allows is refused for how its fields go together, and for nothing else.

    This is what makes 422 an answer to data that the document allows (`positive_data_acceptance`).
    """
    if response.status_code != 422 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    body = case.body if isinstance(case.body, dict) else {}
    free = {"query.cursor", "query.tag", "tags", "add", "remove", "from_stage"}
    if body.get("parameters") or body.get("sweep"):
        free |= {
            "stages",
            "sweep",
            "prompt",
            "negative_prompt",
            "seed",
            "fit",
            "exact",
            "reuse",
            "keep",
            "count",
            "chain",
        }
        free |= {name for axis in (body.get("parameters"), *body.get("sweep", ())) for name in axis or ()}
    for one in json.loads(response.content)["errors"]:
        known = one["code"] in BEYOND or {one["loc"], one["loc"].split(".")[0]} & free
        assert known or _goes_across(body, one["loc"]), one


def _goes_across(body: dict[str, Any], loc: str) -> bool:
    """Whether the stage at `loc` breaks a rule between its fields only: each of them is possible by itself."""
    word, _, rest = loc.partition(".")
    stages = body["chain"]["stages"] if isinstance(body.get("chain"), dict) else body.get("stages")
    if word != "stages" or not stages:
        return False
    if not rest:  # how many there are with those that a fork keeps
        return "from_stage" in body and len(stages) > 1
    # A fork's stages follow on those that its job keeps.
    stage = stages[int(rest.partition(".")[0]) - int(body.get("from_stage", 0))]
    try:
        kinds()[stage["kind"]].model_validate(stage)
    except ValidationError as error:
        # An integer may be written 7.0 in JSON, which the API reads as 7; here it is read by Python.
        return all(found["type"] in ("value_error", "int_type") for found in error.errors())
    return True
