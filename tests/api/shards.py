"""Shards of a dataset that was planned over HTTP, for tests: drawn here, and published as its feeder would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from farm.dataset.desk import Datasets
from farm.dataset.folder import Folder
from farm.dataset.scores import merged
from farm.dataset.sharding import ShardWriter
from farm.dataset.spec import Failed, Picture, Sample
from farm.image import to_png
from farm.label import label
from tests.api.conftest import Site
from tests.dataset.made import MADE, drawn

CHAIN = {
    "stages": [
        {"kind": "text2img", "checkpoint": "tiny", "width": 64, "height": 64, "steps": 4},
        {"kind": "img2img", "checkpoint": "tiny", "steps": 4, "strength": 0.5},
    ]
}


def publish(
    site: Site, name: str, number: int, work: Path, as_made: Callable[[Sample], Sample] = lambda sample: sample
) -> None:
    """Publishes a shard whose last sample has failed; `as_made` is what was made of a sample in place of it."""
    folder = Datasets(site.farm).folder(name)
    plan, (*samples, last) = folder.plan(), folder.samples(number)
    with ShardWriter(work, number, plan.spec, plan.columns, plan.parameters) as writer:
        for sample in map(as_made, samples):
            given = {"prompt": sample.prompt, "seed": sample.seed, **sample.changes}
            (job,) = site.farm.jobs_of(site.farm.chain(plan.spec.chain, **given), upload=False)
            recipes, made = list(job.recipes), [dict(MADE) for _ in job.recipes]
            document = {"v": 1, "farm": MADE["farm"], "recipes": recipes, "made": made}
            data = to_png(drawn(sample.row), document, label(recipes))
            writer.add(Picture(sample, data, recipes, made, {"stage0.png": to_png(drawn(-sample.row))}))
        shard = writer.finish([Failed(last, "failed", "internal", f"s3-host-7 said no to {last.key}")])
    folder.publish(number, shard.tar, shard.parquet, {**shard.facts, "round": 0, "began": 10.0, "ended": 20.5 + number})


def score(folder: Folder, number: int, tar: str | None = None) -> None:
    """Writes scores of a shard's pictures, made of this tar (SHA-256), or of the one that is there."""
    stats = folder.stats(number)
    keys = [f"{number:05d}{place:04d}" for place in range(stats["successes"])]
    values = {"clip_score": [round(0.1 * (1 + place), 1) for place in range(len(keys))]}
    of = tar or stats["files"][f"{number:05d}.tar"]["sha256"]
    folder.write_scores(number, merged(None, of, keys, values, {"clip_score": {"name": "tiny-clip"}}))


def ended(folder: Folder) -> None:
    """Says of a dataset, as its feeder would, that every sample was tried."""
    stats = [folder.stats(number) for number in folder.numbers()]
    told = {
        "done": sum(one["successes"] for one in stats), "failed": sum(one["failed"] for one in stats),
        "shards": len(stats), "size_bytes": sum(file["bytes"] for one in stats for file in one["files"].values()),
    }  # fmt: skip
    folder.write("progress.json", json.dumps(told).encode())
    folder.steer(state="done")
