"""Can the operator make, list and remove the tokens of callers from a terminal?"""

from __future__ import annotations

import json
import re

import pytest

from farm.settings import Settings
from tests.test_cli import Run, run

__all__ = ["run"]


def test_tokens_are_madelisted_and_removed_on_the_command_line(
    run: Run,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", settings.redis_url.get_secret_value())
    # When
    made = run("--json", "token", "create", "--owner", "hal", "--days", "2").envelope["data"]
    # Then
    assert re.fullmatch(r"farm_[0-9a-f]{12}_[\w-]{43}", made["token"])
    assert made["scopes"] == ["read", "submit"]
    (listed,) = run("--json", "token", "ls").envelope["data"]
    assert listed == {key: value for key, value in made.items() if key != "token"}
    assert made["token"].split("_", 2)[2] not in json.dumps(listed)
    assert run("token", "rm", made["id"]).status == 0
    assert run("--json", "token", "ls").envelope["data"] == []
    assert run("--json", "token", "rm", made["id"]).code == "not_found"
    assert run("--json", "token", "create", "--owner", "A B").code == "invalid_field"
    for days in ("-1", "0", "nan", "9999"):
        wrong = run("token", "create", "--owner", "hal", "--days", days)
        assert (wrong.status, wrong.err.startswith("error: --days")) == (2, True), wrong.err
    # And one may say how many open jobs its owner has with it
    few = run("--json", "token", "create", "--owner", "hal", "--max-open-jobs", "5").envelope["data"]
    assert (made["max_open_jobs"], few["max_open_jobs"]) == (None, 5)
    assert run("--json", "token", "create", "--owner", "hal", "--max-open-jobs", "-1").code == "usage"
