"""The README's tables say what the code says. `python -m tests.test_readme` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from farm.errors import CODES
from farm.settings import PhaseLimits, Settings

README = Path(__file__).parents[1] / "README.md"


def settings_table() -> str:
    """One row per variable: name, default, meaning."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    models: list[type[BaseSettings]] = [Settings, PhaseLimits]
    for model in models:
        for name, field in model.model_fields.items():
            if not field.exclude:
                prefix = model.model_config["env_prefix"]
                rows.append(
                    f"| `{prefix}{name.upper()}` | {_default(name, field.get_default())} | {field.description} |"
                )
    return "\n".join(rows)


def _default(name: str, value: Any) -> str:
    if name == "data":
        return "`~/.local/share/latent-farm`"
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    return "" if value in (None, "") else f"`{value}`"


def codes_table() -> str:
    """One row per error code."""
    return "\n".join(["| code | meaning |", "|---|---|", *(f"| `{code}` | {text} |" for code, text in CODES.items())])


def section(title: str) -> str:
    """The table under a heading of the README."""
    found = re.search(rf"^## {title}$.*?^(\|.*?)\n\n", README.read_text("utf-8"), re.M | re.S)
    assert found, f"the README has a table under {title}"
    return found[1]


def test_the_settings_table_is_that_of_the_code() -> None:
    assert section("Settings") == settings_table()


def test_the_codes_table_is_that_of_the_code() -> None:
    assert section("Error codes") == codes_table()


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8"))
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


if __name__ == "__main__":
    text = README.read_text("utf-8")
    for title, table in (("Settings", settings_table()), ("Error codes", codes_table())):
        text = re.sub(
            rf"(^## {title}$.*?\n)(SETTINGS|CODES|\|.*?)\n\n",
            lambda m, t=table: f"{m[1]}{t}\n\n",
            text,
            flags=re.M | re.S,
        )
    README.write_text(text, "utf-8")
