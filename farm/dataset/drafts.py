"""What would a file's dataset be: how many samples, at what cost, how large?"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from farm.chain import Chain
from farm.client import Farm
from farm.dataset.folder import Folder
from farm.dataset.images import Images
from farm.dataset.moulds import Moulds
from farm.dataset.planning import plan_rows
from farm.dataset.plans import Plan, read_sample
from farm.dataset.reading import header, rows
from farm.dataset.samples import Planner
from farm.dataset.sources import Source, digest
from farm.dataset.spec import DatasetSpec, RowError, Sample
from farm.dataset.wildcards import Wildcards
from farm.errors import FieldError, InvalidJob, Unavailable
from farm.estimate import Estimate, estimate_many
from farm.inputs import PATIENCE_S
from farm.protocol import ChainSource
from farm.scripts import within
from farm.stage import STORED
from farm.whose import Owns, check_images

TEXTUAL = ("csv", "tsv", "txt")
"""Formats whose cells are text, so that numbers have to be read from it."""
HEADED = ("csv", "tsv", "parquet")
"""Formats that tell their columns before their rows."""
FIRST = 20
"""So many samples are shown of a plan."""


@dataclass(frozen=True)
class Planned:
    """What a file came to. `rejected`: the first rows that were left out. `fresh`: it was not planned before."""

    plan: Plan
    rejected: list[RowError]
    estimate: Estimate
    first: list[Sample]
    fresh: bool

    @property
    def size_bytes_most(self) -> int:
        """What pictures take at most, in bytes: three a pixel, as no compression would leave them; and kept latents."""
        if self.plan.sample_bytes is not None:
            return self.plan.samples * self.plan.sample_bytes
        return self.plan.samples * max((3 * width * height for width, height in self.plan.sizes), default=0)


class Drafts:
    """Plans the datasets of one farm. Every call may raise Unavailable."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm

    def plan(
        self,
        source: Source,
        name: str,
        chain: ChainSource = "txt",
        *,
        chain_fields: Mapping[str, Any] | None = None,
        wildcards: Wildcards | None = None,
        folder: Path | None = None,
        owner: str = "",
        file_name: str = "",
        partial: bool = False,
        store: bool = True,
        owns: Owns | None = None,
        progress: Callable[[int], None] | None = None,
        wanted: Callable[[], object] | None = None,
        **asked: Any,
    ) -> Planned:
        """Reads a file and writes the plan of its dataset; the same file and words, given again, are the same dataset.

        `chain_fields` are what `Farm.chain` takes beside the chain, `asked` fields of DatasetSpec. Images that rows
        name lie in `folder`; without one only stored images can be named. Without `store` nothing is written.
        `file_name` is what the file is called where its source has another name. With `owns`, which says which stored
        images may be named, no files can. `wanted`: see `Folder.write_plan`.

        Raises:
            Refused: rows are wrong, and not `partial`; nothing was planned.
            InvalidJob: the file or what is asked for is wrong; nothing was planned.
            Conflict: there is another dataset of this name.
        """
        asked_chain = self._farm.chain(chain, **(chain_fields or {}))
        if owns is not None:
            check_images(asked_chain, owns)
        with TemporaryDirectory(prefix="plan-") as temporary:
            target = Path(temporary)
            spec = _spec(name, self._told(asked_chain, None if store else target), asked)
            planner = self._planner(spec, source, folder, wildcards, owns, store, partial)
            sha256, size_bytes = digest(source)
            facts = {"name": file_name or source.name, "sha256": sha256, "size_bytes": size_bytes}
            how: dict[str, Any] = {"owner": owner, "partial": partial, "progress": progress}
            plan, rejected = plan_rows(planner, spec, rows(source), target, facts, **how)
            plan = plan.model_copy(update={"safety": self._farm.settings.safety})
            fresh = Folder(self._farm.store, name).write_plan(plan, target, wanted) if store else True
            first = self._first(target)
            estimate = self._estimate(spec, first[0], plan.samples)
        return Planned(plan, rejected, estimate, first, fresh)

    def _planner(
        self,
        spec: DatasetSpec,
        source: Source,
        folder: Path | None,
        wildcards: Wildcards | None,
        owns: Owns | None,
        store: bool,
        partial: bool,
    ) -> Planner:
        """What plans the rows of a file. Raises InvalidJob."""
        images = Images(self._farm, spec, folder, store=store, owns=owns)
        planner = Planner(
            self._farm, spec, wildcards or Wildcards(), images.input, text=source.format in TEXTUAL, owns=owns,
            store=store,
        )  # fmt: skip
        columns = header(source)
        if source.format in HEADED:
            planner.check_header(columns)
        if source.format in (*TEXTUAL, *HEADED) or not partial:  # a later row may give what the first ones lack
            planner.check_shapes(columns)
        return planner

    def _told(self, chain: Chain, folder: Path | None) -> dict[str, Any]:
        """A chain as the plan has it: images that its stages name are stored, for the plan is all that is left.

        With a `folder` nothing is stored: what was given as bytes lies there, as long as the plan is looked at.
        """

        def named_so(value: str) -> str:
            data = chain.given_files.get(value)
            if folder is None:
                return self._farm.upload(data or value)
            if data is None:
                return value
            path = folder / hashlib.sha256(data).hexdigest()
            path.write_bytes(data)
            return str(path)

        stages = []
        for stage in chain.stages:
            named = {
                loc: named_so(value) for loc, (value, _) in stage.uploads().items() if not value.startswith(STORED)
            }
            stages.append(stage.with_uploads(named) if named else stage)
        return chain.model_copy(update={"stages": tuple(stages)}).model_dump(mode="json", exclude_unset=True)

    def _first(self, folder: Path) -> list[Sample]:
        """The first samples of a plan that lies in `folder`."""
        with gzip.open(folder / "plan" / "00000.jsonl.gz") as file:
            return [read_sample(line) for line in islice(file, FIRST)]

    def planned(self, name: str) -> Planned:
        """What a dataset was planned to be. Raises NotFound where it was not."""
        folder = Folder(self._farm.store, name)
        plan = folder.plan()
        with gzip.open(BytesIO(folder.read(plan.path_of(0)) or gzip.compress(b""))) as file:
            first = [read_sample(line) for line in islice(file, FIRST)]
        rejected = [RowError(**row) for row in json.loads(folder.read("rejects.json") or b"[]")]
        estimate = self._estimate(plan.spec, first[0], plan.samples) if first else Estimate()
        return Planned(plan, rejected, estimate, first, fresh=False)

    def _estimate(self, spec: DatasetSpec, sample: Sample, samples: int) -> Estimate:
        """What all samples would take if all were like this one."""
        # What was planned holds without workers, and after the catalog has changed.
        with suppress(Unavailable, InvalidJob), within(PATIENCE_S):
            job = Moulds(self._farm, spec, store=False).job(sample, 0, 50, 1.0)
            return estimate_many(job, samples, self._farm.ledger)
        return Estimate()


def _spec(name: str, chain: dict[str, Any], asked: Mapping[str, Any]) -> DatasetSpec:
    """What a dataset is asked to be. Raises InvalidJob."""
    try:
        return DatasetSpec.model_validate({"name": name, "chain": chain, **asked})
    except ValidationError as error:
        found = [FieldError(".".join(map(str, one["loc"])) or "dataset", one["msg"]) for one in error.errors()[:50]]
        raise InvalidJob(errors=tuple(found)) from None


def as_data(one: Planned) -> dict[str, Any]:
    """The same for programs."""
    plan = one.plan
    return {
        "name": plan.spec.name,
        "fresh": one.fresh,
        "rows": plan.rows,
        "rejected": plan.rejected,
        "samples": plan.samples,
        "shards": plan.shards,
        "columns": list(plan.columns),
        "parameters": dict(plan.parameters),
        "sizes": [list(size) for size in plan.sizes],
        "cost_s": one.estimate.cost_s,
        "eta_s": one.estimate.eta_s,
        "size_bytes_most": one.size_bytes_most,
        "digest": plan.digest,
        "rejects": [asdict(row) for row in one.rejected],
        "first": [_sample(sample) for sample in one.first],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "key": sample.key,
        "row": sample.row,
        "variant": sample.variant,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": sample.seed,
        "changes": dict(sample.changes),
        "columns": dict(sample.columns),
    }
