"""What is counted of datasets, for Prometheus?

The counters are those of one process that feeds, from its start on; they are told on this machine alone.
"""

from __future__ import annotations

from typing import Any

import structlog
from prometheus_client import Counter, Gauge, start_http_server

_log = structlog.get_logger(__name__)

SAMPLES = Counter(
    "farm_dataset_samples",
    "Samples in shards that this process published; of one tried again, what is new.",
    ["dataset", "state"],
)
SHARDS = Counter("farm_dataset_shards", "Shards that this process published, each at its first try.", ["dataset"])
BYTES = Counter("farm_dataset_bytes", "Bytes of these shards; of one tried again, those that it grew by.", ["dataset"])
SECONDS = Counter("farm_dataset_shard_seconds", "Seconds that writing shards took, their jobs done.", ["dataset"])
OPEN = Gauge("farm_dataset_open_jobs", "Jobs of the shards in work.", ["dataset", "state"])


def serve_metrics(port: int) -> None:
    """Tells Prometheus at http://127.0.0.1:port/metrics from now on, unless another process has the port."""
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:  # nobody's pictures are to wait for that
        _log.warning("dataset_metrics", port=port, error=error.strerror)


def count_shard(dataset: str, stats: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> None:
    """Counts one shard that was published in place of what was there `before`: only what is more than that."""
    for state, name in (("done", "successes"), ("failed", "failed")):
        SAMPLES.labels(dataset, state).inc(max(0, stats[name] - (before[name] if before else 0)))
    SHARDS.labels(dataset).inc(before is None)
    BYTES.labels(dataset).inc(max(0, _size(stats) - (_size(before) if before else 0)))
    SECONDS.labels(dataset).inc(seconds)


def _size(stats: dict[str, Any]) -> int:
    return sum(file["bytes"] for file in stats["files"].values())


def show_open(dataset: str, states: dict[str, int]) -> None:
    """Shows how many jobs of the shards in work are in each state."""
    for state in ("queued", "running", "paused", "done", "failed"):
        OPEN.labels(dataset, state).set(states.get(state, 0))
