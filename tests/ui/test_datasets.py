"""Can a person make a dataset of a file, run it and take it home, with the page alone?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from farm.dataset.desk import Datasets
from tests.dataset.farms import FeederProcess
from tests.e2e.rig import until
from tests.ui.conftest import WAIT_MS, Dashboard, Watched, first_of

expect.set_options(timeout=WAIT_MS)
FRUIT = ("apple", "pear", "plum", "lemon", "fig", "melon", "cherry", "lime")
SLOW: dict[str, Any] = {
    "name": "slow", "owner": "", "state": "running", "samples": 100, "done": 30, "failed": 0, "open": {"running": 1},
    "shards": 10, "shards_done": 3, "size_bytes": 1000, "rows": 100, "rejected": 0, "priority": 50, "fed": True,
    "rate": None, "eta_s": None, "refused": None, "trouble": None, "plan": None, "load": [],
}  # fmt: skip
"""A dataset as the API tells of one that runs."""
TABLE = "caption,mood,notes\n" + "".join(f"a {FRUIT[row % len(FRUIT)]} number {row},calm,x{row}\n" for row in range(60))


@pytest.fixture(scope="module")
def feeder(dashboard: Dashboard) -> Iterator[FeederProcess]:
    """The process that plans and feeds the farm's datasets."""
    process = FeederProcess(dashboard.rig).start()
    yield process
    process.stop()


def drop(page: Page, *files: tuple[str, str], on: str = "New dataset") -> None:
    """Drops files on the page `on`, each a name and its text, as a hand does."""
    page.get_by_role("heading", name=on, exact=True).wait_for()
    page.evaluate(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, text] of files) data.items.add(new File([text], name, { type: "text/csv" }));
            const told = { dataTransfer: data, bubbles: true, cancelable: true };
            document.querySelector("main").dispatchEvent(new DragEvent("dragover", told));
            document.querySelector("main").dispatchEvent(new DragEvent("drop", told));
        }""",
        [list(one) for one in files],
    )


def form(page: Page) -> None:
    """Opens the form of a new dataset."""
    page.goto(page.url.split("#")[0].rstrip("/") + "/datasets?new=1")


def test_a_table_becomes_a_dataset(
    dashboard: Dashboard, feeder: FeederProcess, watched: Watched, shots: Path, tmp_path: Path
) -> None:
    page = watched.page
    # Given a farm without datasets, and a table that is dropped on the page
    page.get_by_role("link", name="Datasets").click()
    expect(page.get_by_text("There is no dataset yet.")).to_be_visible()
    drop(page, ("Fruit rows.csv", TABLE), on="Datasets")
    expect(page).to_have_url(re.compile("/datasets[?]new=1"))
    # When it is said what its columns give, and what is made of each row
    rows = page.get_by_role("region", name="First rows", exact=True)
    expect(rows.get_by_role("row")).to_have_count(21)
    expect(rows).to_contain_text("a cherry number 6")
    column = page.get_by_label("What the column caption gives")
    expect(column).to_have_value("")
    column.select_option("prompt")
    page.get_by_label("What the column notes gives").select_option("leave out")
    page.get_by_label("Every row runs").select_option("txt")
    page.get_by_text("Its stages (1)").click()
    page.get_by_role("button", name="Parameters of stage 1").click()
    steps = page.get_by_label("Stage 1: text2img").get_by_label("steps", exact=True)
    steps.fill("20")
    steps.press("Tab")
    page.get_by_text("Sweep: several of each row").click()
    page.get_by_role("button", name="Add an axis").click()
    page.get_by_label("Values of axis 1").fill("1, 2")
    # Then the preview tells it
    expect(page.get_by_text("40 samples of the first 20 rows, 64 × 64")).to_be_visible()
    samples = page.get_by_role("region", name="Samples of the first rows")
    expect(samples.get_by_role("columnheader", name="mood")).to_be_visible()
    expect(samples.get_by_role("columnheader", name="notes")).to_have_count(0)
    expect(samples.get_by_role("row").nth(2)).to_contain_text("a apple number 0")
    page.screenshot(path=shots / "form.png", full_page=True)
    # When it is planned
    expect(page.get_by_label("Name", exact=True)).to_have_value("fruit_rows")
    page.get_by_label("Name", exact=True).fill("fruit")
    page.get_by_label("Samples of a shard").fill("20")
    page.get_by_role("button", name="Plan").click()
    # Then nothing runs, and it is told what would
    expect(page.get_by_text("Nothing runs until you start it.")).to_be_visible()
    plan = page.get_by_label("Plan", exact=True)
    expect(plan).to_contain_text("120 in 6 shards")
    expect(plan).to_contain_text("Fruit_rows.csv, 60 rows")
    expect(plan).to_contain_text("64 × 64, png; 1.5 MB of pixels at most")
    # And its bar is empty
    progress = page.get_by_label("How far it is")
    expect(progress.get_by_role("img", name="120 waiting to be started", exact=True)).to_be_visible()
    expect(progress.get_by_role("img").locator("span")).to_have_count(0)
    page.screenshot(path=shots / "planned.png", full_page=True)
    # When it is started, held, and let go on
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    expect(progress.get_by_role("img", name=re.compile(r"[1-9]\d* done"))).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(progress.get_by_role("status")).to_have_text("paused")
    page.get_by_label("Priority").select_option("75")
    expect(page.get_by_text("Its priority is 75.")).to_be_visible()
    page.screenshot(path=shots / "paused.png", full_page=True)
    page.get_by_role("button", name="Resume").click()
    # Then it is done
    expect(progress.get_by_role("status")).to_have_text("done", timeout=240_000)
    expect(progress).to_contain_text("6 of 6 shards")
    assert (Datasets(dashboard.rig.farm).status("fruit").done, Datasets(dashboard.rig.farm).status("fruit").failed) == (
        120,
        0,
    )
    # And its shards are seen, and come home
    shards = page.get_by_label("Shards", exact=True)
    expect(shards.get_by_role("listitem")).to_have_count(6)
    shards.get_by_role("img").first.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => [...document.images].some((one) => one.src.includes('/sheet') && one.naturalWidth > 0)"
    )
    with page.expect_download() as loaded:
        shards.get_by_role("link", name=re.compile("^tar, .*, shard 0$")).click()
    loaded.value.save_as(tmp_path / "0.tar")
    assert (tmp_path / "0.tar").read_bytes()[257:262] == b"ustar"
    # And the lines that fetch and load it do so, as they stand there
    env = {**os.environ, "FARM_TOKEN": dashboard.token(), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    lines = partial(subprocess.run, env=env, cwd=tmp_path, check=True, capture_output=True, text=True)
    lines(["bash", "-c", page.get_by_role("region", name="Fetch all shards").inner_text()])
    assert len(list((tmp_path / "fruit").glob("0000[0-5].*"))) == 12
    told = lines([sys.executable, "-c", page.get_by_role("region", name="Hugging Face datasets").inner_text()])
    assert "a apple number 0" in told.stdout
    # Those that read the bucket name its server, which is not AWS's
    bucket = page.get_by_role("region", name="From the farm's bucket, into the cache of datasets")
    settings = dashboard.rig.farm.settings
    expect(bucket).to_contain_text(f'"endpoint_url": "{settings.s3_endpoint}"')
    expect(bucket).to_contain_text(f"s3://{settings.bucket}/{settings.prefix}datasets/fruit/shards/*.tar")
    # And its card is read as it is
    page.get_by_role("button", name="Open the card").click()
    card = page.get_by_role("region", name="Card")
    expect(card).to_contain_text("# fruit")
    expect(card).to_be_in_viewport(ratio=0.9)
    page.get_by_role("button", name="Copy: WebDataset").click()
    expect(page.get_by_text(re.compile("is copied|are selected"))).to_be_visible()
    page.screenshot(path=shots / "done.png", full_page=True)
    # And the list has it
    page.get_by_role("link", name="All datasets").click()
    row = page.get_by_role("link", name=re.compile("^fruit done"))
    expect(row).to_contain_text("6 of 6 shards")
    page.screenshot(path=shots / "list.png")
    # When it is deleted, Then it is gone
    row.click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog", name="Delete fruit?").get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("There is no dataset yet.")).to_be_visible()


def test_wrong_rows_are_shown_where_they_are(feeder: FeederProcess, watched: Watched, shots: Path) -> None:
    page = watched.page
    form(page)
    # Given a file of which two rows are wrong, and one among those that are not looked at first
    text = "prompt,steps\na pear,2\na plum,none\na fig\n" + "a lime,2\n" * 30 + "a lemon,-3\n"
    page.locator("input[type=file]").first.set_input_files(
        {"name": "odd.csv", "mimeType": "text/csv", "buffer": text.encode()}
    )
    # Then those among the first are told with row, column and code
    wrong = page.get_by_role("region", name="Wrong rows among the first")
    expect(wrong.get_by_role("row", name=re.compile("^2 steps .* invalid_field"))).to_be_visible()
    expect(wrong.get_by_role("row", name=re.compile("^3 .*2 cells|^3 .*header has 2.* bad_row"))).to_be_visible()
    expect(page.get_by_label("What the column steps gives")).to_have_value("steps")
    page.screenshot(path=shots / "wrong.png", full_page=True)
    # When it is planned, Then all of them are
    page.get_by_role("button", name="Plan").click()
    expect(page.get_by_role("heading", name="It cannot be planned")).to_be_visible()
    told = page.get_by_role("region", name="Rows that are wrong")
    expect(told.get_by_role("row")).to_have_count(4)
    expect(told.get_by_role("row", name=re.compile("^34 steps .* invalid_field"))).to_be_visible()
    page.screenshot(path=shots / "refused.png", full_page=True)
    # When they are to be left out, Then the rest is planned under the same name
    page.get_by_role("link", name="Back to the form").click()
    page.get_by_label("Leave wrong rows out").check()
    page.get_by_role("button", name="Plan").click()
    expect(page.get_by_label("Plan", exact=True)).to_contain_text("31 rows; 3 left out")
    expect(page.get_by_role("region", name="Rows that were left out").get_by_role("row")).to_have_count(4)


def test_what_is_no_table_is_said_at_once(watched: Watched) -> None:
    page = watched.page
    form(page)
    drop(page, ("x.csv", "prompt,prompt\na,b\n"))
    told = page.get_by_label("File").get_by_role("alert")
    expect(told).to_contain_text("two columns are called")
    # With what helps
    expect(told).to_contain_text("rename one of them")
    drop(page, ("x.exe", "prompt\na\n"))
    expect(told).to_contain_text("not known")
    expect(told).to_contain_text("known are csv, tsv, json")
    # Of two that are dropped at once none is taken in silence
    drop(page, ("one.csv", "prompt\na\n"), ("two.csv", "prompt\nb\n"))
    expect(told).to_contain_text("None of these is taken: one.csv, two.csv")
    expect(told).to_contain_text("One file makes one dataset")
    expect(page.get_by_role("region", name="First rows", exact=True)).to_have_count(0)
    drop(page, ("good.csv", "prompt\na\n"))
    expect(page.get_by_role("region", name="First rows", exact=True)).to_be_visible()
    # A chain that cannot be is told before anything is planned
    page.get_by_label("Every row runs").select_option("img")
    expect(page.get_by_role("region", name="Preview")).to_contain_text("image")


def test_what_was_said_outlives_a_reload(dashboard: Dashboard, watched: Watched) -> None:
    page = watched.page
    table = ("kept.csv", "caption,mood\na pear,calm\na plum,wild\n")
    # Given a form that is filled in
    form(page)
    drop(page, table)
    page.get_by_label("What the column caption gives").select_option("prompt")
    page.get_by_label("Every row runs").select_option("refine")
    page.get_by_text("Sweep: several of each row").click()
    page.get_by_role("button", name="Add an axis").click()
    page.get_by_label("Values of axis 1").fill("1, 2")
    page.get_by_label("Name", exact=True).fill("mine")
    page.wait_for_function('() => Object.values(localStorage).some((one) => one.includes(\'"name":"mine"\'))')

    def as_it_was() -> None:
        expect(page.get_by_text("4 samples of the first 2 rows")).to_be_visible()
        expect(page.get_by_label("What the column caption gives")).to_have_value("prompt")
        expect(page.get_by_label("Every row runs")).to_have_value("refine")
        expect(page.get_by_label("Values of axis 1")).to_have_value("1, 2")
        expect(page.get_by_label("Name", exact=True)).to_have_value("mine")

    # When the page is loaded again, Then it is as it was
    page.reload()
    as_it_was()
    # When the farm has the file no more, Then that is said, and asked for
    store = dashboard.rig.farm.store
    for one in store.client.list_objects_v2(Bucket=store.bucket, Prefix=f"{store.prefix}datasets-files/")["Contents"]:
        store.client.delete_object(Bucket=store.bucket, Key=one["Key"])
    page.reload()
    told = page.get_by_label("File").get_by_role("alert")
    expect(told).to_contain_text("The farm has kept.csv no more. Choose it again")
    expect(page.get_by_role("button", name="Plan")).to_have_count(0)
    # And once it is there again, so is all that was said
    drop(page, table)
    as_it_was()
    expect(told).to_be_empty()


def test_the_name_follows_the_file_until_one_is_typed(watched: Watched) -> None:
    page = watched.page
    form(page)
    name = page.get_by_label("Name", exact=True)
    for file, typed, told in (
        ("First rows.csv", "", "first_rows"), ("second.csv", "", "second"), ("third.csv", "mine", "mine"),
        ("fourth.csv", "", "mine"),
    ):  # fmt: skip
        drop(page, (file, f"prompt\n{file}\n"))
        expect(page.get_by_role("cell", name=file)).to_have_count(2)
        if typed:
            name.fill(typed)
        expect(name).to_have_value(told)
    # One that cannot be is said so
    name.fill("Not a name")
    expect(name).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Plan")).to_be_disabled()
    page.get_by_role("button", name="Start anew").click()
    expect(page.get_by_label("Choose a file")).to_be_focused()
    drop(page, ("fifth.csv", "prompt\na\n"))
    expect(name).to_have_value("fifth")
    # And the focus goes with a stage that is moved
    page.get_by_label("Every row runs").select_option("refine")
    page.get_by_text("Its stages (2)").click()
    page.get_by_role("button", name="Move stage 2 up").click()
    expect(page.get_by_role("button", name="Parameters of stage 1")).to_be_focused()


def test_what_is_wrong_with_all_rows_is_told_once(feeder: FeederProcess, watched: Watched, shots: Path) -> None:
    page = watched.page
    # Given a sweep of which one value cannot be
    form(page)
    drop(page, ("alike.csv", "prompt\n" + "a pear\n" * 130))
    page.get_by_text("Sweep: several of each row").click()
    page.get_by_role("button", name="Add an axis").click()
    page.get_by_label("What axis 1 changes").select_option(label="1 text2img: steps")
    page.get_by_label("Values of axis 1").fill("2, 0")
    # Then that is told of the axis before anything is planned, and of no row
    told = page.get_by_role("region", name="Preview")
    expect(told).to_contain_text("axis of stage 1, steps: 0: Input should be greater than or equal to 1")
    expect(page.get_by_role("button", name="Plan")).to_be_disabled()
    expect(page.get_by_role("region", name="Wrong rows among the first")).to_have_count(0)
    # Given a column instead that is wrong in every row
    drop(page, ("alike.csv", "prompt,steps\n" + "a pear,0\n" * 130))
    page.get_by_role("button", name="Remove axis 1").click()
    # Then it is told once for all of the first rows
    wrong = page.get_by_role("region", name="Wrong rows among the first").get_by_role("row")
    expect(wrong).to_have_count(2)
    expect(wrong.last).to_contain_text("… and 19 more rows: 2–20")
    page.screenshot(path=shots / "alike.png", full_page=True)
    # And once for all that are told when it is planned
    page.get_by_role("button", name="Plan").click()
    told = page.get_by_role("region", name="Rows that are wrong")
    expect(told.get_by_role("row")).to_have_count(2)
    expect(told).to_contain_text("… and 99 more rows: 2–100")
    expect(page.get_by_text("These are the first 100 of 130 rows that are wrong.")).to_be_visible()
    expect(page.get_by_text("Unless it is asked for again, it is forgotten on")).to_be_visible()
    page.screenshot(path=shots / "alike-refused.png", full_page=True)
    # When it is taken off the list, Then it is gone without a word more
    page.get_by_role("link", name="All datasets").click()
    page.get_by_role("button", name="Remove alike").click()
    expect(page.get_by_role("link", name="alike")).to_have_count(0)


def test_it_is_said_when_nobody_feeds_datasets(dashboard: Dashboard, feeder: FeederProcess, watched: Watched) -> None:
    page = watched.page
    # Given a dataset that is to run, and nobody who feeds it
    desk = Datasets(dashboard.rig.farm)
    feeder.stop()
    form(page)
    drop(page, ("lonely.csv", "prompt\na\n"))
    expect(page.get_by_role("region", name="First rows", exact=True)).to_be_visible()
    page.get_by_role("button", name="Plan").click()
    # Then that is said, and what helps
    expect(page.get_by_text("nobody feeds datasets")).to_be_visible()
    expect(page.get_by_text("farm dataset feed")).to_be_visible()
    feeder.start()
    expect(page.get_by_text("Nothing runs until you start it.")).to_be_visible()
    feeder.stop()
    # And so of one that is to run, there and on the list
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("It waits for a feeder. If that lasts, nobody feeds datasets")).to_be_visible()
    page.get_by_role("link", name="All datasets").click()
    expect(page.get_by_role("link", name="lonely")).to_contain_text("It waits for a feeder.")
    desk.pause("lonely")
    desk.rm("lonely")
    until(lambda: all(one.name != "lonely" for one in desk.ls()), 20)
    feeder.start()


@pytest.mark.parametrize(("rate", "told"), [(0.04, "2.4 images/min"), (0.1, "0.1 images/s"), (12.3, "12.3 images/s")])
def test_how_quickly_images_come_is_never_nought(
    dashboard: Dashboard, watched: Watched, rate: float, told: str
) -> None:
    page = watched.page
    one = {**SLOW, "rate": rate}
    page.route("**/api/v1/datasets", lambda route: route.fulfill(json={"datasets": [one], "next": None}))
    page.route("**/api/v1/datasets/slow", lambda route: route.fulfill(json=one))
    page.get_by_role("link", name="Datasets").click()
    expect(page.get_by_role("link", name="slow")).to_contain_text(told)
    page.get_by_role("link", name="slow").click()
    expect(page.get_by_label("How far it is")).to_contain_text(told)
    page.unroute_all(behavior="ignoreErrors")


def test_damaged_shards_are_told_and_how_they_are_made_again(dashboard: Dashboard, watched: Watched) -> None:
    page = watched.page
    # Given two pages of shards, of which none can be read
    page.route("**/api/v1/datasets/slow", lambda route: route.fulfill(json=SLOW))
    page.route(
        "**/api/v1/datasets/slow/shards?*",
        lambda route: route.fulfill(
            json={"shards": [], "damaged": [7], "next": None}
            if "after=3" in route.request.url
            else {"shards": [], "damaged": [0, 1], "next": 3}
        ),
    )
    page.goto(f"{dashboard.url}/datasets/slow")
    told = page.get_by_label("Shards", exact=True).get_by_role("alert")
    expect(told).to_contain_text("2 shards are damaged and cannot be read: 0–1.")
    page.get_by_role("button", name="More shards").click()
    # Then
    expect(told).to_contain_text("3 shards are damaged and cannot be read: 0–1, 7.")
    expect(told).to_contain_text("farm dataset verify slow --repair && farm dataset run slow makes them again.")
    page.unroute_all(behavior="ignoreErrors")


def test_a_late_look_takes_nothing_back(dashboard: Dashboard, watched: Watched) -> None:
    page, held = watched.page, list[Route]()
    # Given a dataset that runs, and a look at it whose answer takes long
    page.route("**/api/v1/datasets/slow", lambda route: route.fulfill(json=SLOW))
    page.route(
        "**/api/v1/datasets/slow/shards?*",
        lambda route: route.fulfill(json={"shards": [], "damaged": [], "next": None}),
    )
    page.route("**/api/v1/datasets/slow/pause", lambda route: route.fulfill(json={**SLOW, "state": "paused"}))
    page.goto(f"{dashboard.url}/datasets/slow")
    pause = page.get_by_role("button", name="Pause", exact=True)
    expect(pause).to_be_visible()
    with page.expect_request("**/api/v1/datasets/slow"):
        page.route("**/api/v1/datasets/slow", lambda route: held.append(route))
    # When it is paused, and the answer comes
    pause.click()
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    first_of(page, held).fulfill(json={**SLOW, "done": 31})
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    # Then
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    expect(pause).to_have_count(0)
    page.unroute_all(behavior="ignoreErrors")
