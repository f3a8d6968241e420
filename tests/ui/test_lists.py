"""Are long lists whole, in their order, and quiet while nothing happens?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.api.conftest import serving
from tests.conftest import free_port
from tests.e2e.rig import ALL
from tests.ui.conftest import WAIT_MS, Dashboard, heard

expect.set_options(timeout=WAIT_MS)

TELLING = """
{
  const Plain = EventSource;
  window.EventSource = class extends Plain {
    addEventListener(type, hear, ...rest) {
      if (type === "job") window.__hear = hear;
      super.addEventListener(type, (event) => {
        if (type === "job") window.__last = event;
        hear(event);
      }, ...rest);
    }
  };
}
"""
"""Has the test tell the page what the farm does not."""
LONG: Any = {"chain": "txt", "steps": 150, "width": 512, "height": 512}
"""Far more work than what is looked at meanwhile takes: who asks for it cancels it."""
MANY = """
(many) => {
  const told = JSON.parse(window.__last.data), old = "2000-01-01T00:00:00Z";
  for (let at = 0; at < many; at++) {
    const data = JSON.stringify({...told, id: `other${at}`, run: "others", created: old});
    window.__hear({data, lastEventId: window.__last.lastEventId});
  }
  return new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
}
"""


@pytest.fixture(scope="module")
def slots() -> Sequence[str]:
    """One worker for each stage: some of them are drained."""
    return ALL


@contextmanager
def given_work(dashboard: Dashboard, *, but: str = "") -> Iterator[None]:
    """Has all workers take work meanwhile, but that of one queue; before and after it none does."""
    farm = dashboard.rig.farm
    for worker in dashboard.workers:
        farm.ledger.drain(worker.worker, on=but in worker.queues)
    try:
        yield
    finally:
        for state in ("queued", "running", "paused"):
            for record in farm.jobs(state=state, limit=1000):
                farm.ledger.cancel(record.job)
        for worker in dashboard.workers:
            farm.ledger.drain(worker.worker)


@pytest.fixture(scope="module")
def waiting(dashboard: Dashboard) -> dict[str, str]:
    """Two runs of more jobs than a page has, and one job that was submitted before both; nobody draws them."""
    farm = dashboard.rig.farm
    for worker in dashboard.workers:
        farm.ledger.drain(worker.worker)
    before = farm.render("the first of all", chain="txt")
    runs = [farm.run(f"run {name}", chain="txt", count=230) for name in ("one", "two")]
    return {"first": before.id, "one": str(runs[0][0].record.run), "two": str(runs[1][0].record.run)}


def seen_of(page: Page, many: int) -> set[str]:
    """The names of the boxes of all jobs that are met while the list is scrolled through, until there are so many."""
    box = page.get_by_role("list", name="Jobs")
    seen: set[str] = set()
    for _ in range(600):
        seen |= set(box.get_by_role("checkbox").evaluate_all("all => all.map((one) => one.ariaLabel)"))
        if len(seen) == many:
            break
        # A slow machine may draw no frame between two looks: what was passed over is seen the next time around.
        box.evaluate(
            "(one) => { const end = one.scrollTop + one.clientHeight >= one.scrollHeight - 1;"
            " one.scrollTop = end ? 0 : one.scrollTop + 200; }"
        )
        page.wait_for_timeout(30)
    return seen


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
    assert len(seen_of(page, 230)) == 230
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


def test_what_has_begun_and_waits_says_why(dashboard: Dashboard) -> None:
    # Given a job whose second stage nobody may take, for its worker is drained
    farm = dashboard.rig.farm
    with given_work(dashboard, but="img2img.tiny"):
        job = farm.render("begun and waiting", chain="refine", steps=3)
        watched = dashboard.open("/queue")
        page = watched.page
        row = page.get_by_role("listitem").filter(has_text="begun and waiting")
        # Then it is called so, with the reason, and nobody is told to start a worker
        expect(row).to_contain_text("waiting · stage 2 of 2: img2img · no worker of img2img.tiny may take it now")
        expect(page.get_by_text("1 stage waits for img2img.tiny, whose 1 worker is drained")).to_be_visible()
        expect(page.get_by_text(re.compile("No worker serves"))).to_have_count(0)
        page.goto(f"{dashboard.url}/jobs/{job.id}")
        expect(page.get_by_role("status").filter(has_text="no worker of img2img.tiny may take it now")).to_be_visible()
        # When one is paused that runs, Then it is said that its stage still does
        farm.render("paused while it runs", **LONG)
        page.goto(f"{dashboard.url}/queue")
        row = page.get_by_role("listitem").filter(has_text="paused while it runs")
        expect(row).to_contain_text("step")
        row.get_by_role("button", name="Pause").click()
        expect(row).to_contain_text("paused · after the stage that runs now · stage 1 of 1")
        row.get_by_role("button", name="Resume").click()
        expect(row).to_contain_text("running")
        assert not watched.trouble


def test_a_page_goes_on_when_the_api_was_started_again(dashboard: Dashboard) -> None:
    # Given a page of a job that runs, of an API of its own
    farm = dashboard.rig.farm
    with given_work(dashboard):
        job, port = farm.render("a long one", **LONG), free_port()
        token = dashboard.token()
        with serving(farm.settings, port, heartbeat_s=0.5) as url:
            watched = Dashboard(url, dashboard.rig, dashboard.tokens, dashboard.browser).open(f"/jobs/{job.id}", token)
            page = watched.page
            status = page.get_by_role("status").filter(has_text="step ")
            expect(status).to_be_visible()
        before = status.inner_text()
        # When that is started again, Then steps go on, without a reload
        with serving(farm.settings, port, heartbeat_s=0.5):
            expect(status).not_to_have_text(before)
            job.cancel()
            expect(page.get_by_role("status").filter(has_text="cancelled").first).to_be_visible()
            page.context.close()


def test_pictures_stand_in_their_order_and_are_picked_by_key_and_by_box(dashboard: Dashboard) -> None:
    # Given a run of more pictures than one millisecond makes, equal but for their seed, listed as they are drawn
    farm = dashboard.rig.farm
    watched = dashboard.open("/gallery?size=large&text=in+order")
    page = watched.page
    page.set_viewport_size({"width": 900, "height": 700})
    with given_work(dashboard):
        run = farm.run("in order", chain="txt", count=40, seed=100, steps=1)
        for job in run:
            job.wait(300)
        tiles = page.locator("[data-at]")
        last = page.get_by_role("button", name="in order, seed 100", exact=True)
        expect(page.get_by_role("button", name="in order, seed 139")).to_be_visible()
        # Then the newest is the first, down to the oldest
        tiles.first.focus()
        page.keyboard.press("End")
        expect(last).to_be_focused()
        shown = tiles.evaluate_all("all => all.map((one) => Number(one.ariaLabel.split(' ').pop()))")
        assert shown == sorted(shown, reverse=True)
        # And the focus is wherever the keys go
        page.keyboard.press("ArrowUp")
        expect(last).not_to_be_focused()
        assert page.evaluate("() => document.activeElement.hasAttribute('data-at')")
        page.keyboard.press("Home")
        expect(page.get_by_role("button", name="in order, seed 139")).to_be_focused()
        # When one is picked by its key, and three more by their boxes
        page.keyboard.press("x")
        expect(page.get_by_text("1 picked")).to_be_visible()
        page.get_by_label("Pick in order, seed 138").check()
        page.get_by_label("Pick in order, seed 136").click(modifiers=["Shift"])
        # Then
        expect(page.get_by_text("4 picked")).to_be_visible()
        page.keyboard.press("Control+a")
        expect(page.get_by_text("40 picked")).to_be_visible()
        # And the viewer is closed by the browser's way back, and closed it is no step of that way
        viewer = page.get_by_role("dialog", name="Picture")
        page.get_by_role("link", name="Workers").click()
        page.get_by_role("link", name="Gallery").click()
        newest = page.get_by_role("button", name="in order, seed 139", exact=True)
        newest.click()
        expect(viewer).to_be_visible()
        page.go_back()
        expect(viewer).to_have_count(0)
        expect(page.get_by_role("heading", name="Gallery")).to_be_visible()
        newest.click()
        viewer.get_by_role("button", name="Close").click()
        expect(viewer).to_have_count(0)
        page.go_back()
        expect(page.get_by_role("heading", name="Workers")).to_be_visible()
        assert not watched.trouble


def test_a_view_of_what_has_ended_asks_for_nothing(dashboard: Dashboard) -> None:
    # Given a job that has ended
    job = dashboard.rig.farm.render("a still life", chain="txt")
    job.cancel()
    watched = dashboard.open("/settings")
    page = watched.page
    asked: list[str] = []
    told: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if f"/jobs/{job.id}" in one.url else None)
    page.on("requestfinished", lambda one: told.append(one.url) if f"/api/v1/jobs/{job.id}" in one.url else None)
    page.goto(f"{dashboard.url}/jobs/{job.id}")
    expect(page.get_by_role("tabpanel").get_by_role("row").nth(1)).to_be_visible()
    # It is looked at twice: once it is known how it stands, the rest of it is asked for again
    look = [f"{dashboard.url}/api/v1/jobs/{job.id}{rest}" for rest in ("", "/history", "/artifacts")]
    heard(page, lambda: all(told.count(one) >= 2 for one in look), "the second look")
    asked.clear()
    # When nothing happens for as long as several looks would take, Then none is made
    page.wait_for_timeout(2000)
    assert asked == []
    assert not watched.trouble


def test_a_listed_job_is_as_it_is_however_much_is_told(dashboard: Dashboard) -> None:
    # Given a job that waited when it was listed, and has ended since
    job = dashboard.rig.farm.render("one of very many", chain="txt")
    watched = dashboard.open("/settings")
    page = watched.page
    page.context.add_init_script(TELLING)
    page.goto(f"{dashboard.url}/queue")
    row = page.get_by_role("listitem").filter(has_text="one of very many")
    expect(row).to_contain_text("queued")
    job.cancel()
    expect(row).to_contain_text("cancelled")
    # When far more is told than is held
    page.evaluate(MANY, 60_000)
    # Then it is still what it is, and so is each thing that may be done with it
    expect(row.get_by_role("button", name="Retry")).to_be_visible()
    expect(row).to_contain_text("cancelled")
    assert not watched.trouble


def test_a_run_is_retried_and_stays_open_in_the_address(dashboard: Dashboard) -> None:
    # Given a run of which one job was cancelled
    run = dashboard.rig.farm.run("a fold", chain="txt", count=3)
    run[0].cancel()
    watched = dashboard.open("/queue")
    page = watched.page
    fold = page.get_by_role("listitem").filter(has_text="run of 3 jobs")
    expect(fold).to_contain_text("1 cancelled")
    # When it is retried, Then that one waits again
    fold.get_by_role("button", name="Retry the run").click()
    expect(page.get_by_text("The run is retried.")).to_be_visible()
    expect(fold).to_contain_text("3 queued")
    expect(fold.get_by_role("button", name="Retry the run")).to_have_count(0)
    assert [job.state for job in run] == ["queued"] * 3
    # And when it is opened, Then it is open after a reload, too
    rows = page.get_by_role("listitem").filter(has=page.get_by_role("link", name="a fold"))
    expect(rows).to_have_count(0)
    fold.get_by_role("button", name="Jobs of the run").click()
    expect(rows).to_have_count(3)
    page.reload()
    expect(rows).to_have_count(3)
    fold.get_by_role("button", name="Jobs of the run").click()
    page.reload()
    expect(fold).to_be_visible()
    expect(rows).to_have_count(0)
    for job in run:
        job.cancel()
    assert not watched.trouble


def test_more_new_ones_than_are_looked_through_leave_no_hole(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    # Given a queue of ten jobs, a farm that tells five at once, and a page that looks through twenty pages for new ones
    job = dashboard.rig.farm.render("one of many", chain="txt")
    job.cancel()
    watched = dashboard.open("/settings")
    page = watched.page
    base = page.request.get(f"{dashboard.url}/api/v1/jobs/{job.id}").json()
    told = [
        {**base, "id": f"many{at}", "prompt": f"many {at}", "created": f"2026-01-01T00:{at // 60:02}:{at % 60:02}.000Z"}
        for at in range(140)
    ]
    there = 10

    def paged(route: Route) -> None:
        """A page of the jobs that are there, the newest first; its cursor is how many come before it."""
        (at,) = re.findall(r"cursor=(\d+)", route.request.url) or ["0"]
        newest = told[there - 1 :: -1]
        after = int(at) + 5
        route.fulfill(json={"jobs": newest[int(at) : after], "next": str(after) if after < there else None})

    page.context.add_init_script(TELLING)
    page.route("**/api/v1/jobs?*", paged)
    page.goto(f"{dashboard.url}/queue")
    expect(page.get_by_label("Pick the job many0", exact=True)).to_be_visible()
    # When there are 130 more, of which one is told
    there = 140
    page.evaluate("(job) => window.__hear({data: JSON.stringify(job), lastEventId: '0-1'})", told[10])
    expect(page.get_by_label("Pick the job many139", exact=True)).to_be_visible()
    # Then all of them are listed, the old ones, too
    assert len(seen_of(page, 140)) == 140
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble


def test_an_odd_address_opens_the_queue_all_the_same(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    run = dashboard.rig.farm.run("behind an odd address", chain="txt", count=2)
    watched = dashboard.open("/queue?open=%25")
    page = watched.page
    fold = page.get_by_role("listitem").filter(has_text="run of 2 jobs")
    expect(fold).to_be_visible()
    fold.get_by_role("button", name="Jobs of the run").click()
    link = page.get_by_role("link", name="behind an odd address")
    expect(page.get_by_role("listitem").filter(has=link)).to_have_count(2)
    for job in run:
        job.cancel()
    assert not watched.trouble


def test_a_priority_stays_what_it_was_set_to(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    job = dashboard.rig.farm.render("an urgent one", chain="txt")
    watched = dashboard.open("/settings")
    page = watched.page
    page.context.add_init_script(TELLING)
    page.goto(f"{dashboard.url}/jobs/{job.id}")
    expect(page.get_by_text("priority 50")).to_be_visible()
    page.evaluate("() => void (window.__last = null)")
    page.get_by_role("button", name="To the front").click()
    expect(page.get_by_text("priority 100")).to_be_visible()
    # When the event of it, which names no priority, comes after the answer
    page.wait_for_function("(id) => window.__last && JSON.parse(window.__last.data).id === id", arg=job.id)
    page.evaluate("() => window.__hear(window.__last)")
    page.wait_for_timeout(500)
    # Then
    expect(page.get_by_text("priority 100")).to_be_visible()
    job.cancel()
    assert not watched.trouble


def test_what_happened_to_a_job_is_told_in_words(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    job = dashboard.rig.farm.render("a troubled one", chain="txt")
    watched = dashboard.open("/settings")
    page = watched.page
    # Given a job with an attempt that failed, and of whose stage it is known why
    base = page.request.get(f"{dashboard.url}/api/v1/jobs/{job.id}").json()
    base["stages"][0] |= {"code": "gpu_oom", "message": "24 GB do not suffice"}
    event = {"stage": 0, "state": "queued", "worker": None, "time": base["created"]}
    events = [
        {**event, "id": f"{at}-0", "type": kind, "code": code}
        for at, (kind, code) in enumerate([("claimed", ""), ("attempt_failed", "gpu_oom"), ("rewound", "input_lost")])
    ]
    page.route(f"**/api/v1/jobs/{job.id}", lambda route: route.fulfill(json=base))
    page.route("**/history", lambda route: route.fulfill(json=events))
    page.goto(f"{dashboard.url}/jobs/{job.id}?tab=events")
    # Then
    rows = page.get_by_role("tabpanel").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("taken by a worker")
    expect(rows.nth(2)).to_contain_text("attempt failed")
    expect(rows.nth(2)).to_contain_text("gpu_oom: 24 GB do not suffice")
    expect(rows.nth(3)).to_contain_text("sent back to this stage")
    expect(rows.nth(3)).to_contain_text("input_lost")
    page.unroute_all(behavior="ignoreErrors")
    job.cancel()
    assert not watched.trouble


def test_a_run_is_cancelled_as_a_grid_after_a_question(dashboard: Dashboard, waiting: dict[str, str]) -> None:
    # Given a run that is not among the newest
    run = dashboard.rig.farm.run("to be ended", chain="txt", count=3)
    watched = dashboard.open("/settings")
    page = watched.page
    page.route("**/api/v1/runs?*", lambda route: route.fulfill(json={"runs": [], "next": None}))
    page.goto(f"{dashboard.url}/sweeps?run={run[0].record.run}")
    # When it is to be cancelled, Then that is asked first
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_contain_text("Its open jobs, of 3, end as cancelled.")
    page.get_by_role("dialog").get_by_role("button", name="No").click()
    assert [job.state for job in run] == ["queued"] * 3
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel it").click()
    expect(page.get_by_text("The run is cancelled.")).to_be_visible()
    expect(page.get_by_text("3 of 3 jobs ended")).to_be_visible()
    # And then there is nothing left to cancel
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.unroute_all(behavior="ignoreErrors")
    assert not watched.trouble
