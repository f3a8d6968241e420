"""The README's tables say what the code says. `python -m tests.test_readme` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from farm.api.app import make_app
from farm.api.courier import Patience
from farm.catalog import Catalog
from farm.chain import parse_chain
from farm.errors import CODES
from farm.plan import plan
from farm.sampler import SAMPLERS
from farm.settings import PhaseLimits, Settings
from farm.snapshot import BASE
from farm.webhooks import TOPICS
from workers.demo.family import WORDS

README = Path(__file__).parents[1] / "README.md"
TAGS = (
    "jobs",
    "runs",
    "events",
    "artifacts",
    "uploads",
    "datasets",
    "farm",
    "quarantine",
    "session",
    "health",
    "tokens",
)
"""The order in which the calls are told."""
METHODS = ("get", "post", "put", "patch", "delete")


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


def calls_table() -> str:
    """One row per call of the API, in the order of its tags and addresses; the first sentence of what it says."""
    document = make_app(Settings.load()).openapi()
    rows = []
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            (tag,) = told["tags"]
            about = told["description"].replace("\n", " ").partition(". ")[0].removesuffix(".")
            row = f"| `{method.upper()} {_below(path)}` | {about} |"
            rows.append((TAGS.index(tag), path, METHODS.index(method), row))
    return "\n".join(["| call | what it does |", "|---|---|", *(row for *_, row in sorted(rows))])


def _below(path: str) -> str:
    """The address as it is told: below the API's, with the names of objects in capitals."""
    return re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), path.removeprefix(f"{BASE}/"))


def section(title: str) -> str:
    """The table under a heading of the README."""
    found = re.search(rf"^## {title}$.*?^(\|.*?)\n\n", README.read_text("utf-8"), re.M | re.S)
    assert found, f"the README has a table under {title}"
    return found[1]


def test_the_settings_table_is_that_of_the_code() -> None:
    assert section("Settings") == settings_table()


def test_the_codes_table_is_that_of_the_code() -> None:
    assert section("Error codes") == codes_table()


def test_the_calls_table_is_that_of_the_api() -> None:
    assert section("API calls") == calls_table()


def test_every_anchor_the_readme_links_to_is_a_heading() -> None:
    text = README.read_text("utf-8")
    anchors = {re.sub(r"[^\w -]", "", line).replace(" ", "-").lower() for line in re.findall(r"^##+ (.*)$", text, re.M)}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert links
    assert not [link for link in links if link not in anchors]


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text("utf-8"))
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


def blocks(language: str) -> list[str]:
    """The README's code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)


def test_the_prompts_that_may_be_tried_are_in_the_words_of_the_demo_family() -> None:
    # Given every example but those for checkpoints that are to be pulled
    texts = [*blocks("sh"), *blocks("python"), *(text for text in blocks("yaml") if "sd15" not in text)]
    asked = r'(?:farm render |(?:farm|Farm\(\))\.(?:render|run)\()"(.*?)"|"prompt": "(.*?)"|prompt: ([^}"\n]+)'
    # When
    prompts = ["".join(found) for text in texts for found in re.findall(asked, text)]
    # Then
    assert len(prompts) >= 12
    assert {word for prompt in prompts for word in prompt.split()} <= set(WORDS)


def test_every_sampler_is_named() -> None:
    text = README.read_text("utf-8")
    assert [name for name in SAMPLERS if f"`{name}`" not in text] == []


def test_the_schedule_of_webhooks_is_that_of_the_code() -> None:
    # Given
    seconds = {"s": 1, "min": 60, "h": 3600}
    text = README.read_text("utf-8").replace("\n", " ")
    # When
    told = re.search(r"within (\d+) s comes again after (.*?);", text)
    # Then
    assert told
    assert int(told[1]) == Patience().timeout_s
    found = re.findall(r"(\d+) (s|min|h)\b", told[2])
    assert [int(number) * seconds[unit] for number, unit in found] == list(Patience().pauses_s)
    assert "nothing for three days" in text
    assert Patience().disable_s == 3 * 86400
    assert all(f"`{topic}`" in text for topic in TOPICS)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_chain_of_the_readme_is_possible(text: str) -> None:
    catalog = Catalog.load(Settings(catalog=None))
    assert plan(parse_chain(yaml.safe_load(text)), catalog, Settings(catalog=None))


def test_the_catalog_of_the_readme_is_one(tmp_path: Path) -> None:
    # Given its example as a file
    (text,) = blocks("toml")
    (tmp_path / "mine.toml").write_text(text, "utf-8")
    # When
    catalog = Catalog.load(Settings(catalog=tmp_path / "mine.toml"))
    # Then it has what the example gives
    assert catalog.checkpoints["mine"].recommended.num_inference_steps
    assert catalog.checkpoints["mine"].switches.channels_last
    assert catalog.adapters["my-style"].type == "lora"
    assert catalog.spaces["my-latents"].preview


@pytest.mark.parametrize("path", sorted((README.parent / "farm/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_says_what_it_needs(path: Path) -> None:
    # Given
    text = path.read_text("utf-8")
    stages = parse_chain(yaml.safe_load(text)).stages
    # When
    told = {line.split()[2]: set(line.split()[3:]) - {"pull", "--stage"} for line in text.split("\n")[1:3]}
    # Then
    adapters = {name for stage in stages for name, _ in stage.adapters().values()}
    assert told["models"] == {str(stage.checkpoint) for stage in stages} | adapters
    assert told["worker"] == {f"{stage.kind}={stage.checkpoint}" for stage in stages}


if __name__ == "__main__":
    text = README.read_text("utf-8")
    for title, table in (
        ("Settings", settings_table()),
        ("API calls", calls_table()),
        ("Error codes", codes_table()),
    ):
        text = re.sub(
            rf"(^## {title}$.*?\n)(SETTINGS|CALLS|CODES|\|.*?)\n\n",
            lambda m, t=table: f"{m[1]}{t}\n\n",
            text,
            flags=re.M | re.S,
        )
    README.write_text(text, "utf-8")
