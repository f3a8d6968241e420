"""How does the API describe itself?

As OpenAPI 3.1. What FastAPI knows of each route is kept; added are the stages, each kind with its own fields, the
problems that a call may end in, who may call, how calls follow from each other, and examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from farm.api.door import COOKIE
from farm.api.guard import MAX_HEAD_BYTES, MAX_HEADERS
from farm.api.problems import MEDIA_TYPE, Problem
from farm.api.views import BASE
from farm.chain import MAX_STAGES, Chain
from farm.job import MAX_DEADLINE_S
from farm.settings import Settings
from farm.stage import ALIASES, STORED, kinds

ABOUT = f"""A rendering farm for diffusion models: chains of stages, run durably by many workers.

Every answer has an `X-Request-ID`. Whatever the call, one with more than {MAX_HEADERS} headers or {MAX_HEAD_BYTES}
bytes of them is answered 431, and one with a body that is too large or packed 413 or 415, also where none is asked for.
"""
TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"
"""What every text of a body is: no control characters but tab and newline."""
_HERE = "#/components/schemas/"
_NAME_OR_CHAIN = [{"type": "string", "description": "a chain's name"}, {"$ref": _HERE + "Chain"}]
_SAID = {
    400: "The body is no JSON.", 401: "There is no token or session, or it does not hold.",
    403: "The token's scopes do not cover the call, or a page of elsewhere makes it.", 404: "There is no such object.",
    408: "The body did not come in time.", 409: "The object's state does not allow this.",
    413: "The body is too large.", 415: "A body of this type is not taken.",
    422: "A field or parameter is wrong; `errors` has it.",
    429: "Too many calls: again after Retry-After.", 500: "An error that nobody foresaw.",
    503: "A part of the farm does not answer, or the API is busy: again after Retry-After.",
}  # fmt: skip
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a token of `farm token create`"},
    "cookie": {
        "type": "apiKey", "in": "cookie", "name": COOKIE,
        "description": f"a session, as POST {BASE}/session begins it; over TLS the name begins with `__Host-`",
    },
    "csrf": {
        "type": "apiKey", "in": "header", "name": "X-CSRF-Token",
        "description": "beside the cookie where the call may change something: `csrf_token` of the session",
    },
}  # fmt: skip
_EXAMPLES: dict[str, dict[str, Any]] = {
    "one": {"summary": "One picture", "value": {"chain": "txt", "prompt": "a lemon", "seed": 7}},
    "run": {
        "summary": "Eight pictures: two prompts, two scales, two seeds each",
        "value": {
            "chain": "txt", "count": 2,
            "sweep": [{"prompt": ["a lemon", "a carrot"]}, {"0.guidance_scale": [3, 7]}],
        },
    },
    "chain": {
        "summary": "A chain of its own",
        "value": {
            "chain": {
                "prompt": "a lemon",
                "stages": [{"kind": "text2img", "num_inference_steps": 4}, {"kind": "img2img", "strength": 0.5}],
            },
            "lane": "bulk",
        },
    },
}  # fmt: skip


def describe(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The document."""
    found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template=_HERE + "{model}")
    schemas |= {**problem.pop("$defs", {}), "Problem": problem}
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own words for what is told as a problem here
        schemas.pop(name, None)
    schemas |= _stages() | {"Chain": _chain(), "Value": _value()}
    _refine(schemas["JobAsk"]["properties"], schemas["Chain"]["properties"], settings)
    chosen, other = schemas["CheckAsk"]["properties"], schemas["ForkAsk"]["properties"]
    chosen["chain"]["anyOf"] = schemas["SaveAsk"]["properties"]["chain"]["anyOf"] = _NAME_OR_CHAIN
    other["stages"]["anyOf"][0] |= {"minItems": 1, "maxItems": MAX_STAGES, "items": {"$ref": _HERE + "Stage"}}
    other["from_stage"]["maximum"] = MAX_STAGES - 1
    for ask in (schemas["JobAsk"]["properties"], other):
        ask["deadline_s"]["anyOf"][0]["maximum"] = MAX_DEADLINE_S
        ask["parameters"] |= _parameters()
    for name in ("PreviewAsk", "DatasetAsk"):
        _refine_rows(schemas[name]["properties"], schemas["Chain"]["properties"])
    for name in _taken(found):
        _bound(schemas[name])
    parts["securitySchemes"] = _SECURITY
    for path, calls in found["paths"].items():
        for method, call in calls.items():
            _finish(path, method, call)
    _link(found["paths"])
    return found


def _stages() -> dict[str, Any]:
    """The installed kinds, and `Stage`: one of them, told apart by `kind`."""
    refs, defs = models_json_schema([(cls, "validation") for cls in kinds().values()], ref_template=_HERE + "{model}")
    schemas: dict[str, Any] = defs["$defs"]
    named = {kind: refs[cls, "validation"]["$ref"] for kind, cls in kinds().items()}
    for ref in named.values():
        schema = schemas[ref.removeprefix(_HERE)]
        schema["required"] = ["kind", *schema.get("required", [])]
        fields = schema["properties"]
        for alias, name in ALIASES.items():
            if name in fields:
                fields[alias] = {**fields[name], "title": alias, "description": f"another word for {name}"}
                schema.setdefault("allOf", []).append({"not": {"required": [alias, name]}})
    stage = {
        "title": "Stage",
        "description": "One link of a chain.",
        "oneOf": [{"$ref": ref} for ref in named.values()],
        "discriminator": {"propertyName": "kind", "mapping": named},
    }
    return {**schemas, "Stage": stage}


def _chain() -> dict[str, Any]:
    """A chain as a request writes it out."""
    schema = Chain.model_json_schema()
    schema.pop("$defs")
    schema["description"] = "The ordered stages of a job and what they inherit."
    schema["properties"]["stages"] = {
        "type": "array", "minItems": 1, "maxItems": MAX_STAGES, "items": {"$ref": _HERE + "Stage"},
    }  # fmt: skip
    return schema


def _value() -> dict[str, Any]:
    """What a parameter may be given before its stage looks at it."""
    ref = {"$ref": _HERE + "Value"}
    inner = {"type": "object", "propertyNames": {"pattern": TEXT}, "additionalProperties": ref}
    simple = [{"type": name} for name in ("null", "boolean", "number", "string")]
    return {"title": "Value", "anyOf": [*simple, {"type": "array", "items": ref}, inner]}


def _refine(ask: dict[str, Any], chain: Mapping[str, Any], settings: Settings) -> None:
    """Says of a request's fields what is checked where the chain is made of them."""
    ask["chain"]["anyOf"] = _NAME_OR_CHAIN
    for name in ("prompt", "negative_prompt"):
        ask[name]["anyOf"][0] = {key: chain[name][key] for key in ("type", "maxLength", "pattern")}
    ask["image"]["anyOf"][0] = {"type": "string", "pattern": f"^{STORED}[0-9a-f]{{64}}$"}
    ask["count"]["maximum"] = settings.max_count
    _refine_axis(ask["sweep"]["items"], f"{_named()}|fit|exact|reuse|keep")


def _refine_rows(ask: dict[str, Any], chain: Mapping[str, Any]) -> None:
    """The same of what is asked of rows."""
    ask["chain"]["anyOf"] = _NAME_OR_CHAIN
    for name in ("prompt", "negative_prompt"):
        ask[name]["anyOf"][0] = {key: chain[name][key] for key in ("type", "maxLength", "pattern")}
    ask["parameters"] |= _parameters()
    ask["wildcards"]["propertyNames"] = {"pattern": TEXT}
    ask["columns"]["propertyNames"] = {"pattern": f"^({_named()}|image|fit|exact|reuse)$"}
    _refine_axis(ask["sweep"]["items"], f"{_named()}|fit|exact|reuse")


def _refine_axis(axis: dict[str, Any], named: str) -> None:
    values, _ = axis["additionalProperties"]["anyOf"]
    values["items"] = {"$ref": _HERE + "Value"}
    axis["propertyNames"] = {"pattern": f"^({named})$"}
    axis["minProperties"] = values["minItems"] = 1


def _parameters() -> dict[str, Any]:
    """What is taken over the parameters of stages."""
    return {"propertyNames": {"pattern": f"^{_named()}$"}, "additionalProperties": {"$ref": _HERE + "Value"}}


def _named() -> str:
    """How a parameter is named, as a pattern: of all stages that have it, or of one."""
    names = {name for kind in kinds().values() for name in kind.model_fields} - {"kind"}
    return rf"([0-{MAX_STAGES - 1}]\.)?({'|'.join(sorted(names | set(ALIASES)))})"


def _taken(found: Mapping[str, Any]) -> set[str]:
    """Names of the schemas that bodies are made of."""
    names = set[str]()
    waiting = [call.get("requestBody") for calls in found["paths"].values() for call in calls.values()]
    while waiting:
        for name in set(_refs(waiting.pop())) - names:
            names.add(name)
            waiting.append(found["components"]["schemas"][name])
    return names


def _refs(node: Any) -> Iterator[str]:
    """Names of the schemas that `node` points to."""
    for inner in _within(node):
        if str(inner.get("$ref", "")).startswith(_HERE):
            yield inner["$ref"].removeprefix(_HERE)


def _within(node: Any) -> Iterator[dict[str, Any]]:
    """The mappings in `node`, itself first."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _within(inner)


def _bound(schema: dict[str, Any]) -> None:
    """Says of texts in bodies what holds for all of them; where a stage takes a file, over HTTP it is an upload."""
    for node in _within(schema):
        if node.get("type") == "string" and not {"enum", "const", "pattern", "format"} & set(node):
            is_file = (node.get("minLength"), node.get("maxLength")) == (1, 4096)
            node["pattern"] = f"^{STORED}[0-9a-f]{{64}}$" if is_file else TEXT


def _finish(path: str, method: str, call: dict[str, Any]) -> None:
    """Completes one call."""
    call["summary"] = re.split(r"[,;:.]", call["description"])[0]
    known = bool(call.pop("security", None))
    writes = method not in ("get", "head")
    if known:
        call["security"] = [{"bearer": []}, {"cookie": [], "csrf": []} if writes else {"cookie": []}]
    for body in call.get("requestBody", {}).get("content", {}).values():
        if body["schema"].get("$ref") == _HERE + "JobAsk":
            body["examples"] = json.loads(json.dumps(_EXAMPLES))
    for given in call.get("parameters", []):
        if given["in"] == "header":
            given["name"] = given["name"].title().replace("-Id", "-ID")  # as their standards write them
    call["responses"].pop("422", None)
    for status in sorted(_statuses(path, call, known=known, writes=writes)):
        headers = {}
        if status in (429, 503):
            headers["Retry-After"] = {"schema": {"type": "integer", "minimum": 1}, "required": True}
        if status == 401:
            headers["WWW-Authenticate"] = {"schema": {"type": "string", "const": "Bearer"}, "required": True}
        call["responses"][str(status)] = {
            "description": _SAID[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": _HERE + "Problem"}}},
            **({"headers": headers} if headers else {}),
        }


def _statuses(path: str, call: Mapping[str, Any], *, known: bool, writes: bool) -> set[int]:
    """The problems in which a call may end."""
    if not path.startswith(BASE):
        return {503} if path == "/readyz" else set()
    found = {401, 403, 422, 429, 500, 503}
    types = set(call.get("requestBody", {}).get("content", {}))
    if types:
        found |= {408, 413, 415}
    if "application/json" in types:
        found.add(400)
    if "{" in path or call["operationId"] in ("session.end", "artifacts.archive"):
        found.add(404)
    changes = any(part in path for part in ("/jobs", "/runs", "/datasets", "/chains/{"))
    if known and writes and changes and not path.endswith(("/dry-run", "/preview", "/files")):
        found.add(409)
    return found


def _link(paths: dict[str, Any]) -> None:
    """Says which calls follow from a submit, with what it answers."""
    follow = {"job": "$response.body#/jobs/0/id"}
    links = {
        call["operationId"]: {"operationId": call["operationId"], "parameters": {name: follow[name]}}
        for name in follow
        for path, calls in paths.items()
        if f"{{{name}}}" in path
        for call in calls.values()
    }
    for status in ("200", "201"):
        paths[f"{BASE}/jobs"]["post"]["responses"][status]["links"] = links
