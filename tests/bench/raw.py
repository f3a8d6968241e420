"""The raw Celery worker of the overhead benchmark."""

from __future__ import annotations

import os

import redis

from tests.bench.overhead import celery

if __name__ == "__main__":
    celery.backend_client = redis.Redis.from_url(os.environ["BENCH_BROKER"])
    options = ["--pool=solo", "--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    celery.worker_main(["--quiet", "worker", *options, "--loglevel=ERROR"])
