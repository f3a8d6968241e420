"""Is what lies in the store whole, whatever its size and whoever writes at the same time?"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from pathlib import Path

import pytest

from farm.dataset.folder import Folder
from farm.dataset.metrics import serve_metrics
from farm.dataset.serve import feed
from farm.dataset.shelves import TargetBucket
from farm.errors import NotFound
from farm.settings import Settings
from farm.store import Store


@pytest.fixture
def folder(store: Store) -> Folder:
    return Folder(store, "fruit")


def test_a_large_file_is_sent_in_parts(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a file that is larger than what one PUT is for
    monkeypatch.setattr("farm.store.PART_BYTES", 5 * 2**20)
    path, data = tmp_path / "large", os.urandom(11 * 2**20)
    path.write_bytes(data)
    store = folder.store
    # When it is written as a shard, and as an export's
    folder.write("shards/00000.tar", path, "application/x-tar")
    target = TargetBucket(store, f"s3://{store.bucket}/out")
    target.put("data/train-00000.tar", path)
    # Then it is there, by its parts
    assert (folder.read("shards/00000.tar"), target.read("data/train-00000.tar")) == (data, data)
    found = store.client.head_object(Bucket=store.bucket, Key=folder.key("shards/00000.tar"))
    assert (found["ETag"].strip('"').rpartition("-")[2], found["ContentType"]) == ("3", "application/x-tar")


@pytest.mark.usefixtures("store")
def test_who_feeds_one_dataset_leaves_the_metrics_port_alone(settings: Settings, s3_settings: Settings) -> None:
    # Given a process that has the port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # When another is to tell its metrics there, Then it goes on without
        serve_metrics(port)
    # And who feeds one dataset alone does not take it
    here = s3_settings.model_copy(update={"dataset_metrics_port": port, "redis_url": settings.redis_url})
    with pytest.raises(NotFound):
        feed(here, threading.Event(), "nobody")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
