"""Where do the bytes lie, under which name, and are they still the ones that were written?

One bucket of an S3 server::

    <prefix>blobs/sha256/ab/<hash>                        any bytes under their SHA-256, written once
    <prefix>jobs/YYYY/MM/DD/<job>/<index>-<hash8>.png     a result under a readable name, and its sidecar `.json`

A blob's name says what its bytes must be, so whoever reads it checks it, and whoever makes it again may replace a
broken one: the same name can only ever mean the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

from farm.errors import BadBlob, FarmError, NotFound, Unavailable
from farm.s3 import connect, reaching
from farm.settings import Settings

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.client import S3Client

IMMUTABLE = "public, max-age=31536000, immutable"
"""Cache header of what never changes under its name. Source: RFC 8246; a year is the "never" of RFC 2616 §14.21."""

PART_BYTES = 64 * 2**20
"""A file of more is sent in parts of so many bytes. Source: S3 takes 5 GB in one PUT, and 10,000 parts."""
NAMING = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID",
    "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)  # fmt: skip
"""Variables of AWS that say where the store is, or who asks it. Source: boto3's guide to credentials."""
SENDERS = 4
"""Parts that are sent at the same time; each is in memory meanwhile."""


class Store:
    """The farm's artifacts. One per process: its client is shared by threads, not by forks.

    With `patience_s` a request to a silent server ends after so many seconds, instead of three long tries. A server
    may take a large body slowly, but has to answer soon after its last byte.
    """

    def __init__(self, settings: Settings, patience_s: float | None = None) -> None:
        self._settings, self._patience_s = settings, patience_s
        self.bucket, self.prefix = settings.bucket, settings.prefix

    # names

    def blob_key(self, sha256: str) -> str:
        """The key of the blob with this hash.

        Raises:
            BadBlob: this is not a SHA-256 in lower-case hex.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BadBlob("a blob's name is 64 lower-case hex digits")
        return f"{self.prefix}blobs/sha256/{sha256[:2]}/{sha256}"

    def result_key(self, job_id: str, index: int, sha256: str) -> str:
        """The readable key of result `index` of a job; the date is that of the job's id, a UUIDv7.

        Source: RFC 9562 §5.7: the first 48 bits are Unix milliseconds.

        Raises:
            NotFound: this is not the id of a job.
        """
        try:
            parsed = UUID(job_id)
        except ValueError:
            parsed = None
        if parsed is None or parsed.version != 7 or str(parsed) != job_id:
            raise NotFound("there is no job of this id: job ids are UUIDs of version 7")
        day = datetime.fromtimestamp((parsed.int >> 80) / 1000, UTC)
        return f"{self.prefix}jobs/{day:%Y/%m/%d}/{job_id}/{index}-{sha256[:8]}.png"

    def uri(self, key: str) -> str:
        """The `s3://` name of a key."""
        return f"s3://{self.bucket}/{key}"

    def blob_uri(self, sha256: str) -> str:
        """The `s3://` name of a blob."""
        return self.uri(self.blob_key(sha256))

    # blobs

    def put_blob(self, data: bytes, content_type: str) -> str:
        """The SHA-256 (hex) of `data`, which now lies in the store. Eight writers of the same bytes make one object.

        Where the name is taken, what lies there is read back; if it is not the same bytes, it is replaced by them.

        Raises:
            Unavailable: the store does not answer.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        arguments: dict[str, Any] = {
            "Bucket": self.bucket,
            "Key": self.blob_key(sha256),
            "Body": data,
            "ContentType": content_type,
            "CacheControl": IMMUTABLE,
            "Metadata": {"sha256": sha256},
        }
        with reaching("write a blob"):
            if self.put_first(arguments):
                return sha256
        try:
            self.get_blob(sha256, len(data))
        except BadBlob:
            # A broken or just deleted blob must not stay so: its producer would run again and again for nothing.
            with reaching("write a blob"):
                self.client.put_object(**arguments)
        return sha256

    def get_blob(self, sha256: str, max_bytes: int) -> bytes:
        """The bytes of a blob, checked against its name. Other bytes are read once more: the way may have damaged them.

        Raises:
            BadBlob: it is gone, larger than `max_bytes` (then it is not downloaded), or its bytes are other ones.
            Unavailable: the store does not answer.
        """
        for _ in range(2):
            data = self._read_blob(sha256, max_bytes)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        raise BadBlob(f"the bytes of the blob {sha256[:12]} are not those that were written")

    def _read_blob(self, sha256: str, max_bytes: int) -> bytes:
        try:
            with reaching("read a blob"):
                found = self.client.get_object(Bucket=self.bucket, Key=self.blob_key(sha256))
                # `with` on the body itself would give the stream below it, whose errors are not botocore's.
                with closing(found["Body"]) as body:
                    if found["ContentLength"] > max_bytes:
                        raise BadBlob(f"the blob {sha256[:12]} is larger than the {max_bytes} bytes it may have")
                    return body.read()
        except NotFound:
            raise BadBlob(f"the blob {sha256[:12]} is gone") from None

    def exists(self, sha256: str) -> bool:
        """Whether there is a blob of this hash (its bytes are not read).

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            with reaching("look for a blob"):
                self.client.head_object(Bucket=self.bucket, Key=self.blob_key(sha256))
        except NotFound:
            return False
        return True

    # objects that others wrote

    def about(self, bucket: str, key: str) -> tuple[int, str]:
        """The bytes that an object of any bucket has, and the ETag of what it is now.

        Raises:
            NotFound: there is none.
            Unavailable: the store does not answer, or refuses.
        """
        with reaching("look at an object"):
            found = self.client.head_object(Bucket=bucket, Key=key)
        return found["ContentLength"], found["ETag"]

    def body(self, bucket: str, key: str, start: int, etag: str) -> StreamingBody:
        """The bytes of that object from `start` on, to be read and closed; errors of botocore come out of reading.

        Raises:
            NotFound: it is gone.
            Unavailable: the store does not answer, or refuses, for instance because the object is another one now.
        """
        with reaching("read an object"):
            return self.client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-", IfMatch=etag)["Body"]

    def put_file(self, bucket: str, key: str, path: Path, content_type: str = "application/octet-stream") -> None:
        """Writes a file of any size to any bucket; a reader sees all of it or what was there before.

        Raises:
            Unavailable: the store does not answer, or refuses.
        """
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=SENDERS)
        with reaching("write a file"), path.open("rb") as file:
            self.client.upload_fileobj(file, bucket, key, ExtraArgs={"ContentType": content_type}, Config=parts)

    # results

    def put_result(self, job_id: str, index: int, data: bytes, sidecar: Mapping[str, Any], sha256: str) -> str:
        """The readable key of the final PNG `data`, written with its sidecar; the same input writes the same bytes.

        Raises:
            NotFound: this is not the id of a job.
            Unavailable: the store does not answer.
        """
        key = self.result_key(job_id, index, sha256)
        beside = json.dumps(sidecar, sort_keys=True, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
        shared: dict[str, Any] = {"Bucket": self.bucket, "CacheControl": IMMUTABLE, "Metadata": {"sha256": sha256}}
        with reaching("write a result"):
            self.client.put_object(
                Key=key.removesuffix(".png") + ".json", Body=beside, ContentType="application/json", **shared
            )
            self.client.put_object(Key=key, Body=data, ContentType="image/png", **shared)
        return key

    def results_of(self, job_id: str) -> list[str]:
        """The keys of all that lies in a job's readable folder.

        Raises:
            NotFound: this is not the id of a job.
            Unavailable: the store does not answer.
        """
        folder = self.result_key(job_id, 0, "").rpartition("/")[0] + "/"
        with reaching("list results"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
            return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def delete_results(self, keys: Sequence[str]) -> None:
        """Deletes the objects at `keys`; those that are gone already are passed over.

        Raises:
            Unavailable: the store does not answer.
        """
        for key in keys:
            with reaching("delete a result"):
                self.client.delete_object(Bucket=self.bucket, Key=key)

    # thumbnails

    def thumbnail(self, sha256: str, side: int) -> bytes | None:
        """The thumbnail of a picture, of `side` pixels, if one was made.

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            with reaching("read a thumbnail"):
                found = self.client.get_object(Bucket=self.bucket, Key=self._thumbnail_key(sha256, side))
                with closing(found["Body"]) as body:
                    return body.read()
        except NotFound:
            return None

    def put_thumbnail(self, sha256: str, side: int, data: bytes) -> None:
        """Writes the WebP `data` as the thumbnail of a picture; whoever makes it makes the same.

        Raises:
            Unavailable: the store does not answer.
        """
        with reaching("write a thumbnail"):
            self.client.put_object(
                Bucket=self.bucket, Key=self._thumbnail_key(sha256, side), Body=data, ContentType="image/webp",
                CacheControl=IMMUTABLE,
            )  # fmt: skip

    def _thumbnail_key(self, sha256: str, side: int) -> str:
        return f"{self.prefix}thumbs/{sha256}-{side}.webp"

    @property
    def endpoint(self) -> str:
        """The S3 server's address, as clients see it: signed URLs begin with it.

        Raises:
            Unavailable: S3 is not configured.
        """
        return str(self._public.meta.endpoint_url)

    def presign(self, key: str, filename: str | None = None) -> str:
        """A URL that reads `key` for `presign_s` seconds without credentials; saved as `filename` where one is given.

        Raises:
            Unavailable: there are no credentials to sign with.
        """
        arguments = {"Bucket": self.bucket, "Key": key}
        if filename is not None:
            # Source: RFC 6266 §4.1 and RFC 8187: the starred form carries any character, percent-encoded.
            arguments["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        with reaching("sign a URL"):
            return self._public.generate_presigned_url(
                "get_object", Params=arguments, ExpiresIn=self._settings.presign_s
            )

    # the bucket

    def ensure_bucket(self) -> None:
        """There is a bucket afterwards.

        Raises:
            Unavailable: the store does not answer, or the bucket belongs to somebody else.
        """
        try:
            with reaching("look for the bucket"):
                self.client.head_bucket(Bucket=self.bucket)
        except NotFound:
            region = self.client.meta.region_name
            place: dict[str, Any] = {}
            if region not in ("us-east-1", "aws-global"):  # the one region that refuses to be named
                place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
            with reaching("make the bucket"):
                try:
                    self.client.create_bucket(Bucket=self.bucket, **place)
                except self.client.exceptions.BucketAlreadyOwnedByYou:
                    return

    def check(self) -> None:
        """Nothing, if the store can be written and read and keeps the first of two writers.

        Raises:
            Unavailable: the store does not answer, or refuses.
            FarmError: (`unsupported_server`) it ignores `If-None-Match`, or gives back other bytes.
        """
        key = f"{self.prefix}checks/{secrets.token_hex(16)}"
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "Body": b"first"}
        try:
            with reaching("write a test object"):
                self.client.head_bucket(Bucket=self.bucket)
                first = self.put_first(arguments)
                second = self.put_first({**arguments, "Body": b"second"})
                kept = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
                self.client.delete_object(Bucket=self.bucket, Key=key)
        except NotFound:
            raise Unavailable(f"there is no bucket {self.bucket}", hint="create it, or set FARM_BUCKET") from None
        if not first or second or kept != b"first":
            raise FarmError(
                "the S3 server lets a second writer replace what the first one wrote",
                code="unsupported_server",
                hint="the farm needs conditional writes (`If-None-Match: *`), as AWS and SeaweedFS have them",
            )

    def read_any(self) -> None:
        """Nothing, if the bucket is empty or the first object in it can be read: its bytes, not only its name.

        Raises:
            Unavailable: the store does not answer, or answers without its disks.
        """
        with suppress(NotFound), reaching("read an object"):  # not found: deleted since it was listed
            listed = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
            for entry in listed.get("Contents", []):
                with closing(self.client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"]) as body:
                    body.read(1)

    # S3

    @property
    def is_named(self) -> bool:
        """Whether anything says where the store is; where nothing does, nothing was ever written. Nobody is asked.

        AWS itself needs a bucket's name that nobody else has, so there FARM_BUCKET says it, if no variable of AWS does.
        """
        files = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
        return bool(
            self._settings.s3_endpoint
            or self.bucket != Settings.model_fields["bucket"].default
            or any(os.environ.get(name) for name in NAMING)
            or any(os.path.exists(os.path.expanduser(os.environ.get(name, path))) for name, path in files)
        )

    @cached_property
    def client(self) -> S3Client:
        """The S3 client of this process."""
        return connect(self._settings, self._settings.s3_endpoint, self._patience_s)

    @cached_property
    def _public(self) -> S3Client:
        """The client that signs URLs: the host is part of what is signed."""
        public = self._settings.s3_public_endpoint
        return connect(self._settings, public, self._patience_s) if public else self.client

    def put_first(self, arguments: dict[str, Any]) -> bool:
        """Whether this writer was the first to write the key; otherwise nothing was written."""
        return self._put_if({**arguments, "IfNoneMatch": "*"})

    def put_over(self, arguments: dict[str, Any], etag: str) -> bool:
        """Whether the object of this ETag was there still, and was replaced; otherwise nothing was written."""
        return self._put_if({**arguments, "IfMatch": etag})

    def _put_if(self, arguments: dict[str, Any]) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client.put_object(**arguments)
        except ClientError as error:
            # 409: two conditional writers at the same time. Source: AWS S3 API, PutObject, ConditionalRequestConflict.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return False
            raise
        return True
