"""Datasets over HTTP, for tests: files that were uploaded, and plans that were made of them."""

from __future__ import annotations

from typing import Any

import httpx2

from farm.dataset.asking import carry_out
from tests.api.conftest import Json, Site

DATASETS = "/api/v1/datasets"
CSV = {"Content-Type": "text/csv"}
FRUIT = "prompt,label\n" + "".join(f"a {one},{one}\n" for one in ("pear", "plum", "fig"))


def stored(client: httpx2.Client, data: str | bytes = FRUIT, name: str = "rows.csv") -> Json:
    """What an upload of rows that succeeded answers."""
    answer = client.post(f"{DATASETS}/files", params={"name": name}, content=data, headers=CSV)
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()
    return found


def asked(client: httpx2.Client, name: str, data: str | bytes = FRUIT, **given: Any) -> Json:
    """A dataset that was asked for."""
    file = stored(client, data)["id"]
    answer = client.post(DATASETS, json={"name": name, "file": file, "shard_samples": 2, **given})
    assert answer.status_code == 202, answer.text
    found: Json = answer.json()
    return found


def planned(site: Site, client: httpx2.Client, name: str, data: str | bytes = FRUIT, **given: Any) -> Json:
    """The dataset, once what was asked for was planned."""
    asked(client, name, data, **given)
    carry_out(site.farm, name, lambda: False)
    found: Json = client.get(f"{DATASETS}/{name}").json()
    return found
