"""Is what lies in the shards what was made?

Every byte is read again: the files' hashes are compared with those that were written down, each picture is decoded, and
what a sample says of itself in four places (its name, its JSON, its row of the table, the recipe in its picture) is
held against each other, and against what was planned.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farm.dataset.encoding import decode, recipe_in
from farm.dataset.parameters import as_kind
from farm.dataset.sharding import file_facts
from farm.dataset.shelves import Shards, read_table
from farm.dataset.spec import Sample, sample_id
from farm.dataset.tars import PICTURES, Entry, entries
from farm.errors import BadBlob, NotFound
from farm.image import hash_pixels, read_told
from farm.job import canonical, stage_seed


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a shard; `key` names the sample, "" for the shard itself."""

    shard: int
    key: str
    what: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and what is wrong. `absent`: numbers of shards that are not there.

    `judged`: of each shard in which something is wrong, the SHA-256 (hex) of its tar as its facts said; "" for none.
    """

    shards: int
    samples: int
    failed: int
    bytes: int
    absent: tuple[int, ...]
    problems: tuple[Problem, ...]
    judged: dict[int, str]


@dataclass(frozen=True, slots=True)
class Meant:
    """What was planned: the dataset's name, how many shards it has, and the samples of each.

    `samples` raises NotFound where that cannot be said any more. `whole`: all of its shards have been written.
    """

    name: str
    shards: int
    samples: Callable[[int], Sequence[Sample]]
    whole: bool


def verify(shards: Shards, meant: Meant | None = None) -> Report:
    """What reading all of it again shows; a problem is told and never raised.

    Without `meant` a shard beyond the last one is not missed, and a sample is believed what it says of itself.
    """
    numbers = list(shards.numbers())
    problems: list[Problem] = []
    judged: dict[int, str] = {}
    samples = failed = total = 0
    for number in numbers:
        before, judged[number] = len(problems), ""
        try:
            stats = shards.stats(number)
            judged[number] = _tar_of(number, stats)
            samples, failed = samples + int(stats["successes"]), failed + int(stats["failed"])
            total += sum(int(one["bytes"]) for one in stats["files"].values())
            problems += (Problem(number, key, what) for key, what in _wrong(shards, number, stats, meant))
        except (BadBlob, NotFound) as error:
            problems.append(Problem(number, "", error.message))
        except (KeyError, TypeError, ValueError, AttributeError):
            problems.append(Problem(number, "", "its facts cannot be read"))
        if len(problems) == before:
            del judged[number]
    count = max(numbers, default=-1) if meant is None else meant.shards
    absent = tuple(sorted(set(range(count)) - set(numbers)))
    if meant is not None and meant.whole:
        problems += (Problem(number, "", "it was written and is not there any more") for number in absent)
    return Report(len(numbers), samples, failed, total, absent, tuple(problems), judged)


def still_wrong(shards: Shards, report: Report) -> Iterator[int]:
    """The shards in which `report` found something wrong, but those that have gone or were written again since."""
    for number, judged in report.judged.items():
        try:
            now = _tar_of(number, shards.stats(number))
        except BadBlob:
            now = ""
        except NotFound:
            continue
        if now == judged:
            yield number


def _tar_of(number: int, stats: Mapping[str, Any]) -> str:
    """The SHA-256 (hex) of a shard's tar by its facts; "" where they do not say it."""
    try:
        return str(stats["files"][f"{number:05d}.tar"]["sha256"])
    except (KeyError, TypeError):
        return ""


def _wrong(shards: Shards, number: int, stats: dict[str, Any], meant: Meant | None) -> Iterator[tuple[str, str]]:
    """Each thing that is wrong in one shard: key and words.

    Raises:
        BadBlob: tar or table cannot be read on.
        NotFound: its plan is gone.
    """
    planned: dict[str, Sample] | None = None
    if meant is not None:
        if number >= meant.shards:
            yield "", f"{meant.shards} shards were planned, and this is none of them"
            return
        planned = {sample.key: sample for sample in meant.samples(number)}
        if len(planned) != stats["count"]:
            yield "", f"{len(planned)} samples were planned, it tells of {stats['count']}"
    with shards.tar(number) as tar, shards.parquet(number) as parquet:
        for path, name in ((tar, f"{number:05d}.tar"), (parquet, f"{number:05d}.parquet")):
            if file_facts(path) != stats["files"][name]:
                yield "", f"{name} is not the file that was written: its length or hash differs"
        table = read_table(parquet)
        rows = (row for batch in table.to_batches(max_chunksize=1000) for row in batch.to_pylist())
        keys: list[str] = []
        with entries(tar) as found:
            for entry in found:
                if keys and entry.key <= keys[-1]:
                    yield entry.key, "it is not after the sample before it"
                keys.append(entry.key)
                for what in _wrong_sample(entry, next(rows, None)):
                    yield entry.key, what
                if meant is not None and planned is not None and entry.key in planned:
                    for what in _otherwise(entry, meant.name, planned[entry.key]):
                        yield entry.key, what
        for row in rows:
            yield str(row["key"]), "it is in the table and not in the tar"
    if len(keys) != stats["successes"]:
        yield "", f"{stats['successes']} samples were written, {len(keys)} are there"
    known = [*keys, *(one["key"] for one in stats["failures"])]
    whole = [*planned] if planned is not None else [f"{number:05d}{place:04d}" for place in range(stats["count"])]
    for key in sorted(set(whole) - set(known)):
        yield key, "it is neither made nor failed"
    for key in sorted(set(known) - set(whole)):
        yield key, "it is no sample of this shard"
    for key in sorted(key for key, count in Counter(known).items() if count > 1):
        yield key, "it is there twice"


def _wrong_sample(entry: Entry, row: dict[str, Any] | None) -> Iterator[str]:
    """Each thing that is wrong with one sample."""
    try:
        known = entry.known()
        extension, data = entry.picture()
        if known["key"] != entry.key:
            yield f"its JSON says that it is {known['key']}"
        if row != {**known, "choices": json.loads(known["choices"])}:
            yield "its row of the table does not say what its JSON says"
        if entry.read("txt").decode() != known["prompt"]:
            yield "its text is not the prompt"
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            yield "its picture does not have the SHA-256 that its JSON says"
        recipes = json.loads(known["recipe"])
        inside = recipe_in(data)
        if inside is not None and canonical(inside["recipes"]) != known["recipe"]:
            yield "the recipe in its picture is another than its JSON's"
        image = decode(data)
        if image.size != (known["width"], known["height"]):
            yield f"its picture has {image.width}x{image.height} pixels, which its JSON does not say"
        drawn = hash_pixels(image) if extension == PICTURES[0] else read_told(data).get("pixels")
        if drawn != known["pixels"]:
            yield "its pixels do not have the SHA-256 that its JSON says"
        yield from _wrong_recipe(recipes, known)
    except BadBlob as error:
        yield error.message
    except (KeyError, TypeError, ValueError, AttributeError):
        yield "its JSON cannot be read"


def _otherwise(entry: Entry, dataset: str, sample: Sample) -> Iterator[str]:
    """Each thing in which a sample is not the one that was planned; what cannot be read is told elsewhere."""
    try:
        known: Mapping[str, Any] = entry.known()
    except BadBlob:
        return
    planned = {
        "sample": sample_id(dataset, sample.row, sample.variant),
        "row": sample.row,
        "variant": sample.variant,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": sample.seed,
    }
    for name, value in planned.items():
        if known.get(name) != value:
            yield f"its {name} is not the one that was planned"
    held = known.get("parameters")
    held = held if isinstance(held, dict) else {}
    for name, value in sample.changes.items():
        if value is not None and held.get(name) not in (value, as_kind("text", value)):
            yield f"its {name} is not the one that was planned"


def _wrong_recipe(recipes: list[dict[str, Any]], known: dict[str, Any]) -> Iterator[str]:
    """Prompt and seed of a sample must be those of a stage that drew it; other stages may have their own."""
    drew = [(place, one) for place, one in enumerate(recipes) if "prompt" in one["parameters"]]
    drew = [(place, one) for place, one in drew if "num_inference_steps" in one["parameters"]]
    for name in ("prompt", "negative_prompt"):
        if drew and all(one["parameters"][name] != known[name] for _, one in drew):
            yield f"no stage had its {name}"
    if drew and all(one["seed"] != stage_seed(known["seed"], place) for place, one in drew):
        yield "no stage had its seed"
