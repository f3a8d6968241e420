"""What do samples share that differ in nothing but prompts, seed and row?

Millions of samples have a handful of shapes: a chain with its changes, and an input image. Each shape is checked and
worked out once; a sample of it costs its own texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from farm.dataset.plans import Plan
from farm.dataset.spec import DatasetSpec, Sample, sample_id
from farm.errors import Conflict
from farm.inputs import Inputs
from farm.job import InputImage, Job, Mould, make_mould
from farm.whose import Owns, check_images

MOST = 2000
"""Shapes kept at a time: some 10 KB each. A file with a free number in every row has as many shapes as rows."""


class Moulds:
    """The shapes of a dataset's samples. Any call may raise InvalidJob, for a shape that is not possible."""

    def __init__(
        self, farm: Inputs, spec: DatasetSpec, *, owns: Owns | None = None, store: bool = True, plan: Plan | None = None
    ) -> None:
        """`owns`: which stored images may be named, where no files may.

        Without `store` nothing is stored, and somebody waits for the answer; with it a slow server is waited for. With
        `plan`, no checkpoint or adapter may be another one than it was planned with, nor the policy of safety.
        """
        self._farm, self._spec, self._owns, self._store = farm, spec, owns, store
        self._identity = plan.identity if plan else ""
        # No two weights of a catalog have one name. What an earlier build's plan does not say may be as it is.
        weights = (*plan.checkpoints, *plan.adapters) if plan else ()
        self._manifests = {one["name"]: one["manifest"] for one in weights}
        self._safety = plan.safety if plan and "safety" in plan.model_fields_set else None
        self._made: dict[tuple[str, str], Mould] = {}

    def of(self, changes: Mapping[str, Any], image: InputImage | None = None) -> Mould:
        """The mould of the dataset's chain with `changes`; images that its stages name are stored as fitted."""
        key = repr(changes), image.sha256 if image else ""
        if key not in self._made:
            if len(self._made) >= MOST:
                self._made.clear()
            keep = {"keep": "image"} if "base" in self._spec.keep else {}
            chain = self._farm.chain(self._spec.chain, **{**keep, **changes})
            if self._owns is not None:
                check_images(chain, self._owns)
            if any(stage.uploads() for stage in chain.stages):
                from farm.stage import Size

                size = Size(image.width, image.height) if image else None
                chain, uploads = self._farm.fitted(chain, size, self._farm.store if self._store else None)
                for data in uploads if self._store else ():
                    self._farm.store.put_blob(data, "image/png")
            mould = make_mould(chain, self._farm.catalog, self._farm.settings, image)
            self._check(mould)
            self._made[key] = mould
        return self._made[key]

    def _check(self, mould: Mould) -> None:
        """Refuses files that are not those of the plan, and another policy: samples of both would be in one dataset."""
        again = "or plan the dataset anew under another name"
        for recipe in mould.shared:
            checkpoint = recipe["checkpoint"]
            named = {checkpoint["name"]: checkpoint, **recipe.get("adapters", {})}
            for name, files in named.items():
                if self._manifests.get(name, files["manifest"]) != files["manifest"]:
                    what = "checkpoint" if files is checkpoint else "adapter"
                    hint = f"pull the files that it was planned with, {again}"
                    raise Conflict(f"the {what} {name} is not the one that the dataset was planned with", hint=hint)
        now = mould.shared[-1].get("safety", {}).get("policy", "off")
        if self._safety not in (None, now):
            told = f"the farm's safety policy is {now}, and the dataset was planned under {self._safety}"
            raise Conflict(told, hint=f"set FARM_SAFETY={self._safety} for the farm again, {again}")

    def job(self, sample: Sample, round: int, priority: int, deadline_s: float) -> Job:
        """The job that makes `sample`, in the try `round`: the same one, however often it is asked for."""
        width, height = sample.image_size
        image = InputImage(sha256=sample.image, width=width, height=height) if sample.image else None
        mould = self.of(sample.changes, image)
        name = self._spec.name
        return mould.job(
            seed=sample.seed,
            texts={"prompt": sample.prompt, "negative_prompt": sample.negative_prompt},
            idempotency_key=f"dataset:{self._identity}:{sample_id(name, sample.row, sample.variant)}:{round}",
            lane="bulk", priority=priority, deadline_s=deadline_s, collected=True,
            run=run_of(self._identity, sample.place[0], round),
        )  # fmt: skip


def run_of(identity: str, shard: int, round: int) -> str:
    """The run in which the jobs of one shard are, in the try `round` (`identity`: see `Plan`)."""
    return str(uuid5(NAMESPACE_OID, f"dataset:{identity}:{shard}:{round}"))
