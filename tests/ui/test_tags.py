"""Are pictures starred, tagged and found again, on two pages at once, and kept?"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest
from playwright.sync_api import Locator, Page, expect

from farm.api.readings import Readings
from farm.handle import JobHandle
from farm.ledger import Ledger
from farm.records import JobRecord
from farm.tags import MOST
from tests.e2e.rig import until
from tests.ui.conftest import WAIT_MS, Dashboard, Watched, four, shut
from tests.ui.test_access import NARROW, PHONE, findings, settled

expect.set_options(timeout=WAIT_MS)
SLOWER = "() => { const now = performance.now.bind(performance); performance.now = () => now() / 20; }"
KEEP_PRESSED = """
(star) => {
  window.pressed = [];
  const keep = () => window.pressed.push(star.getAttribute("aria-pressed"));
  new MutationObserver(keep).observe(star, { attributeFilter: ["aria-pressed"] });
}
"""


@pytest.fixture(scope="module")
def drawn(dashboard: Dashboard) -> list[JobHandle]:
    return four(dashboard.rig.farm, "a pear")


@pytest.fixture
def plain(drawn: list[JobHandle]) -> list[JobHandle]:
    """The same, without any tag."""
    for job in drawn:
        if tags := job.tags:
            job.tag(remove=tags)
    return drawn


@pytest.fixture
def gallery(dashboard: Dashboard, plain: list[JobHandle]) -> Iterator[Watched]:
    """An admin's gallery; nothing may have gone wrong in it at the end."""
    found = dashboard.open("/gallery")
    expect(tile(found.page, 4)).to_be_visible()
    yield found
    assert not found.trouble
    shut(found.page.context)


def tile(page: Page, seed: int) -> Locator:
    return page.get_by_role("button", name=f"a pear, seed {seed}", exact=True)


def star(page: Page, seed: int) -> Locator:
    return page.get_by_role("button", name=f"Star seed {seed} of a pear", exact=True)


def is_starred(page: Page, seed: int, on: bool) -> None:
    expect(star(page, seed)).to_have_attribute("aria-pressed", str(on).lower())


def test_a_star_is_on_every_page_and_stays(dashboard: Dashboard, gallery: Watched, plain: list[JobHandle]) -> None:
    # Given two pages of the same gallery
    other = dashboard.open("/gallery")
    page = gallery.page
    is_starred(other.page, 2, False)
    # When a tile is starred on one
    tile(page, 2).hover()
    star(page, 2).click()
    # Then both show it, also after a reload
    is_starred(page, 2, True)
    is_starred(other.page, 2, True)
    other.page.reload()
    is_starred(other.page, 2, True)
    assert plain[1].tags == ("starred",)
    # And who looks at the starred ones alone asks the farm for them, and the address says so
    asked: list[str] = []
    other.page.on("request", lambda one: asked.append(one.url) if "/jobs?" in one.url else None)
    other.page.get_by_role("button", name="Starred").click()
    expect(tile(other.page, 3)).to_have_count(0)
    expect(tile(other.page, 2)).to_be_visible()
    assert "tag=starred" in asked[0]
    expect(other.page).to_have_url(re.compile(r"[?&]tag=starred"))
    other.page.reload()
    expect(tile(other.page, 2)).to_be_visible()
    expect(tile(other.page, 3)).to_have_count(0)
    # And one that is starred elsewhere comes, one whose star is taken off goes
    tile(page, 3).focus()
    page.keyboard.press(".")
    expect(tile(other.page, 3)).to_be_visible()
    tile(page, 2).focus()
    page.keyboard.press(".")
    expect(tile(other.page, 2)).to_have_count(0)
    expect(tile(other.page, 3)).to_be_visible()
    is_starred(page, 2, False)
    assert not other.trouble


def test_a_picture_is_starred_and_tagged_where_it_is_looked_at(
    dashboard: Dashboard, gallery: Watched, plain: list[JobHandle]
) -> None:
    page = gallery.page
    tile(page, 4).click()
    viewer = page.get_by_role("dialog", name="Picture")
    pressed = viewer.get_by_role("button", name="Star", exact=True)
    expect(pressed).to_have_attribute("aria-pressed", "false")
    # When, by its key
    page.keyboard.press(".")
    expect(pressed).to_have_attribute("aria-pressed", "true")
    # And tags are added, several at once
    field = viewer.get_by_label("Add a tag")
    field.fill("fruit, Birne")
    field.press("Enter")
    expect(viewer.get_by_role("link", name="Birne")).to_be_visible()
    expect(field).to_have_value("")
    until(lambda: plain[3].tags == ("starred", "fruit", "Birne"), 60)
    field.fill("two")
    page.keyboard.press(".")  # typed, no star
    expect(field).to_have_value("two.")
    field.fill("")
    # Then the job's own view shows the same, and takes one off
    page.goto(f"{dashboard.url}/jobs/{plain[3].id}")
    tags = page.get_by_role("group", name="Tags")
    expect(tags.get_by_role("link")).to_have_text(["fruit", "Birne"])
    tags.get_by_role("button", name="Take off the tag fruit").click()
    expect(tags.get_by_role("link")).to_have_text(["Birne"])
    page.keyboard.press(".")
    expect(tags.get_by_role("button", name="Star", exact=True)).to_have_attribute("aria-pressed", "false")
    until(lambda: plain[3].tags == ("Birne",), 60)
    page.reload()
    expect(tags.get_by_role("link")).to_have_text(["Birne"])
    # And the tag leads to all that have it
    tags.get_by_role("link", name="Birne").click()
    expect(tile(page, 4)).to_be_visible()
    expect(tile(page, 3)).to_have_count(0)
    expect(page.get_by_label("Tag", exact=True)).to_have_value("Birne")
    page.get_by_label("Tag", exact=True).select_option("every tag")
    expect(tile(page, 3)).to_be_visible()


def test_what_is_looked_at_among_the_starred_can_have_its_star_back(gallery: Watched, plain: list[JobHandle]) -> None:
    plain[0].tag(["starred"])
    page = gallery.page
    page.get_by_role("button", name="Starred").click()
    tile(page, 1).click()
    pressed = page.get_by_role("dialog", name="Picture").get_by_role("button", name="Star", exact=True)
    for on in ("false", "true", "false"):
        page.keyboard.press(".")
        expect(pressed).to_have_attribute("aria-pressed", on)
    page.keyboard.press("Escape")
    expect(page.get_by_text("No picture is like that.")).to_be_visible()
    expect(tile(page, 1)).to_have_count(0)
    until(lambda: plain[0].tags == (), 60)


def test_what_was_told_before_a_change_does_not_undo_it(
    gallery: Watched, plain: list[JobHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an event that is long on its way, and a page whose second lasts twenty
    told, go, read = threading.Event(), threading.Event(), Readings.read

    async def late(readings: Readings, *how: Any) -> list[JobRecord]:
        found = await read(readings, *how)
        if any("starred" in record.tags for record in found) and not told.is_set():
            told.set()
            assert await anyio.to_thread.run_sync(go.wait, 60)
        return found

    monkeypatch.setattr(Readings, "read", late)
    page = gallery.page
    page.evaluate(SLOWER)
    star(page, 4).evaluate(KEEP_PRESSED)
    tile(page, 4).focus()
    # When a star is put on, and taken off before its event comes
    page.keyboard.press(".")
    is_starred(page, 4, True)
    until(told.is_set, 60)
    with page.expect_response(lambda one: one.url.endswith("/tags") and one.request.method == "PATCH"):
        page.keyboard.press(".")
    is_starred(page, 4, False)
    go.set()
    # Then it never comes back: what was told after it is shown
    plain[0].tag(["starred"])
    is_starred(page, 1, True)
    assert page.evaluate("window.pressed") == ["true", "false"]


def test_a_change_is_made_where_the_page_is_left_at_once(
    gallery: Watched, plain: list[JobHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a farm that takes its time
    go, tag = threading.Event(), Ledger.tag

    def late(ledger: Ledger, *how: Any) -> None:
        assert go.wait(60)
        tag(ledger, *how)

    monkeypatch.setattr(Ledger, "tag", late)
    page = gallery.page
    # When two pictures are starred, and the page is left before the farm has answered for the first
    for seed in (4, 3):
        tile(page, seed).focus()
        page.keyboard.press(".")
        is_starred(page, seed, True)
    page.goto("about:blank")
    go.set()
    # Then
    until(lambda: [job.tags for job in plain] == [(), (), ("starred",), ("starred",)], 60)


def test_picked_pictures_are_starred_and_tagged_together(gallery: Watched, plain: list[JobHandle]) -> None:
    page = gallery.page
    for seed in (4, 3, 2):
        tile(page, seed).click(modifiers=["Control"])
    bar = page.get_by_role("group", name="What to do with the picked pictures")
    bar.get_by_role("button", name="Star").click()
    for seed, on in ((4, True), (3, True), (2, True), (1, False)):
        is_starred(page, seed, on)
    bar.get_by_label("Tags for the picked pictures").fill("fruit green")
    bar.get_by_role("button", name="Put on").click()
    expect(page.get_by_label("Tag", exact=True).get_by_role("option", name="green (3)")).to_be_attached()
    assert [set(job.tags) for job in plain[1:]] == [{"starred", "fruit", "green"}] * 3
    bar.get_by_label("Tags for the picked pictures").fill("green")
    bar.get_by_role("button", name="Take off").click()
    bar.get_by_role("button", name="Take the stars off").click()
    expect(page.get_by_label("Tag", exact=True).get_by_role("option", name="starred")).to_have_count(0)
    assert [job.tags for job in plain] == [(), *[("fruit",)] * 3]
    # And with the key, too
    tile(page, 4).focus()
    page.keyboard.press(".")
    is_starred(page, 2, True)
    until(lambda: [job.tags for job in plain] == [(), *[("fruit", "starred")] * 3], 60)
    # And whoever deletes them is told of the stars
    bar.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("3 of them are starred.")
    page.get_by_role("dialog").get_by_role("button", name="No").click()


def test_a_refusal_is_told_and_undone(dashboard: Dashboard, gallery: Watched, plain: list[JobHandle]) -> None:
    page = gallery.page
    # Given a farm that refuses
    page.route(
        "**/tags",
        lambda route: (
            route.fulfill(
                status=503, content_type="application/problem+json", body='{"status": 503, "detail": "no ledger"}'
            )
            if route.request.method == "PATCH"
            else route.continue_()
        ),
    )
    tile(page, 1).focus()
    page.keyboard.press(".")
    expect(page.get_by_text("no ledger")).to_be_visible()
    is_starred(page, 1, False)
    page.unroute("**/tags")
    # Given one with as many tags as it may have
    plain[0].tag([f"t{i}" for i in range(MOST)])
    page.keyboard.press(".")
    expect(page.get_by_text("would have more than 16 tags")).to_be_visible()
    is_starred(page, 1, False)
    # When it is starred with others, Then they are, and it is not
    for seed in (1, 2):
        tile(page, seed).click(modifiers=["Control"])
    page.keyboard.press(".")
    expect(page.get_by_text("1 job stays as before")).to_be_visible()
    is_starred(page, 2, True)
    is_starred(page, 1, False)
    # And what is no tag stays in the field to be mended
    tile(page, 3).click()
    field = page.get_by_label("Add a tag")
    field.fill("<b>")
    field.press("Enter")
    expect(page.get_by_text("letters, digits")).to_be_visible()
    expect(field).to_have_value("<b>")


def test_pruning_leaves_what_has_a_star(dashboard: Dashboard, plain: list[JobHandle]) -> None:
    # Given somebody's two done jobs, one of them starred
    token = dashboard.token("read", "submit", owner="pruner")
    farm = dashboard.rig.farm
    jobs = farm.submit(farm.jobs_of(farm.chain("txt", prompt="to be pruned", steps=1, seed=5), count=2), "pruner")
    for job in jobs:
        job.wait(300)
    jobs[0].tag(["starred"])
    watched = dashboard.open("/queue", token)
    page = watched.page
    # When they prune
    page.get_by_role("button", name="Prune").click()
    expect(page.get_by_role("dialog")).to_contain_text("What has a star or a tag is kept.")
    page.get_by_role("dialog").get_by_role("button", name="Delete it").click()
    # Then
    expect(page.get_by_text("1 job is deleted. 1 job with a star or tag is kept.")).to_be_visible()
    assert jobs[0].state == "done"
    assert farm.ledger.gone([jobs[1].id]) == [jobs[1].id]
    assert not watched.trouble


def test_who_may_only_read_sees_stars_and_changes_none(dashboard: Dashboard, plain: list[JobHandle]) -> None:
    farm = dashboard.rig.farm
    (job,) = farm.submit(farm.jobs_of(farm.chain("txt", prompt="looked at", steps=1, seed=6)), "reader")
    job.wait(300)
    job.tag(["starred", "fruit"])
    watched = dashboard.open("/gallery", dashboard.token("read", owner="reader"))
    page = watched.page
    expect(page.get_by_role("img", name="starred")).to_be_visible()
    page.get_by_role("button", name="looked at, seed 6").click()
    page.keyboard.press(".")
    viewer = page.get_by_role("dialog", name="Picture")
    expect(viewer.get_by_role("link", name="fruit")).to_be_visible()
    expect(viewer.get_by_label("Add a tag")).to_have_count(0)
    assert job.tags == ("starred", "fruit")
    assert not watched.trouble


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_stars_and_tags_are_for_everybody(dashboard: Dashboard, plain: list[JobHandle], scheme: str) -> None:
    # Given long tags and a star
    plain[3].tag(["starred", "x" * 40, "夕焼け" * 13, *(f"tag-{i}" for i in range(9))])
    for size in ({"width": 1400, "height": 900}, PHONE, {"width": NARROW, "height": 700}):
        watched = dashboard.open("/gallery?tag=starred", color_scheme=scheme)
        page = watched.page
        page.set_viewport_size(size)
        for path in ("/gallery?tag=starred", f"/gallery?open={plain[3].id}", f"/jobs/{plain[3].id}"):
            page.goto(dashboard.url + path)
            settled(page)
            if path == "/gallery?tag=starred":
                page.get_by_label(re.compile("^Pick ")).first.check()
            # Then
            assert findings(page) == []
            wide = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert wide[0] <= wide[1], (path, size)
        assert not watched.trouble
        page.context.close()
