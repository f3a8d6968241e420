"""Does every setting say what it is, does a wrong one name its variable, and which source wins?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from farm.errors import FarmError, InvalidJob
from farm.settings import PhaseLimits, Settings, read_connection

CONNECTION = {
    "redis_url": "redis://:secret@127.0.0.1:12345/0",
    "bucket": "local",
    "s3_endpoint": "http://127.0.0.1:12346",
    "s3_access_key": "key",
    "s3_secret_key": "hidden",
    "pid": 1,
}


def connect(data: Path, content: Any = CONNECTION) -> None:
    """Leaves a connection file in `data`."""
    data.mkdir(exist_ok=True)
    (data / "farm.json").write_text(json.dumps(content))


@pytest.mark.parametrize("model", [Settings, PhaseLimits])
def test_every_setting_has_a_description_and_times_have_a_unit(model: type[Settings] | type[PhaseLimits]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        if name.endswith("_s") and model is Settings:
            assert "second" in field.description, name
        if name.endswith("_bytes"):
            assert "bytes" in field.description, name


def test_the_defaults_are_allowed_values() -> None:
    settings = Settings()
    assert Settings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FARM_LEASE_S", "0"),
        ("FARM_LEASE_S", "soon"),
        ("FARM_BUCKET", "Not A Bucket"),
        ("FARM_PREFIX", "no-slash"),
        ("FARM_NAMESPACE", "a b"),
        ("FARM_DEVICE", "gpu"),
        ("FARM_DURABILITY", "maybe"),
        ("FARM_LOG_LEVEL", "verbose"),
        ("FARM_PRESIGN_S", "604801"),
        ("FARM_CRASH_ATTEMPTS", "0"),
        ("FARM_MAX_SIDE", "63"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv(name, value)
    # When, Then
    with pytest.raises(InvalidJob) as info:
        Settings.load()
    assert info.value.code == "invalid_field"
    assert re.match(rf"{name}: ", info.value.message)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://:SECRET@h:6379/0", "begins with redis://"),
        ("redis://:SECRET/b@h:6379/0", "%2F"),
        ("redis://:a/SECRET@h:6379/0", "%2F"),
        ("redis://:1/SECRET@h:6379/0", "number of the database"),
        ("redis://:a#SECRET@h:6379/0", "%23"),
        ("redis://:1#SECRET@h:6379/0", "number of the database"),
        ("redis://:1?SECRET=b@h:6379/0", "TLS only"),
        ("redis://h:SECRET/0", "not a URL"),
        ("redis://h:6379/SECRET", "number of the database"),
        ("redis://h:6379/0?password=SECRET", "TLS only"),
        ("rediss://h:6379/0?ssl_ca_certs=/SECRET", "no file of the name that ssl_ca_certs gives"),
    ],
)
def test_a_redis_url_that_cannot_be_meant_is_refused_untold(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", url)
    with pytest.raises(InvalidJob) as info:
        Settings.load()
    assert info.value.message.startswith("FARM_REDIS_URL: ")
    assert told in info.value.message
    assert "SECRET" not in repr(info.value) + info.value.hint


def test_a_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASE_S", "12.5")
    assert Settings.load().lease_s == 12.5


def test_what_is_given_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASE_S", "12.5")
    assert Settings.load(lease_s=3).lease_s == 3


def test_the_connection_file_leads_to_a_running_farm(tmp_path: Path) -> None:
    # Given
    connect(tmp_path)
    # When
    settings = Settings.load(data=tmp_path)
    # Then
    assert settings.redis_url.get_secret_value() == CONNECTION["redis_url"]
    assert settings.bucket == "local"
    assert settings.s3_endpoint == CONNECTION["s3_endpoint"]
    assert settings.s3_access_key
    assert settings.s3_secret_key
    assert settings.s3_secret_key.get_secret_value() == "hidden"


def test_a_variable_wins_over_the_connection_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    connect(tmp_path)
    monkeypatch.setenv("FARM_DATA", str(tmp_path))
    monkeypatch.setenv("FARM_REDIS_URL", "redis://elsewhere/0")
    # When
    settings = Settings.load()
    # Then: nothing of the file is mixed into a farm elsewhere
    assert settings.redis_url.get_secret_value() == "redis://elsewhere/0"
    assert settings.bucket == "farm"
    assert settings.s3_endpoint is None


def test_another_bucket_wins_over_the_connection_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    connect(tmp_path)
    monkeypatch.setenv("FARM_BUCKET", "mine")
    # When, Then
    assert Settings.load(data=tmp_path).bucket == "mine"


@pytest.mark.parametrize("missing", ["folder", "file"])
def test_without_a_connection_file_the_defaults_hold(tmp_path: Path, missing: str) -> None:
    data = tmp_path / "none" if missing == "folder" else tmp_path
    assert Settings.load(data=data) == Settings(data=data)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_damaged_connection_file_is_named(tmp_path: Path, content: bytes) -> None:
    # Given
    (tmp_path / "farm.json").write_bytes(content)
    # When, Then
    with pytest.raises(FarmError) as info:
        Settings.load(data=tmp_path)
    assert info.value.code == "bad_file"
    assert "farm.json" in info.value.message


def test_only_known_words_of_the_connection_file_are_taken(tmp_path: Path) -> None:
    connect(tmp_path, {**CONNECTION, "log_level": "debug", "s3_endpoint": 5})
    assert read_connection(tmp_path).keys() == {"redis_url", "bucket", "s3_access_key", "s3_secret_key"}


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    connect(tmp_path)
    settings = Settings.load(data=tmp_path)
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "secret@" not in text
        assert "hidden" not in text


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().lease_s = 1  # type: ignore[misc]


def test_checkpoints_lie_in_the_data_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert Settings(data=tmp_path).models_dir == tmp_path / "models"
    assert Settings(data=tmp_path, models=tmp_path / "weights").models_dir == tmp_path / "weights"


def test_each_phase_has_a_limit_that_a_variable_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LIMIT_STEP_S", "7")
    limits = Settings().limits
    assert limits.of("step") == 7
    assert all(limits.of(name.removesuffix("_s")) > 0 for name in PhaseLimits.model_fields)
