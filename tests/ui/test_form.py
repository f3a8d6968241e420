"""Does the form say what will become of what is asked for, before it is submitted?"""

from __future__ import annotations

import base64
import re
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, Response, expect

from tests.ui.conftest import DROP, WAIT_MS, Dashboard, Watched, heard

expect.set_options(timeout=WAIT_MS)
KEPT = "JSON.parse(localStorage[Object.keys(localStorage).find((key) => key.startsWith('farm.form.'))] ?? 'null')"
"""The form, as the browser keeps it; null until it does."""


def chain(page: Page, name: str) -> None:
    """Takes a named chain."""
    page.get_by_label("Chain", exact=True).select_option(name)


def test_what_of_a_prompt_is_not_read_is_told(watched: Watched) -> None:
    page = watched.page
    field = page.get_by_label("Prompt", exact=True)
    field.fill("a red apple")
    expect(page.get_by_text(re.compile(r"^\d+ of 75 tokens$"))).to_be_visible()
    expect(page.get_by_text("Not read:")).to_have_count(0)
    field.fill("a red apple " * 60 + "and a pear")
    expect(page.get_by_text(re.compile("Not read: .*and a pear"))).to_be_visible()


def test_what_does_not_fit_is_said_where_it_is(watched: Watched) -> None:
    page = watched.page
    # Given a chain whose second stage redraws almost nothing
    chain(page, "refine")
    page.get_by_role("button", name="Parameters of stage 2").click()
    card = page.get_by_label(re.compile("^Stage 2: img2img"))
    card.get_by_label("strength", exact=True).fill("0.01")
    card.get_by_label("strength", exact=True).press("Tab")
    # Then the refusal stands in its card, before anything was submitted
    expect(card.get_by_role("alert").first).to_contain_text("step")
    # And a stage that is left out is no trouble
    card.get_by_label("Stage 2 is on").uncheck()
    expect(page.get_by_text("1 picture, 1 stage")).to_be_visible()


def test_a_sweep_is_counted_drawn_and_shown_as_a_grid(watched: Watched) -> None:
    page = watched.page
    chain(page, "txt")
    page.get_by_label("Prompt", exact=True).fill("a sweep")
    page.get_by_text("Sweep", exact=True).click()
    for at, (field, values) in enumerate([("seed", "1..3"), ("1 text2img: guidance scale", "1, 7")], 1):
        page.get_by_role("button", name="Add an axis").click()
        page.get_by_label(f"What axis {at} changes").select_option(label=field)
        page.get_by_label(f"Values of axis {at}").fill(values)
    expect(page.get_by_text("6 pictures, 1 stage")).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("6 jobs are queued.")).to_be_visible()
    # When it is looked at as a grid
    page.get_by_role("link", name="Sweeps").click()
    page.get_by_role("link", name=re.compile("^6 jobs")).first.click()
    # Then each of both values has its three pictures, and they appear as they are drawn
    grid = page.get_by_role("region", name="Grid")
    expect(grid.get_by_role("columnheader", name="7")).to_be_visible()
    for seed in ("1", "2", "3"):
        expect(grid.get_by_role("rowheader", name=seed)).to_be_visible()
    expect(grid.locator("img[src*='/artifacts/0/thumbnail']")).to_have_count(6)


def test_what_is_typed_can_be_undone_and_weighed(watched: Watched) -> None:
    page = watched.page
    field = page.get_by_label("Prompt", exact=True)
    field.press_sequentially("an apple, red")
    # When a word is given a weight, twice, Then each is undone by itself, and what was typed before stays
    field.press("Control+ArrowUp")
    expect(field).to_have_value("an apple, (red:1.1)")
    field.press("Control+ArrowUp")
    expect(field).to_have_value("an apple, (red:1.2)")
    field.press("Control+z")
    expect(field).to_have_value("an apple, (red:1.1)")
    field.press("Control+z")
    expect(field).to_have_value("an apple, red")
    # And no weight is below what does anything
    for _ in range(15):
        field.press("Control+ArrowDown")
    expect(field).to_have_value("an apple, (red:0.1)")
    # And what is too long is said, and kept
    field.fill("a" * 2010)
    expect(page.get_by_text("10 of the 2010 characters are too many")).to_be_visible()
    expect(field).to_have_value("a" * 2010)


def test_sizes_and_seeds_are_ones_that_can_be_drawn(watched: Watched) -> None:
    page = watched.page
    field = page.get_by_label("Prompt", exact=True)
    field.fill("a shape")
    # Given a chain whose third stage takes only sides of multiples of 32
    expect(page.get_by_label(re.compile("^Stage 3: upscale_latent"))).to_be_visible()
    shapes = page.get_by_role("group", name="Shape")
    answers: dict[str, bool] = {}

    def hear(told: Response) -> None:
        """Keeps of each size whether it can be drawn."""
        if "/jobs/dry-run" in told.url:
            first = told.request.post_data_json["chain"]["stages"][0]
            answers[f"{first.get('width')} × {first.get('height')}"] = told.ok

    page.on("response", hear)
    # When each shape is chosen, Then it can be drawn
    for name in ("4:3", "3:2", "16:9", "9:16", "2:3", "1:1"):
        shapes.get_by_role("button", name=name, exact=True).click()
        size = shapes.get_by_text("×").inner_text()
        heard(page, partial(answers.__contains__, size), size)
        assert answers[size], name
    page.remove_listener("response", hear)
    # And what cannot be is said beside the button, in words, and not submitted
    chain(page, "txt")
    page.get_by_role("button", name="Parameters of stage 1").click()
    page.get_by_label("width", exact=True).fill("65")
    page.get_by_label("width", exact=True).press("Tab")
    expect(page.get_by_text(re.compile("^stage 1, width: "))).to_be_visible()
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    page.get_by_label("width", exact=True).fill("64")
    page.get_by_label("width", exact=True).press("Tab")
    # And -1 is a seed that is drawn, as A1111 has it; what is none is said
    seed = page.get_by_label("Seed", exact=True)
    for text, shown, fine in (("1.5", "1.5", False), ("-1", "", True), ("7", "7", True)):
        seed.fill(text)
        seed.press("Tab")
        expect(seed).to_have_value(shown)
        expect(page.get_by_text("A seed is a whole number")).to_have_count(0 if fine else 1)
    # When the same is asked for as fast as a hand can, Then each time it is submitted
    seed.fill("")
    made: list[str] = []
    page.on("request", lambda one: made.append(one.url) if one.method == "POST" and one.url.endswith("/jobs") else None)
    for _ in range(6):
        field.press("Control+Enter")
    expect(page.get_by_label(re.compile("^Job ")).nth(5)).to_be_visible()
    assert len(made) == 6


def test_each_tab_has_its_form_and_errors_go(dashboard: Dashboard) -> None:
    # Given two tabs of one person
    watched = dashboard.open()
    page = watched.page
    field = page.get_by_label("Prompt", exact=True)
    field.fill("in the first")
    kept = "(text) => Object.values(localStorage).some((one) => one.includes(text))"
    page.wait_for_function(kept, arg="in the first")
    other = Watched.of(page.context.new_page(), dashboard.url)
    second = other.page.get_by_label("Prompt", exact=True)
    expect(second).to_have_value("in the first")
    second.fill("in the second")
    other.page.wait_for_function(kept, arg="in the second")
    # When the first is loaded again, Then it is as it was
    page.reload()
    expect(field).to_have_value("in the first")
    # When the farm cannot be reached, Then the same error stands there once
    expect(page.get_by_text("1 picture, 4 stages")).to_be_visible()
    page.context.set_offline(True)
    for times in ("The farm cannot be reached.", "2 times"):
        field.press("Control+Enter")
        expect(page.get_by_role("status").filter(has_text="cannot be reached").filter(has_text=times)).to_be_visible()
    # And is gone on another view; and the form knows when the farm is there again
    field.fill("in between")
    expect(page.locator(".submit").get_by_text("The farm cannot be reached.")).to_be_visible()
    page.context.set_offline(False)
    expect(page.locator(".submit").get_by_text("1 picture, 4 stages")).to_be_visible()
    page.get_by_role("link", name="Workers").click()
    expect(page.get_by_role("button", name="Dismiss")).to_have_count(0)
    assert not watched.trouble
    assert not other.trouble


def test_a_mask_is_painted_over_the_input(dashboard: Dashboard, watched: Watched) -> None:
    page = watched.page
    # Given an input image, and a stage that draws a part of it anew
    page.get_by_label("Kind of stage 1").select_option("inpaint")
    for _ in range(3):
        page.get_by_role("button", name="Remove stage 2").click()
    out = BytesIO()
    Image.new("RGB", (96, 64), "teal").save(out, "PNG")
    page.locator("input[type=file]").first.set_input_files(
        {"name": "in.png", "mimeType": "image/png", "buffer": out.getvalue()}
    )
    page.get_by_role("button", name="Parameters of stage 1").click()
    card = page.get_by_label(re.compile("^Stage 1: inpaint"))
    expect(card.get_by_role("alert").first).to_contain_text("mask")
    # When it is painted
    card.get_by_role("button", name="Paint it").click()
    box = page.get_by_label("Mask: paint with the pointer").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    with page.expect_response(lambda one: one.url.endswith("/uploads")) as sent:
        page.get_by_role("button", name="Use this mask").click()
    # Then what went up is white where it was painted, black elsewhere, and as large as the input
    name = sent.value.json()["image"].removeprefix("sha256:")
    mask = Image.open(BytesIO(dashboard.rig.farm.inbox.get_blob(name, 1 << 20))).convert("RGB")
    assert mask.size == (96, 64)
    assert mask.getpixel((48, 32)) == (255, 255, 255)
    assert mask.getpixel((2, 2)) == mask.getpixel((94, 60)) == (0, 0, 0)
    # And the chain can be drawn
    expect(card.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_text("1 picture, 1 stage, 96 × 64")).to_be_visible()
    # When it is looked at again, Then what was painted is there, and is the same mask
    card.get_by_role("button", name="Paint it").click()
    use = page.get_by_role("button", name="Use this mask")
    expect(use).to_be_enabled()
    with page.expect_response(lambda one: one.url.endswith("/uploads")) as sent:
        use.click()
    assert sent.value.json()["image"] == f"sha256:{name}"
    # And where all of it is erased there is nothing to use, until that is undone; closing loses nothing
    card.get_by_role("button", name="Paint it").click()
    for _ in range(2):
        page.get_by_role("button", name="Invert").click()
    page.get_by_label("Brush").fill("40")
    page.get_by_label("Erase").check()
    page.mouse.move(box["x"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    expect(use).to_be_disabled()
    page.keyboard.press("Escape")
    card.get_by_role("button", name="Paint it").click()
    expect(use).to_be_disabled()


def test_pictures_go_home_and_on(dashboard: Dashboard, tmp_path: Path) -> None:
    # Given two results
    farm = dashboard.rig.farm
    jobs = farm.run("a pair", chain="refine", seed=5, count=2, steps=2, keep="preview")
    for job in jobs:
        job.wait(120)
    watched = dashboard.open("/gallery?text=pair")
    page = watched.page
    tiles = page.locator("[data-at]")
    expect(tiles).to_have_count(2)
    # When both are picked, Then they come as one zip
    tiles.first.click(modifiers=["Control"])
    tiles.last.click(modifiers=["Shift"])
    expect(page.get_by_text("2 picked")).to_be_visible()
    with page.expect_download() as loaded:
        page.get_by_role("link", name="Download as zip").click()
    loaded.value.save_as(tmp_path / "pictures.zip")
    assert (tmp_path / "pictures.zip").read_bytes()[:2] == b"PK"
    # And the stages of one as a film
    page.goto(f"{dashboard.url}/jobs/{jobs[0].id}")
    with page.expect_download() as loaded:
        page.get_by_role("link", name="GIF").click()
    loaded.value.save_as(tmp_path / "stages.gif")
    with Image.open(tmp_path / "stages.gif") as film:
        assert film.n_frames == 2  # type: ignore[attr-defined]
    # When one is sent to another chain, Then that begins with it
    page.goto(f"{dashboard.url}/gallery?text=pair")
    tiles.first.click()
    page.get_by_role("button", name="upscale", exact=True).click()
    expect(page.get_by_label(re.compile("^Stage 1: upscale"))).to_be_visible()
    expect(page.get_by_role("img", name="What was given")).to_be_visible()
    expect(page.get_by_text("1 picture, 1 stage, 256 × 256")).to_be_visible()
    # And a job that is deleted is gone from every view
    page.goto(f"{dashboard.url}/gallery?text=pair")
    tiles.first.click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog", name=re.compile("^Delete")).get_by_role("button", name="Delete").click()
    expect(tiles).to_have_count(1)
    assert not watched.trouble


def test_what_fills_the_form_is_taken_back(dashboard: Dashboard, watched: Watched) -> None:
    # Given a job, and a form that somebody has written
    job = dashboard.rig.farm.render("a pear", chain="txt", steps=2, seed=4).wait(120)
    page = watched.page
    chain(page, "refine")
    page.get_by_label("Prompt", exact=True).fill("what took long to write")
    page.get_by_label("Negative prompt").fill("nor this")
    page.get_by_placeholder("random").fill("77")
    page.get_by_label("Stage 2 is on").uncheck()
    page.wait_for_function(f"() => {{ const told = {KEPT}; return told?.seed === 77 && !told.cards[1]?.on }}")
    before = page.evaluate(f"() => {KEPT}")

    def recalled() -> None:
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("a pear")
        expect(page.get_by_role("list", name="Stages").get_by_role("listitem")).to_have_count(1)

    def is_as_it_was() -> None:
        expect(page.get_by_text("The form is as it was.").last).to_be_visible()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("what took long to write")
        page.wait_for_function(f"(before) => JSON.stringify({KEPT}) === JSON.stringify(before)", arg=before)

    # When a job fills it, Then the button gives it back
    page.get_by_role("link", name="Queue").click()
    page.get_by_role("link", name="a pear", exact=True).click()
    page.get_by_role("button", name="Use all").click()
    recalled()
    undo = page.get_by_role("button", name="Undo")
    undo.focus()
    page.keyboard.press("Enter")
    is_as_it_was()
    # And so does the key, after a picture's own words
    page.evaluate(DROP, [base64.b64encode(job.pngs()[0]).decode(), "drawn.png"])
    recalled()
    undo.wait_for()
    page.locator("h1").first.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Control+z")
    is_as_it_was()
    # And in a field the key is the field's
    page.get_by_role("link", name="Queue").click()
    page.get_by_role("link", name="a pear", exact=True).click()
    page.get_by_role("button", name="Remix").click()
    recalled()
    page.get_by_label("Prompt", exact=True).press("Control+z")
    expect(undo).to_be_visible()
