"""Can any HTTP client fetch a result by the API's signed URL, and nothing else with it?"""

from __future__ import annotations

import hashlib
import http.client
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import httpx2
import pytest

from farm.settings import Settings
from tests.api.conftest import Site, made, open_site, txt
from tests.conftest import Valkey
from tests.e2e.rig import until
from tests.test_cli import Hand

JOBS = "/api/v1/jobs"


@dataclass(frozen=True)
class Signed:
    """A done job's picture: where the API leads to, the bytes that the farm itself reads, and their hash."""

    url: str
    data: bytes
    sha256: str


def signed(site: Site, client: httpx2.Client) -> Signed:
    """The picture of a new job."""
    job = made(client.post(JOBS, json=txt()))["jobs"][0]["id"]
    hand = Hand(site.settings, site.farm.store)
    hand.serve(hand.claim("text2img.tiny"))
    (artifact,) = client.get(f"{JOBS}/{job}/artifacts").json()
    answer = client.get(artifact["url"])
    assert answer.status_code == 307
    (result,) = site.farm.job(job).results
    data = site.farm.store.get_blob(result.sha256, 1 << 20)
    return Signed(answer.headers["location"], data, artifact["sha256"])


@pytest.fixture(scope="module")
def picture(site: Site) -> Iterator[Signed]:
    """The picture of one job."""
    with site.client() as client:
        yield signed(site, client)


def fetch(url: str, method: str = "GET") -> tuple[int, bytes]:
    """What a program that knows nothing of S3 gets: status and body."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, method=method), timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def changed(url: str, **query: str) -> str:
    """`url` with other values in its query."""
    parts = urlsplit(url)
    return parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **query})).geturl()


def test_any_client_gets_the_bytes_that_the_farm_stored(picture: Signed) -> None:
    # When
    status, data = fetch(picture.url)
    # Then
    assert (status, data) == (200, picture.data)
    assert hashlib.sha256(data).hexdigest() == picture.sha256
    # And a part of them, where a client asks for one
    parts: SplitResult = urlsplit(picture.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("GET", f"{parts.path}?{parts.query}", headers={"Range": "bytes=1-3"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (206, b"PNG")
    # And it is saved under a name of its own
    assert "attachment" in answer.headers["content-disposition"]
    connection.close()


def test_the_store_refuses_what_was_changed(site: Site, picture: Signed) -> None:
    # Given URLs for another object, for longer, as another file, without a signature, and with another one
    other = site.farm.store.put_blob(b"not yours", "image/png")
    parts = urlsplit(picture.url)
    folder = parts.path.rpartition("/")[0]
    stolen = [
        parts._replace(path=f"/{site.settings.bucket}/blobs/{other[:2]}/{other}").geturl(),
        parts._replace(path=f"{folder}/0-00000000.json").geturl(),
        parts._replace(path=f"/{site.settings.bucket}/").geturl(),
        changed(picture.url, **{"X-Amz-Expires": "604800"}),
        changed(picture.url, **{"response-content-disposition": "inline"}),
        changed(picture.url, **{"X-Amz-Signature": "0" * 64}),
        parts._replace(query="").geturl(),
    ]
    # When, Then
    for url in stolen:
        assert fetch(url)[0] == 403, url
    # And what it allows is to read
    for method in ("PUT", "DELETE"):
        assert fetch(picture.url, method)[0] == 403, method
    assert fetch(picture.url) == (200, picture.data)


def test_a_url_holds_for_its_time_only(shared_valkey: Valkey, s3: dict[str, str], tmp_path: Path) -> None:
    # Given a farm whose URLs hold for a second
    name = secrets.token_hex(6)
    settings = Settings.load(
        redis_url=shared_valkey.url, namespace=name, bucket=f"test-{name}", data=tmp_path / "data", presign_s=1, **s3
    )
    with open_site(settings) as site, site.client() as client:
        found = signed(site, client)
        # When it is over
        until(lambda: fetch(found.url)[0] != 200, 30, "the end of the URL")
        # Then
        assert fetch(found.url)[0] == 403
