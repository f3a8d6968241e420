"""What is asked for, and which recipe makes it?

`make_job` adds to a chain's `plan` what only a submit knows (seed, input image, recorded hashes) and yields the
recipes. All rules of a job are checked by the two, once, without a GPU; what is refused here has left no trace.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from farm.catalog import Adapter, Catalog, Checkpoint
from farm.chain import Chain
from farm.errors import InvalidJob
from farm.plan import PlannedStage, plan, wrong
from farm.records import LANES, Lane
from farm.settings import Settings
from farm.stage import MAX_SEED, STORED, Size, Stage, kinds
from farm.tags import check_tags

MAX_DEADLINE_S = 31536000
"""Longest deadline of a job: a year."""
_STORED = re.compile(f"{STORED}[0-9a-f]{{64}}")
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_KEY = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")


class InputImage(BaseModel):
    """The image a chain starts from, as stored: already fitted, RGB, PNG."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int
    height: int


@dataclass(frozen=True)
class Forecast:
    """What a submit would make: how many jobs, the first one's seed (None: it would be drawn) and its stages' facts.

    `cost_s` are the device-seconds of all of them, `eta_s` the seconds until the last is done; None where not measured.
    """

    count: int
    seed: int | None
    stages: list[dict[str, Any]]
    cost_s: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class Job:
    """One chain, ready to submit: resolved, typed, with the recipe of each stage.

    `recipes[n]` is the recipe of stage n (see `recipe_key`), `texts[n]` its canonical JSON, `keys[n]` its key, `image`
    the blob it starts from. `written` is the chain with its seed as canonical JSON. `kept` names the executions of the
    first stages, where they are those of another job (see `farm.fork`). `collected`: no readable copy of its result is
    written, for its dataset takes it from the store. `tags`: see `farm.tags`; no recipe has them.
    """

    id: str
    chain: Chain
    seed: int
    image: InputImage | None
    plan: tuple[PlannedStage, ...]
    recipes: tuple[dict[str, Any], ...]
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    written: str
    idempotency_key: str
    lane: Lane = "interactive"
    priority: int = 50
    deadline_s: float | None = None
    run: str = ""
    kept: tuple[str, ...] = ()
    collected: bool = False
    tags: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """The job as its record holds it: the chain with its seed, the input image and every recipe, as JSON."""
        image = canonical(self.image and self.image.model_dump())
        # As `canonical` would write it: a run has thousands of jobs, and each recipe is written once.
        return f'{{"chain":{self.written},"image":{image},"recipes":[{",".join(self.texts)}],"v":1}}'

    def payload(self, index: int) -> str:
        """What a worker needs to run stage `index`: the recipes up to it and what to keep of it, no job id."""
        keep = self.chain.keep if index + 1 < len(self.recipes) else "none"
        kept = f'"keep":"{keep}",' if keep != "none" else ""
        return f'{{{kept}"recipes":[{",".join(self.texts[: index + 1])}],"v":1}}'

    def execution(self, index: int) -> str:
        """The execution of stage `index`: its recipe key, or one of its own where reuse is off, or another job's."""
        if index < len(self.kept):
            return self.kept[index]
        return self.keys[index] if self.chain.reuse else f"{self.keys[index]}.{self.id}"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return _encoder.encode(value)


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical recipe. It names the key of the stage before, so the key covers the chain."""
    return _key_of(canonical(recipe))


def _key_of(text: str) -> str:
    """The key of a recipe in canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def stage_seed(seed: int, position: int) -> int:
    """The seed of the stage at `position` (from 0): the job's own for the first, a 53-bit hash of both for others."""
    if position == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{position}".encode()).digest()[:8]) >> 11


def images_of(job: Job) -> set[str]:
    """Hashes of the stored images that a job names."""
    named = {value.removeprefix(STORED) for stage in job.chain.stages for value, _ in stage.uploads().values()}
    return named | ({job.image.sha256} if job.image else set())


def is_number(value: object, *types: type) -> bool:
    """Whether `value` is a number of one of `types`; True and False are none."""
    return isinstance(value, types) and not isinstance(value, bool)


def new_id() -> str:
    """A UUIDv7: sorts by time, and carries its own date. Source: RFC 9562 §5.7."""
    value = (
        (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    )
    return str(uuid.UUID(int=value))


def stage_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The stage of a recipe as a chain file would write it, everything resolved.

    Raises:
        InvalidJob: (`unknown_kind`) its kind is not installed here.
    """
    if recipe["kind"] not in kinds():
        raise InvalidJob(f"no stage of the kind {recipe['kind']} is installed here", code="unknown_kind")
    stage = {"kind": recipe["kind"], **recipe["parameters"]}
    stage |= {"checkpoint": recipe["checkpoint"]["name"], "seed": recipe["seed"]}
    if recipe["given"] is None:
        fields = kinds()[recipe["kind"]].model_fields
        stage |= {name: side for name, side in zip(("width", "height"), recipe["size"], strict=True) if name in fields}
    return stage


def make_job(chain: Chain, catalog: Catalog, settings: Settings, **options: Any) -> Job:
    """The one job of `chain`, ready to submit; `options` as `make_jobs` takes them. Raises InvalidJob."""
    return make_jobs(chain, catalog, settings, **options)[0]


def make_jobs(
    chain: Chain,
    catalog: Catalog,
    settings: Settings,
    *,
    image: InputImage | None = None,
    idempotency_key: str | None = None,
    lane: Lane = "interactive",
    priority: int = 50,
    deadline_s: float | None = None,
    run: str = "",
    count: int = 1,
    tags: Sequence[str] = (),
) -> list[Job]:
    """The jobs of `chain`, ready to submit: `count` of them, whose index is added to the seed and the idempotency key.

    What they share is worked out once: nothing but the seed tells one recipe of a stage from another's.

    Raises:
        InvalidJob: the chain does not fit (see `plan`), or a checkpoint's hashes are not recorded yet (`not_pulled`).
    """
    if not is_number(priority, int) or not 0 <= priority <= 100:
        raise wrong("priority", "a whole number from 0 to 100, higher runs first", "invalid_field")
    if lane not in LANES:
        raise wrong("lane", f"one of {', '.join(LANES)}", "invalid_field")
    if idempotency_key is not None and not (isinstance(idempotency_key, str) and _KEY.fullmatch(idempotency_key)):
        raise wrong("idempotency_key", "1 to 255 characters without control characters", "invalid_field")
    if deadline_s is not None and (not is_number(deadline_s, int, float) or not 0 < deadline_s <= MAX_DEADLINE_S):
        raise wrong("deadline_s", f"more than 0 and at most {MAX_DEADLINE_S} seconds (a year)", "invalid_field")
    words = check_tags(tags)
    key = new_id() if idempotency_key is None else idempotency_key
    mould = make_mould(chain, catalog, settings, image)
    # Drawn from the key, so that a submit sent again is the same job.
    first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) if chain.seed is None else chain.seed
    if first + count - 1 > MAX_SEED:
        raise wrong("seed", f"seed + count goes beyond {MAX_SEED}; start lower", "invalid_field")
    place: dict[str, Any] = {"lane": lane, "priority": priority, "deadline_s": deadline_s, "run": run, "tags": words}
    return [mould.job(seed=first + index, idempotency_key=f"{key}#{index}", **place) for index in range(count)]


@dataclass(frozen=True)
class Mould:
    """What the jobs of one chain and input image share, worked out and checked once; the rest is prompts and seeds.

    `shared` are the recipes of its stages without seed and `given`.
    """

    chain: Chain
    image: InputImage | None
    plan: tuple[PlannedStage, ...]
    shared: tuple[dict[str, Any], ...]
    written: dict[str, Any]

    def job(self, *, seed: int, idempotency_key: str, texts: Mapping[str, str] | None = None, **options: Any) -> Job:
        """One job, ready to submit; `texts` are the chain's prompts where it has others, `options` fields of Job.

        Nothing is checked here: `seed` and `texts` are what a chain may have.
        """
        chain = self.chain.model_copy(update=texts) if texts else self.chain
        recipes, written, keys = list[dict[str, Any]](), list[str](), list[str]()
        for item, recipe in zip(self.plan, self.shared, strict=True):
            given = keys[-1] if keys else self.image and {"image": self.image.sha256}
            if texts:
                recipe = {**recipe, "parameters": recipe["parameters"] | _prompts(item.stage, chain)}
            recipes.append({**recipe, "seed": _seed(item, seed), "given": given})
            written.append(canonical(recipes[-1]))
            keys.append(_key_of(written[-1]))
        return Job(
            id=new_id(), chain=chain, seed=seed, image=self.image, plan=self.plan, recipes=tuple(recipes),
            texts=tuple(written), keys=tuple(keys), written=canonical({**self.written, **(texts or {}), "seed": seed}),
            idempotency_key=idempotency_key, **options,
        )  # fmt: skip


def make_mould(chain: Chain, catalog: Catalog, settings: Settings, image: InputImage | None = None) -> Mould:
    """The mould of `chain`, every rule of it checked. Raises InvalidJob as `make_jobs`."""
    planned = plan(chain, catalog, settings, Size(image.width, image.height) if image else None)
    for item in planned:
        _check_encoders(item, catalog)
        for loc, (value, _) in item.stage.uploads().items():
            if not _STORED.fullmatch(value):
                raise wrong(
                    f"stages.{item.index}.{loc}", "sha256:HEX of a stored image; upload the file first", "bad_image"
                )
    shared = tuple(_recipe(item, chain, catalog, settings) for item in planned)
    return Mould(chain, image, planned, shared, chain.model_dump(mode="json", exclude_unset=True))


def _seed(item: PlannedStage, seed: int) -> int:
    """The seed of one stage of a job whose own is `seed`; 0 for a stage that draws nothing."""
    if not item.stage.draws:
        return 0
    return stage_seed(seed, item.index) if item.stage.seed is None else item.stage.seed


def _check_encoders(item: PlannedStage, catalog: Catalog) -> None:
    """Refuses image prompts of one stage that were made for different image encoders: there is one at a time."""
    seen: dict[str, str] = {}
    for loc, (name, mark) in item.stage.adapters().items():
        if mark.type == "ip_adapter":
            adapter = catalog.adapters[name]
            files = catalog.lock(adapter).files.items()
            inside = {path: sha256 for path, sha256 in files if path.startswith(f"{adapter.image_encoder}/")}
            seen.setdefault(",".join(sorted(inside.values())), name)
            if len(seen) > 1:
                first = next(iter(seen.values()))
                msg = f"{name} and {first} were made for different image encoders; use them in different stages"
                raise wrong(f"stages.{item.index}.{loc}", msg, "wrong_adapter")


def weights_of(catalog: Catalog, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a recipe says of its weights: which files, and how they are loaded.

    Raises:
        InvalidJob: (`not_pulled`) the files' hashes are not recorded yet.
    """
    switches = checkpoint.switches.model_dump(exclude_defaults=True, exclude={"offload", "slicing"})
    return {
        "name": checkpoint.name,
        "manifest": catalog.lock(checkpoint).manifest,
        "variant": checkpoint.variant,
        "dtype": checkpoint.dtype,
        "space": checkpoint.space,
        **({"switches": switches} if switches else {}),
    }


def _prompts(stage: Stage, chain: Chain) -> dict[str, str]:
    """The prompts that a stage goes by: its own, or the chain's; none where it draws nothing."""
    if not stage.draws:
        return {"prompt": "", "negative_prompt": ""}
    return {
        "prompt": chain.prompt if stage.prompt is None else stage.prompt,
        "negative_prompt": chain.negative_prompt if stage.negative_prompt is None else stage.negative_prompt,
    }


def adapter_of(catalog: Catalog, adapter: Adapter) -> dict[str, Any]:
    """What a recipe says of an adapter: which files, and how they are read.

    Raises:
        InvalidJob: (`not_pulled`) the files' hashes are not recorded yet.
    """
    told = adapter.model_dump(include={"variant", "weights", "token", "image_encoder"}, exclude_none=True)
    return {"manifest": catalog.lock(adapter).manifest, **told}


def safety_of(catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """What a recipe says of the farm's safety policy.

    Raises:
        InvalidJob: (`unknown_adapter`) FARM_SAFETY_CHECKER names no safety checker; (`not_pulled`) it is not here.
    """
    entry = catalog.adapters.get(settings.safety_checker)
    if entry is None or entry.type != "safety_checker":
        message = f"FARM_SAFETY_CHECKER: the catalog has no safety checker {settings.safety_checker}"
        raise InvalidJob(message, code="unknown_adapter")
    return {"policy": settings.safety, "name": entry.name, "checker": adapter_of(catalog, entry)}


def _recipe(item: PlannedStage, chain: Chain, catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """All that decides the output of one stage, but for its seed and what it is given; no job id, time or attempt."""
    stage = item.stage
    last = item.index + 1 == len(chain.stages)
    named = {name: adapter_of(catalog, catalog.adapters[name]) for name, _ in stage.adapters().values()}
    shared = {"kind", "checkpoint", "seed", "prompt", "negative_prompt", "width", "height"}
    return {
        "kind": stage.kind,
        "version": stage.version,
        "parameters": {
            **stage.model_dump(mode="json", exclude=shared),
            **_prompts(stage, chain),
        },
        "checkpoint": weights_of(catalog, item.checkpoint),
        **({"adapters": named} if named else {}),
        **({"safety": safety_of(catalog, settings)} if last and settings.safety != "off" else {}),
        "size": list(item.size),
        "emits": item.emits.value,
        "exact": chain.exact,
    }
