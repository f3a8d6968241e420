"""How is an S3 server reached, and what does it mean when it is not?

boto3 reads AWS's own variables; a one-machine farm gives endpoint and keys in its connection file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from farm.errors import NotFound, Unavailable
from farm.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


def connect(settings: Settings, endpoint: str | None, patience_s: float | None = None) -> S3Client:
    """A client for `endpoint`, or for what AWS's variables say; `patience_s` as in `farm.store.Store`.

    Raises:
        Unavailable: S3 is not configured.
    """
    # Imported here: boto3 takes longer to import than most commands of the CLI run.
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from botocore.handlers import add_expect_header

    connect_s, read_s, tries = 2.0, 20.0, 3  # all tries together stay below the limit of a fetch
    if patience_s is not None:
        connect_s, read_s, tries = 0.4 * patience_s, 0.6 * patience_s, 1
    given: dict[str, Any] = {}
    proxies: dict[str, str] | None = None
    if settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key:
        given = {
            "aws_access_key_id": settings.s3_access_key.get_secret_value(),
            "aws_secret_access_key": settings.s3_secret_key.get_secret_value(),
            "region_name": "us-east-1",
        }
        proxies = {}  # this machine's own server: not through the proxy that a variable names
    config = Config(
        signature_version="s3v4",
        proxies=proxies,
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": tries},
        # Servers other than AWS stumble over the new default checksums. The payload's SHA-256 is part of the
        # signature instead, which every server checks, and readers hash what they get.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # With an endpoint of its own, "auto" puts the bucket into the path, on AWS into the host.
        s3={"payload_signing_enabled": True, "addressing_style": "auto"},
    )
    try:
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config, **given)
    except (BotoCoreError, ValueError) as error:
        raise Unavailable(f"S3 is not configured: {type(error).__name__}", hint="check the AWS_* variables") from error
    if patience_s is not None:
        # It waits a second for a leave to send the body, which a silent server does not give.
        client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


@contextmanager
def reaching(purpose: str) -> Iterator[None]:
    """Errors of botocore as the farm's own, without the host they came from."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = error.response.get("Error", {}).get("Code", "")
        if status == 404 and (code != "NoSuchBucket" or error.operation_name == "HeadBucket"):
            raise NotFound("the store has no such object") from error
        hint = {
            403: "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may do in the bucket",
            404: "create the bucket, or set FARM_BUCKET",
        }.get(status or 0, "")
        raise Unavailable(f"the store refused to {purpose}: {code or status}", hint=hint) from error
    except BotoCoreError as error:
        hint = "start `farm up`, or check AWS_ENDPOINT_URL_S3, AWS_REGION and the credentials"
        raise Unavailable(f"the store could not {purpose}: {type(error).__name__}", hint=hint) from error
