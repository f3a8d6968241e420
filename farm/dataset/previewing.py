"""What would the first rows of a file become? Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from farm.client import Farm
from farm.dataset.images import Images
from farm.dataset.moulds import Moulds
from farm.dataset.peeking import Head
from farm.dataset.planning import row_errors
from farm.dataset.samples import Planner
from farm.dataset.spec import DatasetSpec, RowError, Sample
from farm.dataset.wildcards import Wildcards
from farm.errors import InvalidJob, Unavailable
from farm.estimate import estimate_many
from farm.inputs import PATIENCE_S
from farm.plan import PlannedStage
from farm.scripts import within
from farm.whose import Owns

OF_ROW = 3
"""So many samples of one row are shown."""
MOST_SAMPLES = 20_000
"""After so many samples the rows that follow are not looked at."""
TIME_S = 10.0
"""Nor after so long, seconds."""


@dataclass(frozen=True)
class Preview:
    """What a file's first rows would become.

    `counts`: samples of each row that can be taken, by its number. `gives`: what each column gives, "" for one that
    goes into the samples as it is, None for one that is left out. `known`: what a column may give. `stages`: of the
    first sample. `cost_s`: device-seconds of one sample, None where a stage was never measured.
    """

    first: list[Sample]
    counts: dict[int, int]
    errors: list[RowError]
    gives: dict[str, str | None]
    known: list[str]
    sizes: list[tuple[int, int]]
    stages: Sequence[PlannedStage]
    cost_s: float | None


def check(
    farm: Farm, spec: DatasetSpec, head: Head, *, text: bool, whole: bool, owns: Owns, wildcards: Wildcards
) -> Planner:
    """What plans the file's rows, without storing anything.

    `whole`: no other columns than the head's can make a row possible.

    Raises:
        InvalidJob: what is asked for is wrong, whatever stands in the rows.
    """
    images = Images(farm, spec, None, store=False, owns=owns)
    planner = Planner(farm, spec, wildcards, images.input, text=text, owns=owns, store=False)
    planner.check_header(head.columns)
    if whole:
        planner.check_shapes(head.columns)
    return planner


def preview(farm: Farm, spec: DatasetSpec, head: Head, planner: Planner) -> Preview:
    """What `planner`, which `check` made, makes of the first rows.

    Raises:
        Unavailable: the store or the ledger does not answer.
    """
    first, errors, counts = list[Sample](), list[RowError](), dict[int, int]()
    until, total = time.monotonic() + TIME_S, 0
    for row in head.rows:
        if total > MOST_SAMPLES or time.monotonic() > until:
            break
        if isinstance(row, RowError):
            errors.append(row)
            continue
        try:
            found = planner.samples(row, total)
        except InvalidJob as error:
            errors += row_errors(error, planner, row)
            continue
        first += found[:OF_ROW]
        counts[row.number] = len(found)
        total += len(found)
    gives: dict[str, str | None] = {name: planner.target(name) or "" for name in head.columns}
    for name, target in gives.items():
        if name in spec.left_out or (not target and not spec.kept_columns):
            gives[name] = None
    stages, cost_s = _stages(farm, spec, first)
    return Preview(first, counts, errors, gives, sorted(planner.known()), list(planner.sizes), stages, cost_s)


def _stages(farm: Farm, spec: DatasetSpec, first: list[Sample]) -> tuple[Sequence[PlannedStage], float | None]:
    """The stages of the first sample, and what it costs."""
    if not first:
        return (), None
    job = Moulds(farm, spec, store=False).job(first[0], 0, 50, 1.0)
    try:
        with within(PATIENCE_S):
            return job.plan, estimate_many(job, 1, farm.ledger).cost_s
    except Unavailable:
        return job.plan, None
