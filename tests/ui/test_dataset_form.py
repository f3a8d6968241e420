"""Does the form of a dataset keep what a person said, and take no file that was left behind?"""

from __future__ import annotations

import re

from playwright.sync_api import Route, expect

from tests.ui.conftest import WAIT_MS, Watched
from tests.ui.test_datasets import drop, form

expect.set_options(timeout=WAIT_MS)


def test_another_chain_is_taken_back(watched: Watched) -> None:
    page = watched.page
    form(page)
    drop(page, ("rows.csv", "prompt\na pear\n"))
    menu = page.get_by_label("Every row runs")
    undo = page.get_by_role("button", name="Undo")
    # Given a chain as it is, Then another takes nothing away
    menu.select_option("refine")
    page.get_by_text("Its stages (2)").click()
    expect(undo).to_have_count(0)
    # When a stage of it was changed, and another is taken, Then the change comes back
    page.get_by_role("button", name="Parameters of stage 2").click()
    strength = page.get_by_role("region", name="Stage 2: img2img").get_by_label("strength", exact=True)
    strength.fill("0.75")
    strength.press("Tab")
    menu.select_option("txt")
    expect(page.get_by_text("Its stages (1)")).to_be_visible()
    undo.click()
    expect(page.get_by_text("Its stages (2)")).to_be_visible()
    expect(menu).to_have_value("refine")
    expect(page.get_by_role("region", name="Stage 2: img2img")).to_contain_text("strength 0.75")


def test_an_upload_ends_with_the_form_that_it_was_for(watched: Watched) -> None:
    page = watched.page
    form(page)
    held: list[Route] = []
    page.route(re.compile("/datasets/files"), lambda route: route.continue_() if held else held.append(route))
    # Given a file that is on its way
    drop(page, ("large.csv", "prompt\na pear\n"))
    expect(page.get_by_label("Upload")).to_be_visible()
    # When its form is left, Then it is stopped, and that is said
    with page.expect_event("requestfailed", lambda one: "large.csv" in one.url, timeout=10_000):
        page.get_by_role("link", name="Queue").click()
    expect(page.get_by_text("The upload of a file of rows is stopped")).to_be_visible()
    # And another that is chosen then is what is planned
    page.go_back()
    drop(page, ("small.csv", "prompt\na fig\n"))
    expect(page.get_by_role("cell", name="a fig")).to_have_count(2)
    expect(page.get_by_label("Name", exact=True)).to_have_value("small")
