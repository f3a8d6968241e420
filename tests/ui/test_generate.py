"""Does the form keep what a person gave it, however late an answer comes, or however it fails?"""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from tests.ui.conftest import DROP, WAIT_MS, Dashboard, Watched, first_of

expect.set_options(timeout=WAIT_MS)
AWAY = {"status": 504, "content_type": "text/html", "body": "a proxy's own page"}
SMALL = """
() => {
  const plain = createImageBitmap;
  window.__small = 0;
  window.createImageBitmap = (...given) => plain(...given).finally(() => window.__small++);
}
"""
"""Counts the pictures that were made small, the last that is done with one once it is uploaded."""


def picture(width: int, height: int, colour: str = "teal") -> bytes:
    """A PNG that says nothing of how it was made."""
    out = BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def chain(page: Page, name: str) -> None:
    """Takes a named chain."""
    page.get_by_label("Chain", exact=True).select_option(name)


def asked(page: Page) -> dict[str, Any]:
    """The next dry run that the form asks for."""
    with page.expect_request(re.compile("/jobs/dry-run")) as told:
        page.get_by_label("Prompt", exact=True).press("x")
    found: dict[str, Any] = json.loads(told.value.post_data or "")
    return found


def give(page: Page, data: bytes, name: str = "in.png") -> None:
    """Picks a picture as the chain's input."""
    page.get_by_role("group", name="Picture").last.locator("input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": data}
    )


def parameter(page: Page, stage: int, name: str, value: str) -> None:
    """Types a parameter of a stage whose card is open."""
    field = page.get_by_label(re.compile(f"^Stage {stage}: ")).get_by_label(name, exact=True)
    field.fill(value)
    field.press("Tab")


def test_what_a_proxy_lost_is_not_made_twice(watched: Watched) -> None:
    page = watched.page
    chain(page, "txt")
    page.get_by_label("Prompt", exact=True).fill("an only pear")
    keys: list[str] = []

    def lose(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) > 3:
            route.continue_()
            return
        route.fetch()
        route.fulfill(**AWAY)  # type: ignore[arg-type]

    # Given that the farm takes it, and each answer gets lost, as often as the page asks by itself
    page.route(re.compile("/api/v1/jobs$"), lose)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("The farm answered 504.")).to_be_visible()
    # When it is submitted once more, Then it is the same, and there is one job
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_label(re.compile("^Job "))).to_have_count(1)
    assert (len(keys), len(set(keys))) == (4, 1)
    page.reload()
    expect(page.get_by_label(re.compile("^Job "))).to_have_count(1)


def test_another_chain_is_taken_back_where_stages_were_changed(watched: Watched) -> None:
    page = watched.page
    undo = page.get_by_role("button", name="Undo")
    # Given a chain as it is, Then another takes nothing away
    chain(page, "refine")
    expect(page.get_by_label(re.compile("^Stage 2: img2img"))).to_be_visible()
    expect(undo).to_have_count(0)
    # When a stage of it was changed, and another is taken
    page.get_by_role("button", name="Parameters of stage 2").click()
    parameter(page, 2, "strength", "0.75")
    page.get_by_label("Chain", exact=True).focus()
    chain(page, "txt")
    expect(page.get_by_text("The chain txt is on the form.")).to_be_visible()
    assert [stage["kind"] for stage in asked(page)["chain"]["stages"]] == ["text2img"]
    # Then the change comes back
    undo.click()
    assert [stage.get("strength") for stage in asked(page)["chain"]["stages"]] == [None, 0.75]


def test_of_two_pictures_the_later_is_the_input(watched: Watched) -> None:
    page = watched.page
    chain(page, "img")
    page.evaluate(SMALL)
    held: list[Route] = []
    page.route(re.compile("/api/v1/uploads$"), lambda route: route.continue_() if held else held.append(route))
    # Given a picture that is still on its way
    give(page, picture(96, 64), "slow.png")
    expect(page.get_by_text("Uploading …")).to_be_visible()
    first = first_of(page, held)
    # When another is chosen, and the first arrives after it
    with page.expect_response(re.compile("/api/v1/uploads$")) as told:
        give(page, picture(64, 96), "second.png")
    expect(page.get_by_text("1 picture, 1 stage, 64 × 96")).to_be_visible()
    expect(page.get_by_text("Uploading …")).to_have_count(0)
    assert page.evaluate("window.__small") == 1
    first.continue_()
    page.wait_for_function("() => window.__small === 2")
    # Then the second is what is drawn from
    assert asked(page)["image"] == told.value.json()["image"]


def test_a_picture_given_meanwhile_stays(dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(picture(96, 64))
    job = dashboard.rig.farm.render("redrawn", chain="img", image=tmp_path / "in.png", steps=2, seed=1).wait(120)
    watched = dashboard.open(f"/jobs/{job.id}")
    page = watched.page
    held: list[Route] = []
    page.route(re.compile("/spec$"), lambda route: held.append(route))
    # Given a job whose image is not told yet
    page.get_by_role("button", name="Use all").click()
    expect(page.get_by_label(re.compile("^Stage 1: img2img"))).to_be_visible()
    # When another is given before it is
    give(page, picture(64, 96))
    expect(page.get_by_text("1 picture, 1 stage, 64 × 96")).to_be_visible()
    with page.expect_response(re.compile("/spec$")):
        first_of(page, held).continue_()
    # Then that one stays
    asked(page)
    expect(page.get_by_text("1 picture, 1 stage, 64 × 96")).to_be_visible()
    assert not watched.trouble


def test_the_size_of_a_job_is_also_that_which_it_did_not_name(dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(picture(128, 96))
    farm = dashboard.rig.farm
    native = farm.render("a native pear", chain="txt", steps=2, seed=1)
    given = farm.render("a given pear", chain="img", image=tmp_path / "in.png", steps=2, seed=1)
    watched = dashboard.open()
    page = watched.page
    for job, size in ((native, (64, 64)), (given, (128, 96))):
        # Given a form of another size
        chain(page, "txt")
        page.get_by_role("button", name="Parameters of stage 1").click()
        parameter(page, 1, "width", "256")
        assert asked(page)["chain"]["stages"][0]["width"] == 256
        # When the size of a job is taken whose chain names none
        page.goto(f"{dashboard.url}/jobs/{job.id}")
        page.get_by_role("button", name="Size", exact=True).click()
        expect(page.get_by_text("The size is in the form.")).to_be_visible()
        # Then it is that job's, whatever the form draws with
        (stage,) = asked(page)["chain"]["stages"]
        assert (stage["width"], stage["height"]) == size
    assert not watched.trouble


def test_a_sweep_stays_with_its_stage(watched: Watched) -> None:
    page = watched.page
    chain(page, "refine")
    page.get_by_text("Sweep", exact=True).click()
    page.get_by_role("button", name="Add an axis").click()
    page.get_by_label("What axis 1 changes").select_option(label="2 img2img: strength")
    page.get_by_label("Values of axis 1").fill("0.5, 0.75")
    assert asked(page)["sweep"] == [{"1.strength": [0.5, 0.75]}]
    idle = page.get_by_text("Its stage is off or gone")
    # When the stage is the first of those that are on, Then it is still the one that is swept
    page.get_by_label("Stage 1 is on").uncheck()
    assert asked(page)["sweep"] == [{"0.strength": [0.5, 0.75]}]
    page.get_by_label("Stage 1 is on").check()
    page.get_by_role("button", name="Move stage 2 up").click()
    assert asked(page)["sweep"] == [{"0.strength": [0.5, 0.75]}]
    expect(idle).to_have_count(0)
    # And where it is off or gone, no other stage is swept, and that is said
    page.get_by_label("Stage 1 is on").uncheck()
    expect(idle).to_be_visible()
    assert asked(page)["sweep"] == []
    page.get_by_label("Stage 1 is on").check()
    expect(idle).to_have_count(0)
    chain(page, "x2")
    expect(idle).to_be_visible()
    assert asked(page)["sweep"] == []
    # And it is swept again once the chain is taken back, after a reload, too
    page.get_by_role("button", name="Undo").click()
    expect(idle).to_have_count(0)
    assert asked(page)["sweep"] == [{"0.strength": [0.5, 0.75]}]
    page.reload()
    expect(page.get_by_label("What axis 1 changes").locator("option:checked")).to_have_text("1 img2img: strength")
    assert asked(page)["sweep"] == [{"0.strength": [0.5, 0.75]}]


def test_the_key_cancels_what_is_shown_once_the_run_has_ended(dashboard: Dashboard) -> None:
    # Given a job that nobody can draw, and a run after it that has ended
    watched = dashboard.open(token=dashboard.token("read", "submit"))
    page = watched.page
    chain(page, "txt")
    page.get_by_label("Prompt", exact=True).fill("a pear")
    page.get_by_label("Model", exact=True).select_option("tiny-style")
    page.get_by_role("button", name="Submit").click()
    waiting = page.get_by_label(re.compile("^Job .*: queued"))
    expect(waiting).to_have_count(1)
    page.get_by_label("Model", exact=True).select_option("tiny")
    page.get_by_label("Pictures of each").fill("2")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_label(re.compile("^Job .*: done"))).to_have_count(2)
    # When the job is looked at, and the key that cancels is pressed
    waiting.click()
    page.keyboard.press("Control+Alt+Enter")
    # Then that job is cancelled
    expect(page.get_by_label(re.compile("^Job .*: cancelled"))).to_have_count(1)
    expect(page.get_by_text("The run is cancelled.")).to_have_count(0)
    assert not watched.trouble


def test_a_picture_that_nobody_asked_is_not_said_to_be_silent(watched: Watched) -> None:
    page = watched.page
    chain(page, "img")
    data = base64.b64encode(picture(96, 64)).decode()
    address = re.compile("/api/v1/pictures/read$")
    silent = page.get_by_text("does not say how it was made")
    # When the farm cannot be asked, Then that is said, and the picture is not taken for another's
    page.route(address, lambda route: route.fulfill(**AWAY))  # type: ignore[arg-type]
    page.evaluate(DROP, [data, "drawn.png"])
    expect(page.get_by_text("The farm answered 504.")).to_be_visible()
    assert "image" not in asked(page)
    chain(page, "txt")
    page.evaluate(DROP, [data, "drawn.png"])
    expect(page.get_by_text("2 times")).to_be_visible()
    expect(silent).to_have_count(0)
    # And one that says nothing is told so, or is what the chain begins with
    page.unroute(address)
    page.evaluate(DROP, [data, "drawn.png"])
    expect(silent).to_be_visible()
    chain(page, "img")
    page.evaluate(DROP, [data, "drawn.png"])
    expect(page.get_by_text("1 picture, 1 stage, 96 × 64")).to_be_visible()


def test_a_mask_whose_upload_was_closed_is_not_used(watched: Watched) -> None:
    page = watched.page
    chain(page, "img")
    page.get_by_label("Kind of stage 1").select_option("inpaint")
    give(page, picture(96, 64))
    page.get_by_role("button", name="Parameters of stage 1").click()
    card = page.get_by_label(re.compile("^Stage 1: inpaint"))
    held: list[Route] = []
    # Given a mask that is painted and on its way
    card.get_by_role("button", name="Paint it").click()
    page.get_by_role("button", name="Invert").click()
    page.route(re.compile("/api/v1/uploads$"), lambda route: held.append(route))
    use = page.get_by_role("button", name="Use this mask")
    use.click()
    expect(page.get_by_role("button", name="Uploading …")).to_be_visible()
    sent = first_of(page, held)
    # When the brush is closed before it has arrived
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    with page.expect_response(re.compile("/api/v1/uploads$")):
        sent.continue_()
    # Then it is no mask of the stage's, and what was painted is there
    assert "mask" not in asked(page)["chain"]["stages"][0]
    card.get_by_role("button", name="Paint it").click()
    expect(use).to_be_enabled()


def test_keys_of_a_select_move_no_stage(watched: Watched) -> None:
    page = watched.page
    chain(page, "refine")
    first = page.get_by_label("Kind of stage 1")
    expect(page.get_by_label("Kind of stage 2")).to_have_value("img2img")
    # Alt+Down opens a select, so it does nothing else there
    first.press("Alt+ArrowDown")
    page.keyboard.press("Escape")
    expect(first).to_have_value("text2img")
    # And elsewhere in the card it moves the stage
    page.get_by_role("button", name="Parameters of stage 1").press("Alt+ArrowDown")
    expect(first).to_have_value("img2img")


def test_each_text_is_warned_of_where_a_checkpoint_cuts_it(watched: Watched) -> None:
    page = watched.page
    read: list[tuple[str, str]] = []

    def answer(route: Route) -> None:
        ask = json.loads(route.request.post_data or "")
        read.append((ask["checkpoint"], ask["prompt"]))
        unread = "the end" if ask["checkpoint"] == "tiny-style" else ""
        route.fulfill(json={"tokens": 80 if unread else 7, "limit": 75, "unread": unread})

    page.route(re.compile("/api/v1/prompts/read$"), answer)
    # Given a chain whose second stage has another checkpoint, which reads less
    chain(page, "refine")
    page.get_by_label("Prompt", exact=True).fill("a pear to the end")
    expect(page.get_by_text("7 of 75 tokens")).to_be_visible()
    page.get_by_role("button", name="Parameters of stage 2").click()
    card = page.get_by_label(re.compile("^Stage 2: img2img"))
    card.get_by_label("checkpoint", exact=True).select_option("tiny-style")
    # Then the chain's prompt is warned of
    expect(page.get_by_text("Not read: “the end”")).to_be_visible()
    expect(page.get_by_text("80 of 75 tokens")).to_be_visible()
    assert {*read} == {("tiny", "a pear to the end"), ("tiny-style", "a pear to the end")}
    # When that stage has a prompt of its own, Then the warning is the stage's
    card.get_by_text(re.compile("^More")).click()
    parameter(page, 2, "prompt", "a fig to the end")
    expect(card.get_by_text("Not read of its prompt: “the end”")).to_be_visible()
    expect(page.get_by_text("Not read: ")).to_have_count(0)
    expect(page.get_by_text("7 of 75 tokens")).to_be_visible()
    # And a chain that reads no words is warned of none
    chain(page, "txt")
    page.get_by_label("Kind of stage 1").select_option("esrgan")
    expect(page.get_by_text(re.compile("of 75 tokens|Not read"))).to_have_count(0)


def test_a_closed_card_calls_its_fields_as_people_do(watched: Watched) -> None:
    page = watched.page
    chain(page, "txt")
    page.get_by_role("button", name="Parameters of stage 1").click()
    page.get_by_label("Add a LoRA to stage 1").select_option("tiny-lora")
    page.get_by_label(re.compile("^Stage 1: ")).get_by_label("checkpoint", exact=True).select_option("tiny-xl")
    parameter(page, 1, "steps", "0")
    page.get_by_role("button", name="Parameters of stage 1").click()
    card = page.get_by_label(re.compile("^Stage 1: "))
    expect(card.get_by_role("alert")).to_contain_text("steps: ")
    expect(card.get_by_role("alert")).not_to_contain_text("num_inference_steps")
    # When only the LoRA is wrong, Then it is counted as people count
    page.get_by_role("button", name="Parameters of stage 1").click()
    parameter(page, 1, "steps", "2")
    parameter(page, 1, "guidance scale", "3")
    page.get_by_role("button", name="Parameters of stage 1").click()
    expect(card.get_by_role("alert")).to_contain_text("loras 1, name: ")
    expect(card).to_contain_text("guidance scale 3")


def test_who_may_only_look_is_told_and_offered_nothing_else(dashboard: Dashboard) -> None:
    # Given somebody who has drawn nothing, and may only look
    watched = dashboard.open(token=dashboard.token("read", owner="eve"))
    page = watched.page
    told = page.get_by_text("Your token may only look: to draw, it needs the scope submit.")
    expect(told).to_be_visible()
    expect(page.get_by_text("Nothing was drawn yet.")).to_be_visible()
    expect(page.get_by_text("press Ctrl+Enter")).to_have_count(0)
    # When there is a job of theirs, Then only who may submit is offered to cancel it
    other = dashboard.open(token=dashboard.token("read", "submit", owner="eve"))
    expect(other.page.get_by_text("press Ctrl+Enter")).to_be_visible()
    other.page.get_by_label("Prompt", exact=True).fill("a pear")
    chain(other.page, "txt")
    other.page.get_by_label("Model", exact=True).select_option("tiny-style")
    other.page.get_by_role("button", name="Submit").click()
    cancel = re.compile("^(Cancel|Retry)$")
    expect(other.page.get_by_role("button", name=cancel)).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="Open")).to_be_visible()
    expect(page.get_by_role("button", name=cancel)).to_have_count(0)
    assert not watched.trouble
    assert not other.trouble


@pytest.mark.parametrize("scope", ["admin", "submit"])
def test_only_an_admin_is_told_to_resume_a_worker(dashboard: Dashboard, scope: str) -> None:
    watched = dashboard.open(token=dashboard.token("read", scope))
    page = watched.page
    # Given work whose one worker is drained
    queue = {"queue": "text2img.tiny", "ready": 2, "running": 0, "workers": 0, "mean_s": None, "wall_s": None}
    page.route(re.compile("/api/v1/queues$"), lambda route: route.fulfill(json=[queue]))

    def drained(route: Route) -> None:
        workers = route.fetch().json()
        route.fulfill(json=[{**one, "draining": True, "queues": ["text2img.tiny"]} for one in workers])

    page.route(re.compile("/api/v1/workers$"), drained)
    page.get_by_role("link", name="Queue").click()
    # Then who may resume it has the way there; anybody else is told who may
    line: Locator = page.get_by_text("2 stages wait for text2img.tiny, whose 1 worker is drained:")
    expect(line).to_contain_text("resume it under Workers" if scope == "admin" else "an admin resumes it")
    expect(line.get_by_role("link")).to_have_count(1 if scope == "admin" else 0)
    assert not watched.trouble


def test_what_is_asked_for_early_waits_for_what_the_farm_can_draw(dashboard: Dashboard) -> None:
    (job,) = dashboard.rig.farm.run("early", chain="txt", steps=1, seed=5)
    job.wait(300)
    watched, held = dashboard.open(), list[Route]()
    page = watched.page
    chain(page, "txt")
    asked(page)
    # Given a page that does not know yet which checkpoints there are
    page.route("**/api/v1/catalog", lambda route: held.append(route))
    page.goto(f"{dashboard.url}/jobs/{job.id}")
    first_of(page, held)
    page.get_by_role("button", name="Size", exact=True).click()
    # When it is told, Then what was asked for is done
    for route in held:
        route.continue_()
    expect(page.get_by_text("The size is in the form.")).to_be_visible()
    assert not watched.trouble
