"""Does the Gallery act on the pictures that are meant, while new ones come and answers are late?"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from farm.handle import JobHandle
from tests.ui.conftest import WAIT_MS, Dashboard, four

expect.set_options(timeout=WAIT_MS)
NONE = '{"status": 404, "code": "not_found", "detail": "there is no such job"}'
AWAY = '{"status": 503, "code": "unavailable", "detail": "no ledger"}'
SOON_MS = 500
"""What an answer that has come would have changed by now, milliseconds."""
GO = "(path) => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')); }"
"""Follows a link of the page."""


@pytest.fixture(scope="module")
def drawn(dashboard: Dashboard) -> list[JobHandle]:
    return four(dashboard.rig.farm, "a fig")


def tile(page: Page, prompt: str, seed: int) -> Locator:
    return page.get_by_role("button", name=f"{prompt}, seed {seed}", exact=True)


def test_those_between_two_are_picked_though_new_ones_come(dashboard: Dashboard, drawn: list[JobHandle]) -> None:
    watched = dashboard.open("/gallery")
    page = watched.page
    # Given one that is picked, and two that come on top of it
    tile(page, "a fig", 3).click(modifiers=["Control"])
    new = dashboard.rig.farm.run("a new one", chain="txt", seed=1, count=2, steps=1)
    for seed in (1, 2):
        expect(tile(page, "a new one", seed)).to_be_visible()
    # When another is clicked with Shift, Then those between the two are picked, and no others
    tile(page, "a fig", 2).click(modifiers=["Shift"])
    expect(page.get_by_text("2 picked")).to_be_visible()
    for seed in (2, 3):
        expect(tile(page, "a fig", seed)).to_have_attribute("aria-pressed", "true")
    # And so with their boxes, and in the queue
    page.keyboard.press("Escape")
    page.get_by_label("Pick a fig, seed 3", exact=True).check()
    new[0].delete()
    expect(tile(page, "a new one", 1)).to_have_count(0)
    page.get_by_label("Pick a fig, seed 1", exact=True).click(modifiers=["Shift"])
    expect(page.get_by_text("3 picked")).to_be_visible()
    page.goto(f"{dashboard.url}/queue?state=done")
    fold = page.get_by_role("listitem").filter(has_text="run of 4 jobs")
    fold.get_by_role("button", name="Jobs of the run").click()
    page.get_by_label(f"Pick the job {drawn[2].id}").check()
    fresh = dashboard.rig.farm.render("on top", chain="txt", steps=1)
    expect(page.get_by_label(f"Pick the job {fresh.id}")).to_be_visible()
    page.get_by_label(f"Pick the job {drawn[1].id}").click(modifiers=["Shift"])
    expect(page.get_by_text("2 picked")).to_be_visible()
    expect(page.get_by_label(f"Pick the job {fresh.id}")).not_to_be_checked()
    assert not watched.trouble


def test_a_day_is_the_users_own(dashboard: Dashboard, drawn: list[JobHandle]) -> None:
    # Given a picture of five in the morning in Tokyo, when it was still the day before in Greenwich
    watched = dashboard.open("/settings", timezone_id="Asia/Tokyo")
    page = watched.page

    def early(route: Route) -> None:
        answer = route.fetch()
        told = answer.json()
        for job in told["jobs"]:
            job["created"] = "2026-03-01T20:00:00Z"
        route.fulfill(response=answer, json=told)

    page.route("**/api/v1/jobs?*", early)
    # When what is not older than that morning is asked for, Then it is there
    page.goto(f"{dashboard.url}/gallery?since=2026-03-02")
    expect(tile(page, "a fig", 1)).to_be_visible()
    # And with the next day it is not
    page.get_by_label("Not older than").fill("2026-03-03")
    expect(tile(page, "a fig", 1)).to_have_count(0)
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble


def test_a_late_answer_leaves_another_view_as_it_is(dashboard: Dashboard, drawn: list[JobHandle]) -> None:
    watched, held = dashboard.open("/settings"), list[Route]()
    page = watched.page
    run = drawn[0].record.run
    # Given the viewer of a picture that the list has not, whose answer takes long
    page.route(f"**/api/v1/jobs/{drawn[0].id}", lambda route: held.append(route))
    with page.expect_request(f"**/api/v1/jobs/{drawn[0].id}"):
        page.goto(f"{dashboard.url}/gallery?text=nothing+is+called+so&open={drawn[0].id}")
    # When another view is shown by then, Then a refusal changes nothing there
    page.get_by_role("link", name="Queue", exact=True).click()
    fold = page.get_by_role("listitem").filter(has_text="run of 4 jobs")
    fold.get_by_role("button", name="Jobs of the run").click()
    expect(page).to_have_url(re.compile(f"open={run}"))
    with page.expect_response(f"**/api/v1/jobs/{drawn[0].id}"):
        held.pop().fulfill(status=404, content_type="application/json", body=NONE)
    page.wait_for_timeout(SOON_MS)
    expect(page).to_have_url(re.compile(f"open={run}"))
    # When another picture is shown by then, Then it stays
    with page.expect_request(f"**/api/v1/jobs/{drawn[0].id}"):
        page.goto(f"{dashboard.url}/gallery?text=nothing+is+called+so&open={drawn[0].id}")
    page.evaluate(GO, f"/gallery?text=nothing+is+called+so&open={drawn[3].id}")
    viewer = page.get_by_role("dialog", name="Picture")
    expect(viewer).to_contain_text("seed 4")
    older = page.request.get(f"{dashboard.url}/api/v1/jobs/{drawn[0].id}").text()
    with page.expect_response(f"**/api/v1/jobs/{drawn[0].id}"):
        held.pop().fulfill(content_type="application/json", body=older)
    page.wait_for_timeout(SOON_MS)
    expect(viewer).to_contain_text("seed 4")
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble


def test_a_picture_is_not_given_up_while_the_farm_is_away(dashboard: Dashboard, drawn: list[JobHandle]) -> None:
    watched = dashboard.open("/settings")
    page = watched.page
    address = f"**/api/v1/jobs/{drawn[0].id}"
    page.route(address, lambda route: route.fulfill(status=503, content_type="application/json", body=AWAY))
    page.goto(f"{dashboard.url}/gallery?text=nothing+is+called+so&open={drawn[0].id}")
    # Then that is told, and the address still names it
    expect(page.get_by_text("no ledger")).to_be_visible()
    expect(page).to_have_url(re.compile(f"open={drawn[0].id}"))
    page.unroute(address)
    # And of one that there is no more the address says nothing
    page.goto(f"{dashboard.url}/gallery?open=none")
    expect(page).not_to_have_url(re.compile("open="))
    assert not watched.trouble


def test_what_the_list_has_not_has_no_neighbours(dashboard: Dashboard, drawn: list[JobHandle]) -> None:
    other = dashboard.rig.farm.render("a plum", chain="txt", seed=9, steps=1)
    other.wait(300)
    watched = dashboard.open(f"/gallery?text=fig&open={other.id}")
    page = watched.page
    viewer = page.get_by_role("dialog", name="Picture")
    expect(viewer).to_contain_text("a plum")
    expect(page.get_by_label("a fig, seed 1", exact=True)).to_be_attached()
    # Then no button and no key leads from it to pictures that are not beside it
    for name in ("Newer", "Older"):
        expect(viewer.get_by_role("button", name=name)).to_be_disabled()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(SOON_MS)
    expect(viewer).to_contain_text("a plum")
    assert not watched.trouble
