"""Are stored bytes under their own hash, written once, checked when read, and reachable by URL?"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from farm.errors import BadBlob, FarmError, NotFound, Unavailable
from farm.settings import Settings
from farm.store import Store

JOB = "019383aa-0000-7000-8000-000000000000"


def keys(store: Store) -> list[str]:
    """All keys in the store's bucket."""
    return [entry["Key"] for entry in store.client.list_objects_v2(Bucket=store.bucket).get("Contents", [])]


def overwrite(store: Store, key: str, data: bytes) -> None:
    store.client.put_object(Bucket=store.bucket, Key=key, Body=data)


def read(url: str) -> tuple[int, bytes, Any]:
    """Status, body and headers of a plain GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_a_blob_comes_back_under_its_hash(store: Store) -> None:
    # Given
    data = bytes(range(256)) * 100
    # When
    sha256 = store.put_blob(data, "application/octet-stream")
    # Then
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.get_blob(sha256, len(data)) == data
    assert store.exists(sha256)
    assert keys(store) == [f"blobs/sha256/{sha256[:2]}/{sha256}"]
    assert store.blob_uri(sha256) == f"s3://{store.bucket}/blobs/sha256/{sha256[:2]}/{sha256}"


def test_a_blob_carries_its_type_its_hash_and_a_cache_header(store: Store) -> None:
    # When
    sha256 = store.put_blob(b"pixels", "image/png")
    # Then
    head = store.client.head_object(Bucket=store.bucket, Key=store.blob_key(sha256))
    assert head["ContentType"] == "image/png"
    assert head["Metadata"] == {"sha256": sha256}
    assert "immutable" in head["CacheControl"]


def test_the_prefix_stands_before_every_key(s3_settings: Settings) -> None:
    # Given
    store = Store(s3_settings.model_copy(update={"prefix": "team/a/"}))
    store.ensure_bucket()
    # When
    sha256 = store.put_blob(b"x", "text/plain")
    store.put_result(JOB, 0, b"x", {}, sha256)
    # Then
    assert len(keys(store)) == 3
    assert all(key.startswith("team/a/") for key in keys(store))


def test_eight_writers_make_one_object(store: Store) -> None:
    # Given
    data = os.urandom(32768)
    # When
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: store.put_blob(data, "x/y"), range(8)))
    # Then
    assert len(found) == 1
    assert len(keys(store)) == 1
    assert store.get_blob(found.pop(), len(data)) == data


def test_a_second_writer_does_not_touch_the_first_ones_object(store: Store) -> None:
    # Given
    sha256 = store.put_blob(b"same", "text/plain")
    before = store.client.head_object(Bucket=store.bucket, Key=store.blob_key(sha256))
    # When: another writer says another type
    store.put_blob(b"same", "image/png")
    # Then
    after = store.client.head_object(Bucket=store.bucket, Key=store.blob_key(sha256))
    assert after["ContentType"] == before["ContentType"] == "text/plain"
    assert after["LastModified"] == before["LastModified"]


@pytest.mark.parametrize("broken", [b"", b"0123456789abcdeX", b"0123456789abcde", b"0123456789abcdef0"])
def test_a_corrupt_blob_is_not_given_out_and_is_healed_by_its_next_writer(store: Store, broken: bytes) -> None:
    # Given
    data = b"0123456789abcdef"
    sha256 = store.put_blob(data, "x/y")
    overwrite(store, store.blob_key(sha256), broken)
    # When, Then
    with pytest.raises(BadBlob):
        store.get_blob(sha256, 100)
    # When the producer runs again
    store.put_blob(data, "x/y")
    # Then
    assert store.get_blob(sha256, 100) == data


def test_a_blob_that_is_gone_is_a_bad_blob(store: Store) -> None:
    missing = hashlib.sha256(b"never written").hexdigest()
    assert not store.exists(missing)
    with pytest.raises(BadBlob, match="gone"):
        store.get_blob(missing, 100)


def test_a_blob_larger_than_allowed_is_not_read(store: Store) -> None:
    # Given
    sha256 = store.put_blob(b"x" * 1001, "x/y")
    # When, Then
    with pytest.raises(BadBlob, match="larger"):
        store.get_blob(sha256, 1000)
    assert len(store.get_blob(sha256, 1001)) == 1001


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_a_hash_names_a_blob(store: Store, name: str) -> None:
    with pytest.raises(BadBlob):
        store.get_blob(name, 100)


def test_a_result_lies_under_the_date_of_its_job(store: Store) -> None:
    # Given
    data = b"a picture"
    sha256 = hashlib.sha256(data).hexdigest()
    # When: it is written twice, as a worker that lost the reply would
    key = store.put_result(JOB, 2, data, {"seed": 7, "prompt": "ein Schloß"}, sha256)
    again = store.put_result(JOB, 2, data, {"prompt": "ein Schloß", "seed": 7}, sha256)
    # Then
    assert key == again == store.result_key(JOB, 2, sha256) == f"jobs/2024/12/01/{JOB}/2-{sha256[:8]}.png"
    assert keys(store) == [key.removesuffix("png") + "json", key]
    sidecar = store.client.get_object(Bucket=store.bucket, Key=key.removesuffix("png") + "json")["Body"].read()
    assert json.loads(sidecar) == {"seed": 7, "prompt": "ein Schloß"}
    head = store.client.head_object(Bucket=store.bucket, Key=key)
    assert (head["ContentType"], head["Metadata"]) == ("image/png", {"sha256": sha256})


@pytest.mark.parametrize(
    "job", ["", "x", "../../x", JOB.upper(), "{" + JOB + "}", "urn:uuid:" + JOB, "9b2f0c5e-6f0e-4c56-a2a8-0d8d0a4a3f10"]
)
def test_only_the_id_of_a_job_has_results(store: Store, job: str) -> None:
    with pytest.raises(NotFound):
        store.put_result(job, 0, b"x", {}, "0" * 64)


def test_a_presigned_url_is_read_without_credentials(store: Store) -> None:
    # Given
    sha256 = store.put_blob(b"a picture", "image/png")
    # When
    status, body, headers = read(store.presign(store.blob_key(sha256)))
    # Then
    assert (status, body, headers["Content-Type"]) == (200, b"a picture", "image/png")
    assert "immutable" in headers["Cache-Control"]


def test_a_presigned_url_names_the_file_that_a_browser_saves(store: Store) -> None:
    # Given a name that would end the header if it were not encoded
    sha256 = store.put_blob(b"a picture", "image/png")
    # When
    url = store.presign(store.blob_key(sha256), filename='é "1"\r\nX: y.png')
    # Then
    status, _, headers = read(url)
    assert status == 200
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''%C3%A9%20%221%22%0D%0AX%3A%20y.png"
    assert headers["X"] is None


def test_a_changed_or_missing_signature_is_refused(store: Store) -> None:
    # Given
    first, second = store.put_blob(b"mine", "x/y"), store.put_blob(b"not mine", "x/y")
    url = store.presign(store.blob_key(first))
    assert read(url)[0] == 200
    # When, Then: another key, another life, another signature, none
    assert read(url.replace(store.blob_key(first), store.blob_key(second)))[0] == 403
    assert read(url.replace("X-Amz-Expires=900", "X-Amz-Expires=604800"))[0] == 403
    last = url[-1]
    assert read(url[:-1] + ("0" if last != "0" else "1"))[0] == 403
    assert read(url.partition("?")[0])[0] == 403
    put = urllib.request.Request(url, data=b"overwritten", method="PUT")  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as info:
        urllib.request.urlopen(put, timeout=10)  # noqa: S310
    assert info.value.code == 403


def test_a_presigned_url_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a URL that was signed two hours ago for one hour
    import botocore.auth

    sha256 = store.put_blob(b"old", "x/y")
    key = store.blob_key(sha256)
    assert read(store.presign(key))[0] == 200
    now = datetime.now(UTC).replace(tzinfo=None)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: now - timedelta(hours=2))
    url = store.presign(key)
    assert f"X-Amz-Date={now - timedelta(hours=2):%Y%m%dT%H}" in url
    # When, Then
    assert read(url)[0] == 403


def test_a_url_is_signed_for_the_host_that_clients_see(s3_settings: Settings) -> None:
    # Given an S3 server that clients reach under another name
    endpoint = str(s3_settings.s3_endpoint).replace("127.0.0.1", "localhost")
    store = Store(s3_settings.model_copy(update={"s3_public_endpoint": endpoint}))
    store.ensure_bucket()
    sha256 = store.put_blob(b"x", "x/y")
    # When
    url = store.presign(store.blob_key(sha256))
    # Then
    assert url.startswith(endpoint + "/")
    assert read(url)[:2] == (200, b"x")


def test_check_accepts_a_server_with_conditional_writes_and_leaves_nothing(store: Store) -> None:
    store.check()
    assert keys(store) == []


def test_check_names_a_missing_bucket(s3_settings: Settings) -> None:
    with pytest.raises(Unavailable) as info:
        Store(s3_settings).check()
    assert "FARM_BUCKET" in info.value.hint


def test_check_refuses_a_server_that_ignores_the_condition(store: Store) -> None:
    # Given a client that loses the condition on its way, as servers without conditional writes ignore it
    store.client.meta.events.register(
        "before-sign.s3.PutObject", lambda request, **_: request.headers.__delitem__("If-None-Match")
    )
    # When, Then
    with pytest.raises(FarmError) as info:
        store.check()
    assert info.value.code == "unsupported_server"
    assert keys(store) == []


def test_whether_anything_can_be_read(store: Store, s3_settings: Settings) -> None:
    # Given an empty bucket, then one with objects, one of them empty
    store.read_any()
    overwrite(store, "a", b"")
    store.read_any()
    store.put_blob(b"x", "x/y")
    store.read_any()
    # When there is no bucket, Then
    with pytest.raises(Unavailable):
        Store(s3_settings.model_copy(update={"bucket": "no-such-bucket"})).read_any()


def test_ensure_bucket_twice_is_once(s3_settings: Settings) -> None:
    # Given
    store = Store(s3_settings)
    # When
    store.ensure_bucket()
    sha256 = store.put_blob(b"kept", "x/y")
    store.ensure_bucket()
    # Then
    assert store.get_blob(sha256, 10) == b"kept"


def test_a_missing_bucket_is_no_missing_blob(s3_settings: Settings) -> None:
    with pytest.raises(Unavailable):
        Store(s3_settings).get_blob("0" * 64, 10)
    with pytest.raises(Unavailable):
        Store(s3_settings).put_blob(b"x", "x/y")


def test_a_wrong_key_is_unavailable_and_names_no_host(s3_settings: Settings) -> None:
    # Given
    from pydantic import SecretStr

    store = Store(s3_settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    # When
    with pytest.raises(Unavailable) as info:
        store.put_blob(b"x", "x/y")
    # Then
    assert "AWS_SECRET_ACCESS_KEY" in info.value.hint
    assert "127.0.0.1" not in info.value.message + info.value.hint


def test_a_server_that_is_not_there_is_unavailable(s3_settings: Settings) -> None:
    store = Store(s3_settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"}))
    with pytest.raises(Unavailable) as info:
        store.exists("0" * 64)
    assert "127.0.0.1" not in info.value.message + info.value.hint


def test_the_environment_of_aws_is_enough(s3_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given no connection file, but AWS's own variables
    assert s3_settings.s3_access_key
    assert s3_settings.s3_secret_key
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(s3_settings.s3_endpoint))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_settings.s3_access_key.get_secret_value())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_settings.s3_secret_key.get_secret_value())
    store = Store(Settings.load(bucket=s3_settings.bucket))
    # When
    store.ensure_bucket()
    # Then
    assert store.get_blob(store.put_blob(b"x", "x/y"), 10) == b"x"


def test_importing_the_store_does_not_import_boto3() -> None:
    program = "import sys, farm.store; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
