"""What can be set, in which unit, and what is it if nobody sets it?

Every setting is a `FARM_*` variable; nothing else reads the environment. AWS's own variables configure S3 (boto3 reads
them). A farm started by `farm up` leaves a connection file in its data folder, so that commands in other terminals find
its servers without any variable: a variable wins over the file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from farm.errors import FarmError, InvalidJob

CONNECTION_FILE = "farm.json"
SHARED = ("catalog", "models", "safety", "safety_checker")
"""Settings that those who submit must have as the workers have them."""
_HTTP = re.compile(r"https?://[^\s/@]+(/\S*)?")


def _default_data() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "latent-farm"


class PhaseLimits(BaseSettings):
    """How long one phase of a stage may go without a progress mark before its child is killed, in seconds.

    Source: the slowest healthy case seen or estimated per phase (a 4096² VAE decode took 40 s), with a margin.
    """

    model_config = SettingsConfigDict(env_prefix="FARM_LIMIT_", env_ignore_empty=True, frozen=True, extra="ignore")

    load_s: float = Field(600, gt=0, description="reading a checkpoint and moving it to the device")
    fetch_s: float = Field(120, gt=0, description="reading the input from the store")
    encode_s: float = Field(120, gt=0, description="text and image encoding before the first step")
    step_s: float = Field(120, gt=0, description="one denoising step")
    decode_s: float = Field(300, gt=0, description="decoding latents to pixels")
    tile_s: float = Field(60, gt=0, description="decoding one tile, where a stage asks for tiles")
    upload_s: float = Field(120, gt=0, description="encoding the output and one try to write it to the store")
    idle_s: float = Field(60, gt=0, description="an idle child without a sign of life")

    @property
    def spool_s(self) -> float:
        """A result is written to the worker's disk in no more time than to the store."""
        return self.upload_s

    def of(self, phase: str) -> float:
        """The limit of `phase` in seconds."""
        return float(getattr(self, f"{phase}_s"))


class Settings(BaseSettings):
    """The farm's settings. Build it with `Settings.load()`."""

    model_config = SettingsConfigDict(env_prefix="FARM_", env_ignore_empty=True, frozen=True, extra="ignore")

    data: Path = Field(
        default_factory=_default_data,
        description="folder of the one-machine farm: servers' data, checkpoints, logs, connection file",
    )
    url: str = Field("", description="the farm elsewhere that commands and `connect` call")
    token: SecretStr = Field(SecretStr(""), description="the token for it, as `farm token create` printed it")
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis ≥ 7 or Valkey ≥ 8, AOF on; not a cluster"
    )
    namespace: str = Field("farm", pattern=r"^[a-z0-9-]{1,32}$", description="prefix of every key in Redis")
    bucket: str = Field("farm", pattern=r"^[a-z0-9.-]{3,63}$", description="S3 bucket")
    prefix: str = Field("", pattern=r"^([A-Za-z0-9._-]+/)*$", description="key prefix in the bucket, ends in /")
    s3_public_endpoint: str = Field(
        "", description="endpoint written into presigned URLs, where clients see another host"
    )
    presign_s: int = Field(900, gt=0, le=604800, description="life of a presigned URL, seconds")
    catalog: Path | None = Field(None, description="TOML or YAML file with further checkpoints and presets")
    models: Path | None = Field(None, description="folder of pulled checkpoints; default: models/ in the data folder")
    lease_s: float = Field(
        30, gt=0, description="a claim that is not renewed for so long is given to another worker, seconds"
    )
    tick_s: float = Field(1, gt=0, description="pause between two rounds of the reconciler, seconds")
    deaf_s: float = Field(
        5,
        gt=0,
        description="an idle child that hears no doorbell for so long, though some lie there, reconnects, seconds",
    )
    drain_grace_s: float = Field(
        25, ge=0, description="on SIGTERM a worker is gone within so long: its stage is done or given back, seconds"
    )
    safety: Literal["off", "tag", "blur", "refuse"] = Field(
        "off", description="what a worker does with a picture that its safety checker finds"
    )
    safety_checker: str = Field("safety-checker", description="the catalog's entry of that checker")
    deadline_s: float = Field(
        86400, gt=0, le=31536000, description="a job not done so long after its submit expires, seconds"
    )
    retention_s: int = Field(2592000, gt=0, description="ended jobs without a tag are kept for so long, seconds")
    crash_attempts: int = Field(3, ge=1, description="worker deaths in one stage before its recipe is quarantined")
    oom_attempts: int = Field(2, ge=1, description="out-of-memory errors in one stage before the job fails")
    lapse_attempts: int = Field(10, ge=1, description="lapsed leases of one stage before its recipe is quarantined")
    rewind_attempts: int = Field(2, ge=0, description="times a lost output is made again")
    isolate_failures: int = Field(
        3, ge=1, description="different stages in a row that fail on one worker before it is given nothing for a while"
    )
    isolate_s: float = Field(
        10,
        gt=0,
        le=1440,
        description="first pause of such a worker; doubles up to 60 times it until a stage succeeds, seconds",
    )
    backoff_s: float = Field(
        1, gt=0, description="first back-off after a transient failure; doubles, with full jitter, seconds"
    )
    backoff_max_s: float = Field(60, gt=0, description="longest back-off, seconds")
    max_side: int = Field(8192, ge=64, description="longest side of any image of a chain, pixels")
    max_area: int = Field(33554432, ge=4096, description="largest area of any image of a chain, pixels")
    max_upload_bytes: int = Field(26214400, gt=0, description="largest input image file, bytes")
    max_count: int = Field(10000, ge=1, description="most jobs in one run")
    max_open_jobs: int = Field(
        100000,
        ge=0,
        description="unended jobs of one owner, but datasets', where the token does not say otherwise; 0: no limit",
    )
    dataset_open: int = Field(
        4000, gt=0, description="samples of a dataset in the ledger at a time; two shards, if those have more"
    )
    max_fed_datasets: int = Field(
        4, ge=0, description="datasets of one owner that a feeder feeds at a time; the others wait; 0: any number"
    )
    max_dataset_bytes: int = Field(
        1 << 30, gt=0, le=5 << 30, description="largest file of rows for a dataset, bytes; S3 takes 5 GiB at once"
    )
    max_dataset_samples: int = Field(10_000_000, gt=0, description="samples of one dataset; more are not planned")
    dataset_metrics_port: int = Field(
        0, ge=0, le=65535, description="port of this machine at which a feeder of datasets tells Prometheus; 0: none"
    )
    max_pending: int = Field(2000000, ge=0, description="unended jobs of the whole farm; 0: no limit")
    rate_per_s: float = Field(
        10, ge=0, description="calls a second that may write, of one token of the API, in the long run; 0: any number"
    )
    rate_burst: int = Field(50, ge=1, description="such calls that may come at once")
    login_failures: int = Field(
        10, ge=0, description="wrong tokens that one address may send in a minute; 0: any number"
    )
    spool_bytes: int = Field(
        10 << 30,
        gt=0,
        description="finished results that may wait on a host's disk for the store; at most 80 % of the disk, bytes",
    )
    preview_s: float = Field(
        0.5, ge=0, description="shortest pause between two live pictures of a running stage, seconds; 0: none"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="device of a worker's child")
    torch_threads: int = Field(1, ge=1, description="torch threads of a worker on a CPU")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="prompts are never logged at info or above"
    )
    durability: Literal["everysec", "strict"] = Field(
        "everysec", description="AOF of the embedded Valkey: `strict` syncs every write before it is answered"
    )

    limits: PhaseLimits = Field(default_factory=PhaseLimits, exclude=True, description="FARM_LIMIT_* variables")
    s3_endpoint: str | None = Field(
        None, exclude=True, description="from the connection file; elsewhere AWS_ENDPOINT_URL_S3"
    )
    s3_access_key: SecretStr | None = Field(
        None, exclude=True, description="from the connection file; elsewhere AWS's own variable"
    )
    s3_secret_key: SecretStr | None = Field(
        None, exclude=True, description="from the connection file; elsewhere AWS's own variable"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url or _HTTP.fullmatch(url):
            return url
        bare = "://" not in url and _HTTP.fullmatch(f"http://{url}")
        near = f"http://{url} or https://{url}" if bare else "https://farm.example.org"
        raise ValueError(f"an address such as {near}")

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: SecretStr) -> SecretStr:
        if not re.match(r"rediss?://", url.get_secret_value()):
            raise ValueError("a URL that begins with redis:// or rediss://")
        parts = urlsplit(url.get_secret_value())
        try:
            _ = parts.port
        except ValueError:
            # What Python says of it would show a part of the password.
            raise ValueError("not a URL: in a password, write / as %2F, : as %3A, @ as %40, # as %23") from None
        if parts.fragment or not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError("a URL that ends in the number of the database, such as /0")
        for name, value in parse_qsl(parts.query):
            if not name.startswith("ssl_"):
                raise ValueError(
                    "its options are those of TLS only: ssl_ca_certs, ssl_certfile, ssl_keyfile and the like"
                )
            if name in {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"} and not os.path.isfile(value):
                raise ValueError(f"there is no file of the name that {name} gives")
        return url

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """The settings from `given`, the environment and the data folder's connection file, in this order.

        Raises:
            InvalidJob: (`invalid_field`) a variable holds what it cannot hold; names the variable.
        """
        try:
            given = {"limits": PhaseLimits(), **given}
            plain = cls(**given)
            if "redis_url" in plain.model_fields_set:
                return plain
            said = plain.model_fields_set
            found: dict[str, Any] = {
                key: value for key, value in read_connection(plain.data).items() if key not in said
            }
            return cls(**found, **given)
        except ValidationError as error:
            first = error.errors()[0]
            prefix = "FARM_LIMIT_" if error.title == PhaseLimits.__name__ else "FARM_"
            name = prefix + "_".join(str(part) for part in first["loc"]).upper()
            raise InvalidJob(f"{name}: {first['msg'].removeprefix('Value error, ')}", code="invalid_field") from None

    @property
    def models_dir(self) -> Path:
        """Where checkpoints lie."""
        return self.models or self.data / "models"

    @property
    def beat_s(self) -> float:
        """How often a running stage renews its lease, in seconds."""
        return self.lease_s / 3


def read_connection(data: Path) -> dict[str, str]:
    """What the connection file in `data` says of a running one-machine farm; empty where there is none."""
    try:
        found = dict(json.loads((data / CONNECTION_FILE).read_text()).items())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise FarmError(
            f"{data / CONNECTION_FILE} cannot be read", code="bad_file", hint="delete it and start `farm up` again"
        ) from error
    names = {"redis_url", "bucket", "s3_endpoint", "s3_access_key", "s3_secret_key", *SHARED}
    return {key: value for key, value in found.items() if key in names and isinstance(value, str)}
