"""Does the API settle what time makes due, while no worker runs?"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import structlog
from pydantic import SecretStr

from farm.settings import Settings
from tests.api.conftest import Site, made, open_site, txt
from tests.conftest import Valkey
from tests.e2e.proxy import Proxy
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"
QUEUE = "text2img.tiny"


@pytest.fixture
def brisk(shared_valkey: Valkey, s3: dict[str, str], tmp_path: Path) -> Settings:
    """Settings of a farm with short times."""
    name = secrets.token_hex(6)
    return Settings.load(
        redis_url=shared_valkey.url, namespace=name, bucket=f"test-{name}", data=tmp_path / "data", lease_s=1,
        tick_s=0.1, **s3,
    )  # fmt: skip


@pytest.fixture
def alone(brisk: Settings) -> Iterator[tuple[Site, httpx2.Client]]:
    """An API without any worker, and a caller."""
    with open_site(brisk) as site, site.client() as client:
        yield site, client


def state(client: httpx2.Client, job: str) -> str:
    return str(client.get(f"{JOBS}/{job}").json()["state"])


def test_a_job_past_its_deadline_expires(alone: tuple[Site, httpx2.Client]) -> None:
    # Given
    _, client = alone
    (job,) = made(client.post(JOBS, json=txt(deadline_s=0.5)))["jobs"]
    # When nothing but the API runs, Then
    until(lambda: state(client, job["id"]) == "expired", 30)


def test_a_dead_workers_lease_is_returned(alone: tuple[Site, httpx2.Client]) -> None:
    # Given a worker that claims and is heard of no more
    site, client = alone
    (job,) = made(client.post(JOBS, json=txt()))["jobs"]
    Hand(site.settings, site.farm.store).claim(QUEUE)
    # When nothing but the API runs, Then its stage is ready again
    until(lambda: site.farm.ledger.job(job["id"]).stages[0].state == "queued", 30)
    assert site.farm.ledger.job(job["id"]).stages[0].lapses == 1


def test_an_outage_is_told_once_and_outlived(brisk: Settings, shared_valkey: Valkey) -> None:
    # Given an API that reaches its ledger through a proxy
    proxy = Proxy(shared_valkey.port)
    url = shared_valkey.url.replace(str(shared_valkey.port), str(proxy.port))
    through = brisk.model_copy(update={"redis_url": SecretStr(url)})
    with structlog.testing.capture_logs() as told, open_site(brisk, through) as site, site.client() as client:
        (job,) = made(client.post(JOBS, json=txt(deadline_s=0.5)))["jobs"]
        # When the ledger is away for many rounds, and comes back
        proxy.cut()
        until(lambda: [one for one in told if one["event"] == "reconciler"], 30, "a word of it")
        looks = [client.get("/readyz").status_code for _ in range(10)]
        proxy.mend()
        # Then its rounds go on
        until(lambda: site.farm.ledger.job(job["id"]).state == "expired", 30)
        until(lambda: [one for one in told if one["event"] == "reconciler_goes_on"], 30, "the end of it")
    # And the log says when it began and when it was over
    assert set(looks) == {503}
    words = [one["event"] for one in told if one["event"].startswith("reconciler")]
    assert words == ["reconciler", "reconciler_goes_on"]
    proxy.stop()
