"""Can a person draw, watch, compare, use again, cancel and retry, with the page alone?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.rig import ALL
from tests.ui.conftest import WAIT_MS, Dashboard, Watched

expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def slots() -> Sequence[str]:
    """One worker for each stage, which hand on what they make."""
    return ALL


WATCH = """
() => {
  const results = document.querySelector("[aria-label=Results]"), kept = (window.__kept = new Set());
  new MutationObserver(() => {
    for (const one of results.querySelectorAll("[role=status]")) kept.add(one.textContent.trim());
    for (const one of results.querySelectorAll("img")) kept.add(one.src);
  }).observe(results, { subtree: true, childList: true, characterData: true, attributes: true });
}
"""
"""Keeps every status and every picture that is shown, however short."""


def prompt(page: Page, text: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(text)


def steps(page: Page, stage: int, many: int) -> None:
    """Sets the denoising steps of a stage, counted from 1, in its card."""
    page.get_by_role("button", name=f"Parameters of stage {stage}").click()
    card = page.get_by_label(re.compile(f"^Stage {stage}: "))
    card.get_by_label("steps", exact=True).fill(str(many))
    card.get_by_label("steps", exact=True).press("Tab")


def test_a_chain_is_drawn_watched_compared_and_used_again(watched: Watched) -> None:
    page = watched.page
    # Given the chain of four stages, of which each takes a while
    prompt(page, "a red apple")
    expect(page.get_by_label(re.compile("^Stage 4: upscale"))).to_be_visible()
    for stage, many in ((1, 60), (2, 60), (3, 30), (4, 15)):
        steps(page, stage, many)
    expect(page.get_by_text("1 picture, 4 stages")).to_be_visible()
    page.evaluate(WATCH)
    # When it is submitted from the keyboard
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    # Then it is drawn
    results = page.get_by_label("Results")
    expect(results.get_by_role("status").filter(has_text="done").first).to_be_visible()
    # And every stage was seen while it ran, and a picture with it
    kept: list[str] = page.evaluate("() => [...window.__kept]")
    for stage, kind in enumerate(["text2img", "img2img", "upscale_latent", "upscale"], 1):
        assert any(f"stage {stage} of 4: {kind}" in one for one in kept), kept
    assert any("/preview" in one for one in kept), kept
    # And the result
    whole = results.get_by_role("img", name=re.compile("^Result of the job"))
    expect(whole).to_have_attribute("src", re.compile("/artifacts/0$"))
    page.wait_for_function(
        "() => [...document.images].some((one) => one.src.endsWith('/artifacts/0') && one.naturalWidth > 0)"
    )
    # When its stages are compared
    results.get_by_role("link", name="Open").click()
    page.get_by_role("button", name="Compare").click()
    slider = page.get_by_label(re.compile("^How much of 1 text2img is shown"))
    slider.fill("20")
    over = page.locator(".compare img.over")
    assert over.evaluate("(one) => one.style.clipPath") == "inset(0px 80% 0px 0px)"
    expect(page.get_by_role("row", name=re.compile("^4 upscale"))).to_contain_text("committed")
    # When its seed is used again
    seed = page.locator("dd.mono").inner_text()
    page.get_by_role("button", name="Seed", exact=True).click()
    # Then
    expect(page.get_by_label("Seed", exact=True)).to_have_value(seed)


def test_a_job_is_cancelled_and_retried(dashboard: Dashboard, watched: Watched) -> None:
    page = watched.page
    with dashboard.idle("img2img.tiny"):
        # Given a job that takes long, and does not end before it is cancelled
        prompt(page, "a job to be cancelled")
        steps(page, 1, 150)
        page.get_by_label("Prompt", exact=True).press("Control+Enter")
        results = page.get_by_label("Results")
        on_its_way = re.compile("stage [12] of 4")
        expect(results.get_by_role("status").filter(has_text=on_its_way).first).to_be_visible()
        # When it is cancelled from the keyboard
        page.keyboard.press("Control+Alt+Enter")
        # Then
        expect(results.get_by_role("status").filter(has_text="cancelled").first).to_be_visible()
    # When it is retried from the queue
    page.get_by_role("link", name="Queue").click()
    row = page.get_by_role("listitem").filter(has_text="a job to be cancelled")
    row.get_by_role("button", name="Retry").click()
    # Then it goes on to its end
    expect(row).to_contain_text("done")


def test_a_reload_loses_nothing_and_two_pages_stay_in_step(dashboard: Dashboard, watched: Watched) -> None:
    page, token = watched.page, dashboard.token()
    with dashboard.idle("img2img.tiny"):
        # Given a form, and a job on its way, which gets to its second stage and no further
        prompt(page, "a pear that outlives a reload")
        page.get_by_label("Negative prompt").fill("blurry")
        steps(page, 1, 100)
        page.get_by_label("Prompt", exact=True).press("Control+Enter")
        results = page.get_by_label("Results")
        on_its_way = re.compile("stage [12] of 4")
        expect(results.get_by_role("status").filter(has_text=on_its_way).first).to_be_visible()
        other = dashboard.open("/queue", token)
        row = other.page.get_by_role("listitem").filter(has_text="a pear that outlives a reload")
        expect(row).to_contain_text(re.compile("running|waiting"))
        # When the page is loaded again
        page.reload()
    # Then the form is as it was, and the job goes on in both pages
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a pear that outlives a reload")
    expect(page.get_by_label("Negative prompt")).to_have_value("blurry")
    expect(results.get_by_role("status").filter(has_text="done").first).to_be_visible()
    expect(row).to_contain_text("done")
    assert not other.trouble


def test_a_paste_of_a_result_fills_the_form(dashboard: Dashboard, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    # Given a result file of the farm
    job = dashboard.rig.farm.render("a plum", chain="txt", seed=77, steps=3).wait(120)
    (path,) = job.download(tmp_path)
    expect(page.get_by_label(re.compile("^Stage 4: upscale"))).to_be_visible()
    # When it is dropped on the page
    data = page.evaluate_handle(
        """async (bytes) => {
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(bytes)], "plum.png", {type: "image/png"}));
            return given;
        }""",
        list(path.read_bytes()),
    )
    page.get_by_label("Prompt", exact=True).dispatch_event("drop", {"dataTransfer": data})
    # Then the form asks for it
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a plum")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("77")
    expect(page.get_by_label(re.compile("^Stage 1: text2img"))).to_contain_text("steps 3")
