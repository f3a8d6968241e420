"""Can everybody use the page: by keyboard, with a screen reader, in both themes, on a phone?"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from farm.dataset.asking import carry_out
from tests.dataset.farms import asked, fed
from tests.e2e.rig import ROOT
from tests.test_recall import A1111, png
from tests.ui.conftest import DROP, Dashboard
from tests.ui.test_quarantine import held

AXE = ROOT / "farm" / "ui" / "node_modules" / "axe-core" / "axe.min.js"
"""Comes with the packages that the page is built with."""
GRAVE = ("serious", "critical")
ODD_ROWS: Any = {
    "name": "odd.csv", "mimeType": "text/csv", "buffer": b"prompt,steps,mood\na pear,2,calm\na plum,-1,wild\n"
}  # fmt: skip
"""A table of which one row is wrong."""
PHONE = {"width": 390, "height": 844}
NARROW = 320
"""The narrowest that everything must fit in without scrolling sideways, CSS pixels. Source: WCAG 2.2, 1.4.10."""
THERE = {
    "": "[aria-label=Stages] [role=listitem]", "queue": "[aria-label=Jobs] [role=listitem], .empty",
    "gallery": "[data-at], .empty", "sweeps": ".run, [aria-label=Grid], .empty", "workers": "tbody td",
    "settings": "[aria-label=Tokens] td", "quarantine": "[aria-label^='Case '], [aria-label='The case'], .empty",
    "jobs": "[role=tabpanel] :is(.track, pre, td), .empty",
    "datasets": ".one, [aria-label='How far it is'], .button:has([type=file]), .empty",
}  # fmt: skip
"""What each view shows of what it asked for, or says where there is none of it."""
CUT = """
() => [...document.querySelectorAll("main .frame img")].filter((one) => one.offsetParent).map((one) => {
  const [whole, frame] = [one.getBoundingClientRect(), one.closest(".frame").getBoundingClientRect()];
  return Math.max(whole.width - frame.width, whole.height - frame.height);
})
"""
"""By how much each picture in sight is larger than its frame, pixels."""


@pytest.fixture(scope="module")
def drawn(dashboard: Dashboard) -> dict[str, str]:
    """A done job that kept its stages' pictures, a run, and a job that failed: what views have to show."""
    farm = dashboard.rig.farm
    run = farm.run("a pear", chain="refine", seed=3, count=2, steps=2, keep="preview", tags=["starred", "fruit"])
    for job in run:
        job.wait(120)
    cancelled = farm.render("a quince", chain="txt", steps=150)
    cancelled.cancel()
    fed(dashboard.rig, "drawn", "prompt,label\n" + "".join(f"a pear {row},{row}\n" for row in range(5)))
    asked(dashboard.rig, "refused", "prompt,steps\na pear,-1\na plum,x\n")
    carry_out(farm, "refused", lambda: False)
    case = held(dashboard, "the process ended with signal 9", "MemoryError")
    return {"job": run[0].id, "run": run[0].record.run, "cancelled": cancelled.id, "held": case.execution}


def views(drawn: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Every view by name, with its address."""
    yield from {
        "generate": "/", "queue": "/queue", "job": f"/jobs/{drawn['job']}",
        "compare": f"/jobs/{drawn['job']}?compare=1",
        "recipe": f"/jobs/{drawn['job']}?tab=recipe", "events": f"/jobs/{drawn['cancelled']}?tab=events",
        "gallery": "/gallery", "picture": f"/gallery?open={drawn['job']}", "sweeps": "/sweeps",
        "grid": f"/sweeps?run={drawn['run']}", "datasets": "/datasets", "new-dataset": "/datasets?new=1",
        "dataset": "/datasets/drawn", "refused-dataset": "/datasets/refused",
        "workers": "/workers", "settings": "/settings", "quarantine": "/quarantine",
        "case": f"/quarantine/{drawn['held']}", "nothing": "/jobs/none",
    }.items()  # fmt: skip


def settled(page: Page) -> None:
    """Waits until what the view asked for is there."""
    page.wait_for_load_state("load")
    there = THERE[urlsplit(page.url).path.split("/")[1]]
    page.locator(f"main :is({there}):visible").first.wait_for()
    expect(page.get_by_text(re.compile("^(Asking the farm|Looking for)"))).to_have_count(0)


def findings(page: Page) -> list[str]:
    """What axe-core finds of weight; its rules are those of WCAG 2.2, A and AA."""
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = page.evaluate(
        "() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
    )
    return [
        f"{one['id']} ({one['impact']}): {json.dumps([node['html'][:160] for node in one['nodes'][:3]])}"
        for one in found["violations"]
        if one["impact"] in GRAVE
    ]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_nothing_of_weight_is_found_on_any_view(
    dashboard: Dashboard, drawn: dict[str, str], scheme: str, tmp_path: Path
) -> None:
    watched = dashboard.open("/", color_scheme=scheme)
    page, found = watched.page, dict[str, list[str]]()
    for name, path in views(drawn):
        page.goto(dashboard.url + path)
        settled(page)
        if name == "generate":
            page.get_by_role("button", name="Parameters of stage 1").click()
        if name == "new-dataset":
            page.locator("input[type=file]").first.set_input_files(ODD_ROWS)
            page.get_by_role("region", name="Wrong rows among the first").wait_for()
        page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page="dataset" in name)
        found[name] = findings(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    found["help"] = findings(page)
    assert {name: one for name, one in found.items() if one} == {}
    assert not watched.trouble


def test_the_login_has_nothing_of_weight(dashboard: Dashboard) -> None:
    page = dashboard.browser.new_page()
    page.goto(dashboard.url)
    page.get_by_label("Token").wait_for()
    assert findings(page) == []
    # When a wrong token is given, Then it is said so
    page.get_by_label("Token").fill("farm_no")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")
    page.close()


def test_what_is_looked_at_on_the_way_fits_a_phone(dashboard: Dashboard, drawn: dict[str, str], tmp_path: Path) -> None:
    watched = dashboard.open("/queue")
    page = watched.page
    page.set_viewport_size(PHONE)
    for width in (PHONE["width"], NARROW):
        page.set_viewport_size({**PHONE, "width": width})
        for name in (
            "queue", "gallery", "settings", "sweeps", f"sweeps?run={drawn['run']}", f"jobs/{drawn['job']}", "datasets",
            "datasets/drawn", "datasets?new=1",
        ):  # fmt: skip
            page.goto(f"{dashboard.url}/{name}")
            settled(page)
            if name == "datasets?new=1":
                page.locator("input[type=file]").first.set_input_files(ODD_ROWS)
                page.get_by_role("region", name="Wrong rows among the first").wait_for()
            page.screenshot(path=tmp_path / f"{name.replace('/', '-')}-{width}.png", full_page="dataset" in name)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, name
    # And the form, with all that a picture may say of a stage, in every width
    page.goto(dashboard.url)
    expect(page.get_by_label(re.compile("^Stage 4: upscale"))).to_be_visible()
    page.evaluate(DROP, [base64.b64encode(png(parameters=A1111)).decode(), "a1111.png"])
    expect(page.get_by_text("The form is filled")).to_be_visible()
    for width in (NARROW, 1000, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        card = page.get_by_label(re.compile("^Stage 1: text2img")).bounding_box()
        assert card
        assert card["x"] + card["width"] <= (width if width < 900 else width / 2), width
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.set_viewport_size(PHONE)
    page.goto(f"{dashboard.url}/queue")
    expect(page.get_by_role("listitem").filter(has_text="a quince").first).to_be_visible()


def test_a_picture_is_shown_whole(dashboard: Dashboard, drawn: dict[str, str]) -> None:
    watched = dashboard.open("/", dashboard.token(owner="whole"))
    page = watched.page
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_label("Chain", exact=True).select_option("txt")
    page.get_by_label("Prompt", exact=True).fill("a square")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    expect(page.get_by_label("Results").get_by_role("status").filter(has_text="done").first).to_be_visible()
    for path in ("/", f"/jobs/{drawn['job']}"):
        page.goto(dashboard.url + path)
        page.wait_for_function(
            "() => [...document.images].some((one) => one.src.endsWith('/artifacts/0') && one.naturalWidth)"
        )
        cut = page.evaluate(CUT)
        assert cut
        assert max(cut) <= 1, path
    assert not watched.trouble


def test_an_address_that_nothing_has_is_said_to_be_none(dashboard: Dashboard) -> None:
    watched = dashboard.open("/workers")
    page = watched.page
    for path in ("/nowhere", "/sweeps/zzz"):
        answer = page.goto(dashboard.url + path)
        assert answer
        assert answer.status == 404
        expect(page.get_by_role("heading", name="No such page")).to_be_visible()
    page.goto(f"{dashboard.url}/queue/")
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
    assert not watched.trouble


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_line_of_the_chart_is_told_from_its_ground(dashboard: Dashboard, scheme: str) -> None:
    # Given as many queues as there are colours
    queues = {f"queue {at}": [at, 8 - at] for at in range(8)}
    told = {"minutes": ["2026-03-01T12:00:00Z", "2026-03-01T12:01:00Z"], "queues": queues}
    watched = dashboard.open("/settings", color_scheme=scheme)
    page = watched.page
    page.route("**/api/v1/throughput?*", lambda route: route.fulfill(json=told))
    page.goto(f"{dashboard.url}/workers")
    # The legend has each line's colour
    marks = page.locator(".u-legend .u-series:not(:first-child) .u-marker")
    expect(marks).to_have_count(8)
    shades = marks.evaluate_all("all => all.map((one) => getComputedStyle(one).borderTopColor)")
    ground = page.locator(".card", has=marks).evaluate("one => getComputedStyle(one).backgroundColor")
    # Then each is at 3:1 or more. Source: WCAG 2.2, 1.4.11
    assert len(set(shades)) == 8
    low = {shade: ratio for shade in shades if (ratio := contrast(shade, ground)) < 3}
    assert low == {}
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble


def contrast(one: str, other: str) -> float:
    """How bright the brighter of two colours is against the other. Source: WCAG 2.2, contrast ratio."""
    dark, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """How bright `rgb(r, g, b)` is, 0 to 1. Source: WCAG 2.2, relative luminance."""
    parts = [int(found) / 255 for found in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_keyboard_alone_is_enough(dashboard: Dashboard, drawn: dict[str, str]) -> None:
    watched = dashboard.open("/")
    page = watched.page
    expect(page.get_by_label(re.compile("^Stage 4: "))).to_be_visible()
    # Stages move
    page.get_by_role("button", name="Parameters of stage 2").focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.get_by_label(re.compile("^Stage 1: img2img"))).to_be_visible()
    expect(page.get_by_role("button", name="Parameters of stage 1")).to_be_focused()
    page.keyboard.press("Alt+ArrowDown")
    expect(page.get_by_label(re.compile("^Stage 1: text2img"))).to_be_visible()
    expect(page.get_by_role("button", name="Parameters of stage 2")).to_be_focused()
    # And go, without the focus getting lost
    page.get_by_role("button", name="Copy stage 2").press("Enter")
    page.get_by_role("button", name="Remove stage 3").press("Enter")
    expect(page.get_by_role("button", name="Remove stage 3")).to_be_focused()
    # Words weigh more or less
    field = page.get_by_label("Prompt", exact=True)
    field.fill("a red apple")
    field.select_text()
    page.keyboard.press("Control+ArrowUp")
    expect(field).to_have_value("(a red apple:1.1)")
    # And the chain still fits: only stages that know weights are told of them
    expect(page.get_by_text("1 picture, 4 stages")).to_be_visible()
    page.keyboard.press("Control+ArrowDown")
    expect(field).to_have_value("a red apple")
    # Views and help have keys
    page.get_by_role("link", name="Queue").focus()
    page.keyboard.press("3")
    expect(page).to_have_url(re.compile("/gallery$"))
    page.keyboard.press("Shift+?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    # A picture opens, moves on and closes
    page.locator("[data-at]").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    first = page.url
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(first)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Picture")).to_be_hidden()
