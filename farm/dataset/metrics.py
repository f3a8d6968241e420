"""What is counted of datasets, for Prometheus?

The counters are those of one process that feeds, from its start on; they are told on this machine alone.
"""

from __future__ import annotations

from typing import Any

import structlog
from prometheus_client import Counter, Gauge, start_http_server

_log = structlog.get_logger(__name__)

SAMPLES = Counter("farm_dataset_samples", "Samples in shards that this process published.", ["dataset", "state"])
SHARDS = Counter("farm_dataset_shards", "Shards that this process published.", ["dataset"])
BYTES = Counter("farm_dataset_bytes", "Bytes of these shards.", ["dataset"])
SECONDS = Counter("farm_dataset_shard_seconds", "Seconds that making these shards took.", ["dataset"])
OPEN = Gauge("farm_dataset_open_jobs", "Jobs of the shards in work.", ["dataset", "state"])


def serve_metrics(port: int) -> None:
    """Tells Prometheus at http://127.0.0.1:port/metrics from now on, unless another process has the port."""
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:  # nobody's pictures are to wait for that
        _log.warning("dataset_metrics", port=port, error=error.strerror)


def count_shard(dataset: str, stats: dict[str, Any], seconds: float) -> None:
    """Counts one shard that was published."""
    SAMPLES.labels(dataset, "done").inc(stats["successes"])
    SAMPLES.labels(dataset, "failed").inc(stats["failed"])
    SHARDS.labels(dataset).inc()
    BYTES.labels(dataset).inc(sum(file["bytes"] for file in stats["files"].values()))
    SECONDS.labels(dataset).inc(seconds)


def show_open(dataset: str, states: dict[str, int]) -> None:
    """Shows how many jobs of the shards in work are in each state."""
    for state in ("queued", "running", "paused", "done", "failed"):
        OPEN.labels(dataset, state).set(states.get(state, 0))
