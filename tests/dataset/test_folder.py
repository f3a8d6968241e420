"""Is what lies in the store whole, whatever its size and whoever writes at the same time?"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farm.dataset.files import drop
from farm.dataset.folder import Control, Folder
from farm.dataset.metrics import serve_metrics
from farm.dataset.plans import Plan
from farm.dataset.serve import feed
from farm.dataset.shelves import TargetBucket
from farm.dataset.spec import DatasetSpec
from farm.errors import BadBlob, NotFound, Unavailable
from farm.settings import Settings
from farm.store import Store
from tests.dataset.made import CHAIN
from tests.dataset.test_reading import Breaking


@pytest.fixture
def folder(store: Store) -> Folder:
    return Folder(store, "fruit")


@pytest.fixture
def planned(folder: Folder) -> Folder:
    """A dataset that has a plan."""
    spec = DatasetSpec(name="fruit", chain=CHAIN)
    plan = Plan(spec=spec, source={"name": "a.csv"}, rows=1, samples=1, shards=1, digest="0" * 64)
    folder.write("plan.json", plan.model_dump_json().encode())
    return folder


def test_of_wishes_at_the_same_time_none_is_lost(planned: Folder) -> None:
    # Given operators who all begin at once, first where nobody has steered yet
    wishes: list[dict[str, Any]] = [{"state": "running"}, {"priority": 80}, {"round": 3}]
    for _ in range(3):
        with ThreadPoolExecutor(len(wishes)) as pool:
            list(pool.map(lambda wish: planned.steer(**wish), wishes))
        # Then each has what it wished
        assert planned.control() == Control(state="running", priority=80, round=3)
        planned.steer(state="paused", priority=10, round=1)
    # And where there is no dataset, none is made
    planned.delete(["plan.json", "control.json"])
    with pytest.raises(NotFound):
        planned.steer(priority=5)
    assert planned.names("") == []


@pytest.mark.parametrize("after", [0, 700_000])
def test_a_shard_is_read_on_from_where_the_connection_broke(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    # Given a store whose connections break off, after some bytes or before the first
    data = os.urandom(3_000_000)
    folder.write("shards/00000.tar", data)
    real = folder.store.body
    monkeypatch.setattr(folder.store, "body", lambda *what: Breaking(real(*what), after))
    if after:
        with folder.tar(0) as path:
            assert path.read_bytes() == data
    else:
        with pytest.raises(Unavailable, match="breaks off"), folder.tar(0):
            pass
    with pytest.raises(BadBlob, match=r"00001.tar is missing"), folder.tar(1):
        pass


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


def test_what_the_store_does_not_delete_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that says in a good answer that one object stays
    for name in ("a", "b"):
        folder.write(name, b"x")
    refused = {"Errors": [{"Key": folder.key("b"), "Code": "AccessDenied"}]}
    monkeypatch.setattr(folder.store.client, "delete_objects", lambda **_: refused)
    # When, Then
    with pytest.raises(Unavailable, match="refused to delete of a dataset: AccessDenied"):
        folder.delete(["a", "b"])
    with pytest.raises(Unavailable, match="refused to delete files of rows: AccessDenied"):
        drop(folder.store, [folder.key("a")])


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
