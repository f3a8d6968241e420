"""What does the page say while the farm does not answer?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Route, expect

from tests.ui.conftest import WAIT_MS, Dashboard, first_of

expect.set_options(timeout=WAIT_MS)
PROBLEM = json.dumps({"status": 503, "code": "unavailable", "detail": "no ledger"})
SOON_MS = 500
"""What an answer that has come would have changed by now, milliseconds."""

SHOWN = """
() => {
  const all = [...document.images].filter((one) => one.src.includes("/thumbnail"));
  return all.length > 1 && all.every((one) => one.naturalWidth && getComputedStyle(one).visibility === "visible");
}
"""
"""Whether all thumbnails of the view, two or more, are there and to be seen."""


@contextmanager
def away(page: Page, addresses: str) -> Iterator[None]:
    """Has the farm refuse these addresses meanwhile."""
    page.route(addresses, lambda route: route.fulfill(status=503, content_type="application/json", body=PROBLEM))
    try:
        yield
    finally:
        page.unroute(addresses)


@pytest.fixture(scope="module")
def drawn(dashboard: Dashboard) -> dict[str, str]:
    """A run of two done jobs."""
    run = dashboard.rig.farm.run("a pear", chain="refine", seed=1, count=2, steps=2, keep="preview")
    for job in run:
        job.wait(300)
    return {"job": run[0].id, "run": str(run[0].record.run)}


@pytest.mark.parametrize(
    ("path", "asked", "never", "then"),
    [
        ("/jobs/{job}", "**/api/v1/jobs/*", "No such job", "Result"),
        ("/sweeps", "**/api/v1/runs?*", "There is no run yet.", "2 jobs: a pear"),
        ("/sweeps?run={run}", "**/api/v1/runs/*", "There is no such run", "2 of 2 jobs ended"),
        ("/sweeps?run={run}", "**/api/v1/jobs?*", "The jobs of this run are deleted", "2 of 2 jobs ended"),
        ("/sweeps?run=none", "**/api/v1/runs/*", "The jobs of this run", "There is no such run"),
        ("/workers", "**/api/v1/workers", "No worker is there", "running|idle"),
        ("/datasets", "**/api/v1/datasets", "There is no dataset yet.", "There is no dataset yet."),
        ("/datasets/none", "**/api/v1/datasets/none", "No such dataset", "No such dataset"),
    ],
)  # fmt: skip
def test_what_has_not_been_answered_is_said_to_be_so(
    dashboard: Dashboard, drawn: dict[str, str], path: str, asked: str, never: str, then: str
) -> None:
    # Given a farm whose answer takes its time
    watched, held = dashboard.open("/settings"), list[Route]()
    page = watched.page
    main = page.get_by_role("main")
    page.route(asked, lambda route: held.append(route))
    # When the view is opened, Then it says that the farm is asked
    page.goto(dashboard.url + path.format(**drawn))
    expect(main.get_by_text("Asking the farm …")).to_be_visible()
    expect(main.get_by_text(never)).to_have_count(0)
    # When the answer is that it cannot be told now, Then that is said, and nothing else
    with away(page, asked):
        for route in held:
            route.fulfill(status=503, content_type="application/json", body=PROBLEM)
        expect(main.get_by_role("alert").filter(has_text="no ledger")).to_be_visible()
        expect(main.get_by_text(never)).to_have_count(0)
    # And once the farm is there again it is asked, and what it says is shown
    expect(main.get_by_text("no ledger")).to_have_count(0)
    expect(main).to_contain_text(re.compile(then))
    expect(main.get_by_text("Asking the farm …")).to_have_count(0)
    assert not watched.trouble


def test_a_job_that_ended_while_the_farm_was_away_shows_its_pictures(
    dashboard: Dashboard, drawn: dict[str, str]
) -> None:
    farm = dashboard.rig.farm
    with dashboard.idle():
        job = farm.render("a late one", chain="txt", steps=1)
        watched = dashboard.open(f"/jobs/{job.id}")
        page = watched.page
        status = page.get_by_role("status").filter(has_text="queued")
        expect(status).to_be_visible()
        # Given a look, the last one for an event, that fails
        asked = f"**/api/v1/jobs/{job.id}/artifacts"
        page.route(asked, lambda route: route.fulfill(status=503, content_type="application/json", body=PROBLEM))
    job.wait(300)
    expect(page.get_by_role("status").filter(has_text="done")).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="no ledger")).to_be_visible()
    expect(page.get_by_role("group", name="Pictures")).to_have_count(0)
    # When the farm is there again, Then they are shown without a reload
    page.unroute(asked)
    expect(page.get_by_role("group", name="Pictures")).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="no ledger")).to_have_count(0)
    assert not watched.trouble


def test_of_two_answers_of_a_job_the_older_one_does_not_come_last(dashboard: Dashboard, drawn: dict[str, str]) -> None:
    farm = dashboard.rig.farm
    with dashboard.idle():
        job = farm.render("two looks", chain="txt", steps=1)
        watched = dashboard.open(f"/jobs/{job.id}")
        page = watched.page
        expect(page.get_by_text("priority 50")).to_be_visible()
        # Given a look whose answer takes long
        asked, held = f"{dashboard.url}/api/v1/jobs/{job.id}", list[Route]()
        older = page.request.get(asked).text()
        page.route(asked, lambda route: held.append(route), times=1)
        with page.expect_request(asked):
            job.pause()
        # It may also be the second look at the job, which begins by itself: what the page then makes of the pause is
        # waited for, as it tells of one that ends within a frame nothing, and looks at nothing.
        expect(page.get_by_role("status").filter(has_text="paused")).to_be_visible()
        late = first_of(page, held)
        # When the one after it is answered first
        job.reprioritise(80)
        job.resume()
        expect(page.get_by_text("priority 80")).to_be_visible()
        # Then the answer of the first changes nothing
        with page.expect_response("**/artifacts"):
            late.fulfill(content_type="application/json", body=older)
        page.wait_for_timeout(SOON_MS)
        expect(page.get_by_text("priority 80")).to_be_visible()
        job.cancel()
        assert not watched.trouble


def test_a_run_of_somebody_elses_appears_and_older_ones_can_be_asked_for_again(
    dashboard: Dashboard, drawn: dict[str, str]
) -> None:
    watched = dashboard.open("/settings")
    page = watched.page

    def more(route: Route) -> None:
        """Says that there are older ones, and refuses to tell them."""
        if "cursor" in route.request.url:
            route.fulfill(status=503, content_type="application/json", body=PROBLEM)
        else:
            answer = route.fetch()
            route.fulfill(response=answer, json={**answer.json(), "next": "1"})

    page.route("**/api/v1/runs?*", more)
    page.goto(f"{dashboard.url}/sweeps")
    page.get_by_role("button", name="Older runs").click()
    # Then what failed may be tried again
    expect(page.get_by_text("no ledger")).to_be_visible()
    expect(page.get_by_role("button", name="Older runs")).to_be_visible()
    # And a new one comes though all that are listed have ended
    farm = dashboard.rig.farm
    with dashboard.idle():
        run = farm.run("of somebody else", chain="txt", count=2)
        expect(page.get_by_role("link", name="2 jobs: of somebody else")).to_be_visible()
        expect(page.get_by_role("link", name="2 jobs: a pear")).to_be_visible()
        for job in run:
            job.cancel()
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble


def test_workers_are_as_they_are_whatever_else_fails_or_comes_late(dashboard: Dashboard, drawn: dict[str, str]) -> None:
    watched, held = dashboard.open("/settings"), list[Route]()
    page = watched.page
    with away(page, "**/api/v1/throughput?*"):
        page.goto(f"{dashboard.url}/workers")
        row = page.get_by_role("row").filter(has_text="text2img.tiny").first
        expect(row).to_be_visible()
        expect(page.get_by_role("alert").filter(has_text="no ledger")).to_be_visible()
    # Given an answer that was true before the worker was drained, and comes after it
    asked = f"{dashboard.url}/api/v1/workers"
    older = page.request.get(asked).text()
    page.route(asked, lambda route: held.append(route), times=1)
    with page.expect_request(asked):
        pass
    try:
        row.get_by_role("button", name="Drain").click()
        page.get_by_role("dialog").get_by_role("button", name="Drain it").click()
        expect(row.get_by_role("button", name="Resume")).to_be_visible()
        page.route(asked, lambda route: None)
        first_of(page, held).fulfill(content_type="application/json", body=older)
        page.wait_for_timeout(SOON_MS)
        # Then
        expect(row.get_by_role("button", name="Resume")).to_be_visible(timeout=1)
        page.unroute_all(behavior="ignoreErrors")
    finally:
        for worker in dashboard.workers:
            dashboard.rig.farm.ledger.drain(worker.worker, on=False)
    assert not watched.trouble


@pytest.mark.parametrize("path", ["/gallery", "/queue?run={run}", "/jobs/{job}"])
def test_a_picture_that_could_not_be_fetched_is_asked_for_again(
    dashboard: Dashboard, drawn: dict[str, str], path: str
) -> None:
    watched, refused = dashboard.open("/settings"), set[str]()
    page = watched.page

    def once(route: Route) -> None:
        """Refuses a picture when it is asked for first."""
        if route.request.url in refused:
            return route.continue_()
        refused.add(route.request.url)
        return route.fulfill(status=503, content_type="application/json", body=PROBLEM)

    page.route("**/thumbnail?*", once)
    page.goto(dashboard.url + path.format(**drawn))
    page.wait_for_function(SHOWN)
    assert refused
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble
