"""Does the page expect of the API what its document says?"""

from __future__ import annotations

import re
from typing import Any

import pytest

from farm.api.app import make_app
from farm.api.page import VIEWS
from farm.settings import Settings
from tests.e2e.rig import ROOT

SOURCES = ROOT / "farm" / "ui" / "src"
TYPES = (SOURCES / "lib" / "types.ts").read_text()
INTERFACE = re.compile(r"export interface (\w+)(?: extends (\w+))? \{\n(.*?)\n\}", re.DOTALL)
FIELD = re.compile(r"^  (\w+)(\?)?: (.+);$", re.MULTILINE)
OWN = {"Schema", "ChainSpec", "Snapshot"}
"""What the document has no schema of its own for: JSON Schema itself, a chain file, and what an event holds."""
FOUND = {name: (base, FIELD.findall(body)) for name, base, body in INTERFACE.findall(TYPES)}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found: dict[str, Any] = make_app(Settings.load()).openapi()["components"]["schemas"]
    return found


def test_each_interface_is_found() -> None:
    assert len(FOUND) == TYPES.count("export interface ") > 20


@pytest.mark.parametrize("name", sorted(set(FOUND) - OWN))
def test_every_field_that_the_page_reads_is_told(schemas: dict[str, Any], name: str) -> None:
    told = schemas[name]["properties"]
    base, fields = FOUND[name]
    if base:
        fields = [*fields, *FOUND[base][1]]
    assert [field for field, _, _ in fields if field not in told] == []
    for field, _, type_ in fields:
        kinds = {one.get("type") for one in (told[field].get("anyOf") or [told[field]])}
        # What may be null there is null here, and the other way round
        assert ("null" in kinds) == type_.endswith("| null"), field


def test_the_views_are_those_that_are_served() -> None:
    route = (SOURCES / "lib" / "route.svelte.ts").read_text()
    (views,) = re.findall(r"VIEWS = \[(.*?)\] as const", route)
    assert re.findall(r'"(\w+)"', views) == list(VIEWS)


def test_nothing_is_asked_of_elsewhere() -> None:
    """No font, script, style or picture comes from another host, and no style or script is inline."""
    for path in [*SOURCES.rglob("*"), SOURCES.parent / "index.html"]:
        if path.suffix in (".svelte", ".ts", ".css", ".html"):
            text = path.read_text()
            assert not re.search(r"https?://(?!127\.0\.0\.1)", text.replace("http://www.w3.org/2000/svg", "")), path
            assert not re.search(r"\bstyle=[\"']|@html|\son\w+=\"", text), path
