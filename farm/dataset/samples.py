"""Which samples do the rows of a file mean, and is each of them possible?

Each row becomes its samples, which are checked as jobs are. What a row may give: prompts, a seed, an input image, and
every parameter of the chain. A column of such a name is taken as that; the spec names others, and what is no parameter
goes into the sample as it is.

Order: row by row, and within a row prompt by prompt, so that samples that share their first stages lie together. The
samples of one prompt share its seed unless the seed is swept: then what differs is only what was asked to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from random import Random
from typing import Any

from pydantic import TypeAdapter, ValidationError

from farm.catalog import Weights
from farm.chain import places_of
from farm.dataset.axes import check_shapes, check_values
from farm.dataset.moulds import Moulds
from farm.dataset.prompts import Template
from farm.dataset.spec import DatasetSpec, Row, Sample, sample_seed
from farm.dataset.wildcards import Wildcards
from farm.inputs import Inputs
from farm.job import InputImage, Mould
from farm.plan import PlannedStage, wrong
from farm.stage import ALIASES, MAX_SEED, Medium, Prompt, kinds
from farm.sweep import count_of, variants
from farm.whose import Owns

TEXTS = ("prompt", "negative_prompt")
CHAIN = ("fit", "exact", "reuse")
"""Fields of a chain that a row may give if the spec names its column."""
MAX_COLUMNS = 1000
"""Columns of the file that samples have, all rows together: every sample has all of them."""
MAX_SIZES = 100
"""Different sizes of pictures that are told of a plan."""
WHOLE = 2.0**53
"""From here on a float is no whole number any more. Source: IEEE 754, binary64."""
_prompt: TypeAdapter[str] = TypeAdapter(Prompt)
Picture = Callable[[Any], InputImage]
"""What makes an input image of a cell."""


class Planner:
    """Makes samples of rows. `picture` gives the stored input image that a cell names."""

    def __init__(
        self,
        farm: Inputs,
        spec: DatasetSpec,
        wildcards: Wildcards,
        picture: Picture,
        *,
        text: bool,
        owns: Owns | None = None,
        store: bool = True,
    ) -> None:
        """`text`: cells are text, so that numbers have to be read from it. `owns` and `store`: see `Moulds`.

        Raises:
            InvalidJob: the spec itself is wrong.
        """
        self._farm, self._spec, self._wildcards, self._picture, self._text = farm, spec, wildcards, picture, text
        self._axes = count_of(spec.sweep)
        self._swept = list(variants(spec.sweep)) if self._axes <= spec.per_row else []
        if not self._swept:
            raise wrong("sweep", f"{self._axes} samples of every row, and one means at most {spec.per_row}")
        self._places: dict[str, frozenset[tuple[int, str]]] = {}
        names = [name for axis in spec.sweep for name in axis]
        self._on_axes: dict[tuple[int, str], str] = {}
        for name in names:
            if there := self._places_of(name) & self._on_axes.keys():
                told = f"{name} gives what {self._on_axes[min(there)]} does already"
                raise wrong("sweep", f"{told}: take one of them away, or give each stage its own, 0.NAME and 1.NAME")
            self._on_axes |= dict.fromkeys(self._places_of(name), name)
        if len({repr(one) for one in self._swept}) < len(self._swept):
            raise wrong("sweep", "the same values stand there twice")
        self._parameters = _parameters(spec.chain)
        self._starts_from_image = _starts_from_image(spec.chain)
        self._needs_prompt = not self._starts_from_image and not _has_prompt(spec)
        self._targets = self._mapped()
        for name in names:
            if name not in self.known():
                raise wrong(f"sweep.{name}", "no stage of this chain has this parameter", "unknown_field")
        check_values(spec, self._check_own)
        self._moulds = Moulds(farm, spec, owns=owns, store=store)
        self.most = farm.settings.max_dataset_samples
        """Samples that all rows together may mean."""
        self._noted: Mould | None = None
        self._draws = Random()  # noqa: S311 — seeded for every row
        self.columns: dict[str, None] = {}
        self.given: Counter[str] = Counter()
        """How many samples were given a parameter, by its name."""
        self.sizes: dict[tuple[int, int], None] = {}
        self.checkpoints: dict[str, dict[str, Any]] = {}
        self.adapters: dict[str, dict[str, Any]] = {}
        self.sample_bytes = 0
        """What the pictures and latents of one sample take at most."""

    def known(self) -> set[str]:
        """What a column may give."""
        return {*TEXTS, *CHAIN, "seed", "image", *self._parameters}

    def _mapped(self) -> dict[str, str]:
        """What the columns that the spec names give."""
        known = self.known()
        for ours in self._spec.columns:
            if ours not in known:
                raise wrong(f"columns.{ours}", "neither a prompt, seed or image nor a parameter of this chain")
        if len(set(self._spec.columns.values())) < len(self._spec.columns):
            raise wrong("columns", "two parameters are taken from the same column")
        return {theirs: ours for ours, theirs in self._spec.columns.items()}

    def check_header(self, header: Iterable[str]) -> None:
        """Refuses a spec that names a column which the file has not. Raises InvalidJob.

        Where a column gives prompts, a row may leave its own out: it is the chain's then.
        """
        have = list(header)
        for column in have:
            self._check_axes(column)
            if self.target(column) is None and column not in self._spec.left_out and self._spec.kept_columns:
                self.columns.setdefault(column)
        if any(
            (self._targets.get(one) or self._taken(one)) == "prompt" for one in have if one not in self._spec.left_out
        ):
            self._needs_prompt = False
        for ours, theirs in self._spec.columns.items():
            if theirs not in have:
                told = ", ".join(have)[:300]
                raise wrong(f"columns.{ours}", f"the file has no column {theirs!r}; it has {told}", "unknown_column")
        for theirs in self._spec.left_out:
            if theirs not in have:
                raise wrong("left_out", f"the file has no column {theirs!r}", "unknown_column")
            if theirs in self._targets:
                raise wrong("left_out", f"{theirs!r} gives {self._targets[theirs]}")

    def check_shapes(self, columns: Iterable[str]) -> None:
        """Refuses what is not possible in any row, if the rows have no other columns than these. Raises InvalidJob.

        Where a column gives a parameter, each row decides.
        """
        if not {self.target(one) for one in columns} & {*CHAIN, *self._parameters}:
            check_shapes(self._spec, self._moulds)

    def samples(self, row: Row, start: int) -> list[Sample]:
        """The samples of one row, of which the first is the dataset's sample `start`.

        Raises:
            InvalidJob: the row is not possible; `errors` name its columns.
        """
        given, columns = self._read(row)
        if len(self.columns.keys() | columns.keys()) > MAX_COLUMNS:
            raise wrong(
                "columns", f"more than {MAX_COLUMNS} columns beside the parameters; leave them out of the samples"
            )
        found, size = list[Sample](), self._spec.shard_samples
        image = self._picture(given.pop("image")) if "image" in given else None
        negative = self._checked("negative_prompt", given.pop("negative_prompt", None))
        seed = self._seed(given.pop("seed", None))
        if self._needs_prompt and "prompt" not in given:
            have = ", ".join(row.values)[:300]
            told = f"none of {have} gives one: say which column does (--map prompt=COLUMN), or give one for all rows"
            raise wrong("prompt", told, "unknown_column")
        for draw, (prompt, choices) in enumerate(self._prompts(row.number, given.pop("prompt", None))):
            own = sample_seed(self._spec.name, self._spec.seed, row.number, draw) if seed is None else seed
            for place, swept in enumerate(self._swept):
                changes = {**given, **swept}
                texts = {name: self._checked(name, changes.pop(name)) for name in TEXTS if name in changes}
                at = self._seed(changes.pop("seed", None))
                mould = self._moulds.of(changes, image)
                if mould is not self._noted:
                    self._note(mould.plan)
                    self._noted = mould
                found.append(
                    Sample(
                        place=divmod(start + len(found), size),
                        row=row.number,
                        variant=draw * self._axes + place,
                        prompt=texts.get("prompt", prompt),
                        negative_prompt=texts.get("negative_prompt", negative),
                        seed=own if at is None else at,
                        changes=changes,
                        image=image.sha256 if image else "",
                        image_size=(image.width, image.height) if image else (0, 0),
                        choices=choices,
                        columns=columns,
                    )
                )
        for name in columns:
            self.columns.setdefault(name)
        self.given.update(name for one in found for name, value in one.changes.items() if value is not None)
        return found

    def _note(self, plan: Sequence[PlannedStage]) -> None:
        """Notes what a mould's samples come to."""
        size = (plan[-1].size.width, plan[-1].size.height)
        if size not in self.sizes and len(self.sizes) < MAX_SIZES:
            self.sizes[size] = None
        self.sample_bytes = max(self.sample_bytes, _bytes_most(plan, self._spec.keep))
        for item in plan:
            self._weigh(self.checkpoints, item.checkpoint)
            for name, _ in item.stage.adapters().values():
                self._weigh(self.adapters, self._farm.catalog.adapters[name])

    def _weigh(self, known: dict[str, dict[str, Any]], one: Weights) -> None:
        """Notes which files weights are, and what the card says of them."""
        if one.name not in known:
            told = one.model_dump(include={"name", "repo", "build", "revision", "licence", "family"}, exclude_none=True)
            known[one.name] = {**told, "manifest": self._farm.catalog.lock(one).manifest}

    def _read(self, row: Row) -> tuple[dict[str, Any], dict[str, str]]:
        """What a row gives, and its other columns as text."""
        given, columns, by = dict[str, Any](), dict[str, str](), dict[tuple[int, str], str]()
        for column, value in row.values.items():
            if column in self._spec.left_out:
                continue
            target = self.target(column)
            if target is None:
                if self._spec.kept_columns:
                    columns[column] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                continue
            self._check_axes(column)
            places = self._places_of(target)
            if there := places & by.keys():
                told = f"gives {target}, as the column {by[min(there)]} does already: leave one of them out"
                raise wrong(column, f"{told} (--leave-out, left_out), or give each stage its own, 0.NAME and 1.NAME")
            by |= dict.fromkeys(places, column)
            given[target] = self._value(target, value)
        return given, columns

    def _check_axes(self, column: str) -> None:
        """Refuses a column that gives what an axis gives: one of them would be passed over."""
        target = self.target(column)
        if target is not None and self._places_of(target) & self._on_axes.keys():
            told = f"gives {target}, and so does an axis: take that away, or leave the column out"
            raise wrong(column, f"{told} (--leave-out, left_out)")

    def _places_of(self, name: str) -> frozenset[tuple[int, str]]:
        """The stages, from 0, whose field a name sets, with what that is called; stage -1 is the chain."""
        if name not in self._places:
            stages = [stage if isinstance(stage, Mapping) else {} for stage in self._spec.chain.get("stages") or ()]
            of_chain = name in (*TEXTS, *CHAIN, "seed", "image")
            self._places[name] = frozenset([(-1, name)] if of_chain else places_of(stages, name))
        return self._places[name]

    def target(self, column: str) -> str | None:
        """What a column gives; None for one that goes into the samples as it is, or nowhere."""
        if column in self._spec.left_out:
            return None
        return self._targets.get(column) or self._taken(column)

    def _taken(self, column: str) -> str | None:
        """What a column that the spec does not name gives by its own name."""
        if not self._spec.automatic or column in self._spec.columns:
            return None  # or another column gives that
        if column in TEXTS or column == "seed" or (column == "image" and self._starts_from_image):
            return column
        return column if column in self._parameters else None

    def _value(self, target: str, value: Any) -> Any:
        """A cell as what it gives: text is read as JSON where it is a number, a truth or a list."""
        if target in TEXTS or target == "image":
            return value
        if self._text:
            try:
                found = json.loads(value)
            except (ValueError, RecursionError):
                return value
            value = found if isinstance(found, bool | int | float | list | dict) else value
        # A column of whole numbers with gaps is one of floats to pandas.
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE else value

    def _seed(self, value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
            raise wrong("seed", f"a whole number from 0 to {MAX_SEED}")
        return value

    def _check_own(self, name: str, value: Any) -> bool:
        """Whether this is a prompt or a seed, which are of the row. Raises InvalidJob where it cannot be."""
        if name == "seed":
            self._seed(value)
        elif name in TEXTS:
            self._checked(name, value)
        return name == "seed" or name in TEXTS

    def _checked(self, name: str, value: Any) -> str:
        """A prompt as a chain may have it; the chain's own where a row gives none."""
        if value is None:
            return str(self._spec.chain.get(name) or "")
        try:
            return _prompt.validate_python(value, strict=True)
        except ValidationError as error:
            kind = error.errors(include_url=False, include_input=False)[0]["type"]
            told = {
                "string_too_long": "at most 2,000 characters",
                "string_pattern_mismatch": "no control characters, but tab and newline",
                "string_unicode": "no half of a surrogate pair",
            }
            raise wrong(name, told.get(kind, "a text")) from None

    def _prompts(self, row: int, value: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The prompts that a row's template means, each with what its options came to."""
        if self._spec.templates == "off":
            yield self._checked("prompt", value), ()
            return
        text = self._spec.chain.get("prompt") or "" if value is None else value
        if not isinstance(text, str):
            raise wrong("prompt", "a text")
        template = Template.parse(text, self._wildcards)
        if self._spec.templates == "random":
            self._draws.seed(f"{self._spec.name}\n{self._spec.seed}\n{row}")
            made: Iterable[tuple[str, tuple[str, ...]]] = (
                template.draw(self._draws) for _ in range(self._spec.variants)
            )
            count = self._spec.variants
        else:
            made, count = template.all(self._spec.per_row), template.count
        if count * self._axes > self._spec.per_row:
            raise wrong("prompt", f"means {count * self._axes} samples, and a row means at most {self._spec.per_row}")
        for prompt, choices in made:
            yield self._checked("prompt", prompt), choices


def _bytes_most(plan: Sequence[PlannedStage], keep: Sequence[str]) -> int:
    """What a sample's picture and what is kept of earlier stages take at most: no compression leaves so much."""
    found = 3 * prod(plan[-1].size)
    for item in plan[:-1]:
        if "base" in keep:
            found += 3 * prod(item.size)
        if "latents" in keep and item.emits is Medium.LATENTS:
            cells = prod(-(-side // item.space.factor) for side in item.size)
            found += 4 * item.space.channels * cells
    return found


def _parameters(chain: Mapping[str, Any]) -> set[str]:
    """What the stages of a chain call their parameters, alone and with the stage's number before it."""
    found: set[str] = set()
    for index, stage in enumerate(chain.get("stages") or ()):
        cls = kinds().get(str(stage.get("kind"))) if isinstance(stage, Mapping) else None
        if cls is not None:
            own = set(cls.model_fields) - {"kind", *TEXTS, "seed"}
            own |= {alias for alias, name in ALIASES.items() if name in own}
            found |= own | {f"{index}.{name}" for name in own | {*TEXTS, "seed"}}
    return found


def _has_prompt(spec: DatasetSpec) -> bool:
    """Whether what draws has a prompt though a row gives none: the chain's, a stage's own, or a swept one."""
    swept = {name.rpartition(".")[2] for axis in spec.sweep for name in axis}
    stages = [stage for stage in spec.chain.get("stages") or () if isinstance(stage, Mapping)]
    return "prompt" in spec.chain or "prompt" in swept or any("prompt" in stage for stage in stages)


def _starts_from_image(chain: Mapping[str, Any]) -> bool:
    """Whether the first stage of a chain takes an image."""
    stages = chain.get("stages") or [{}]
    cls = kinds().get(str(stages[0].get("kind"))) if isinstance(stages[0], Mapping) else None
    return bool(cls and cls.takes)
