"""Are long lists whole, in their order, and quiet while nothing happens?"""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.ui.conftest import WAIT_MS, Dashboard

expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def waiting(dashboard: Dashboard) -> dict[str, str]:
    """Two runs of more jobs than a page has, and one job that was submitted before both; nobody draws them."""
    farm = dashboard.rig.farm
    for worker in farm.ledger.workers():
        farm.ledger.drain(worker.worker)
    before = farm.render("the first of all", chain="txt")
    runs = [farm.run(f"run {name}", chain="txt", count=230) for name in ("one", "two")]
    return {"first": before.id, "one": str(runs[0][0].record.run), "two": str(runs[1][0].record.run)}


def test_what_stands_behind_a_long_run_is_found(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    watched = dashboard.open("/queue")
    page = watched.page
    # Runs fold, and what was submitted before them is there all the same
    expect(page.get_by_text("run of 230 jobs").first).to_be_visible()
    expect(page.get_by_text("run of 230 jobs")).to_have_count(2)
    first = page.get_by_role("listitem").filter(has_text="the first of all")
    expect(first).to_be_visible()
    # Its place is told, and why it waits
    expect(first).to_contain_text("next in line")
    expect(first).to_contain_text("no worker of text2img.tiny may take it now: they are drained")
    # And a run's jobs are all there when they are scrolled through
    page.goto(f"{dashboard.url}/queue?run={waiting['one']}")
    box = page.get_by_role("list", name="Jobs")
    seen: set[str] = set()
    for _ in range(600):
        seen |= set(box.get_by_role("checkbox").evaluate_all("all => all.map((one) => one.ariaLabel)"))
        if len(seen) == 230:
            break
        # A slow machine may draw no frame between two looks: what was passed over is seen the next time around.
        box.evaluate(
            "(one) => { const end = one.scrollTop + one.clientHeight >= one.scrollHeight - 1;"
            " one.scrollTop = end ? 0 : one.scrollTop + 200; }"
        )
        page.wait_for_timeout(30)
    assert len(seen) == 230
    assert not watched.trouble


def test_many_are_steered_after_a_question(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    watched = dashboard.open("/queue")
    page = watched.page
    farm = dashboard.rig.farm
    fold = page.get_by_role("listitem").filter(has_text="run two")
    fold.get_by_role("button", name="Pause the run").click()
    expect(fold).to_contain_text("230 paused")
    # Clear asks first
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("dialog").get_by_role("button", name="No").click()
    assert farm.ledger.run(waiting["one"]).states == {"queued": 230}
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel everything").click()
    expect(page.get_by_text("461 jobs are cancelled.")).to_be_visible()
    assert farm.ledger.run(waiting["one"]).states == {"cancelled": 230}
    # And Prune forgets what has ended
    page.get_by_role("button", name="Prune").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("There is no job yet.")).to_be_visible()
    assert not watched.trouble


def test_a_view_of_what_has_ended_asks_for_nothing(dashboard: Dashboard) -> None:
    # Given a job that has ended
    job = dashboard.rig.farm.render("a still life", chain="txt")
    job.cancel()
    watched = dashboard.open(f"/jobs/{job.id}")
    page = watched.page
    expect(page.get_by_role("tabpanel").get_by_role("row").nth(1)).to_be_visible()
    page.wait_for_timeout(1000)
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if f"/jobs/{job.id}" in one.url else None)
    # When nothing happens for as long as several looks would take, Then none is made
    page.wait_for_timeout(2000)
    assert asked == []
    assert not watched.trouble
