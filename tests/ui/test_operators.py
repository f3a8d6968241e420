"""Is what operators, workers, pictures and the browser itself say of anything ever more than text on the page?"""

from __future__ import annotations

import base64
import json
import re
import secrets
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Route, expect

from farm.chains import NamedChain
from farm.errors import Failure
from farm.ledger import Ledger
from farm.records import StageEntry, Submission
from farm.tokens import Token
from tests.ui.conftest import DROP, WAIT_MS, Dashboard, Watched
from tests.ui.test_access import settled
from tests.ui.test_strangers import PAYLOADS, WATCH, executed

expect.set_options(timeout=WAIT_MS)

STEERS = {
    "id", "job", "run", "state", "time", "created", "ended", "expires", "url", "thumbnail", "preview", "next",
    "csrf_token", "scopes", "$ref", "type", "x-upload", "x-adapter", "image", "sha256", "lane", "keep", "minutes",
}  # fmt: skip
"""Fields of answers whose values the page acts by; every other text is only shown."""
NAMED = {"queues", "recommended"}
"""Objects whose keys are names that somebody chose."""
EVENTS = f"""
{{
  const Plain = EventSource, payloads = {json.dumps(PAYLOADS)};
  let at = 0;
  window.EventSource = class extends Plain {{
    addEventListener(type, hear, ...rest) {{
      super.addEventListener(type, type !== "job" ? hear : (event) => {{
        const told = JSON.parse(event.data);
        for (const name of ["message", "code", "kind", "phase", "waits_for", "prompt", "owner"])
          told[name] = String(told[name] ?? "") + payloads[at++ % payloads.length];
        told.tags = [...told.tags, payloads[at++ % payloads.length]];
        hear({{data: JSON.stringify(told), lastEventId: event.lastEventId}});
      }}, ...rest);
    }}
  }};
}}
"""
"""Has every event say a payload in each of its texts."""
KEEP = "(kept) => Object.entries(kept).forEach(([name, told]) => {localStorage[name] = sessionStorage[name] = told})"


def payload_of(text: str) -> str:
    """The payload that stands behind `text`: the same for the same text, so that names still name each other."""
    return PAYLOADS[zlib.crc32(text.encode()) % len(PAYLOADS)]


def tainted(value: Any, used: set[str], key: str = "") -> Any:
    """An answer in which every text, but those that the page acts by, has a payload behind it."""
    if isinstance(value, dict):
        end = payload_of if key in NAMED else lambda _: ""
        return {name + end(name): tainted(one, used, name) for name, one in value.items()}
    if isinstance(value, list):
        return [tainted(one, used, key) for one in value]
    if not isinstance(value, str) or key in STEERS:
        return value
    used.add(payload := payload_of(value))
    return value + payload


def metadata(payload: str, seed: int) -> bytes:
    """A PNG, drawn by another program, whose every text is a payload."""
    told = PngInfo()
    # In the last line a colon or a break would end a field.
    word = payload.replace(":", " ").replace("\n", " ")
    drawn = f"{payload} <lora:{word.replace('<', '').replace('>', '')[:200]}:1>"
    said = f"{drawn}\nNegative prompt: {payload}\nSteps: 3, Sampler: {word}, CFG scale: 2, Seed: {seed}, Size: 64x64"
    told.add_text("parameters", f"{said}, Model: {word}, Hires upscaler: {word}, Version: {word}")
    out = BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG", pnginfo=told)
    return out.getvalue()


def watch(dashboard: Dashboard) -> Watched:
    """An admin's page, watched before anything of it runs."""
    found = dashboard.open()
    found.page.context.add_init_script(WATCH)
    return found


@pytest.fixture(scope="module")
def drawn(dashboard: Dashboard) -> dict[str, str]:
    """A run of done jobs that kept their stages' pictures."""
    run = dashboard.rig.farm.run(
        "a pear", chain="refine", seed=3, count=2, steps=2, keep="preview", tags=["starred", "fruit"]
    )
    for job in run:
        job.wait(300)
    return {"job": run[0].id, "run": str(run[0].record.run)}


def test_what_the_servers_hold_is_text(dashboard: Dashboard) -> None:
    """Past every check at the door: as somebody would write it who has the servers' passwords."""
    farm = dashboard.rig.farm
    watched = watch(dashboard)
    page = watched.page
    page.goto(f"{dashboard.url}/queue")
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
    # Given jobs in runs and queues that are called so, which fail with it in code and message, while the page looks on
    ledger, jobs = Ledger(farm.settings), []
    for index, payload in enumerate(PAYLOADS):
        (job,) = farm.jobs_of(farm.chain("txt", prompt=payload, seed=index))
        queue, run = f"strange{index} {payload}", f"{payload}{secrets.token_hex(3)}"
        stage = StageEntry(secrets.token_hex(8), queue, job.payload(0))
        ledger.submit([Submission(job.id, (stage,), job.spec, "", "", run=run, owner=payload, tags=(payload,))])
        (claim,), _ = ledger.claim([queue], payload, "boot")
        ledger.fail([claim], Failure.DETERMINISTIC, payload, payload, payload)
        jobs.append(job.id)
        # And tokens whose owner is
        token = Token(
            id=secrets.token_hex(6), sha256="0" * 64, owner=payload, scopes=frozenset({"read"}), created_ms=index
        )
        dashboard.tokens._server.run("HSET", "callers", token.id, token.model_dump_json())
        # And chains whose every text is
        chain = {"prompt": payload, payload: payload, "stages": [{"kind": payload, "checkpoint": payload}]}
        saved = NamedChain(name=payload, description=payload, owner=payload, chain=chain, saved_ms=index + 1)
        key, data = f"{farm.store.prefix}chains/odd-{index}.json", saved.model_dump_json().encode()
        farm.store.client.put_object(Bucket=farm.store.bucket, Key=key, Body=data)
    # When every view shows them
    for path in ("/queue", "/queue?state=failed", "/sweeps", "/gallery", "/settings", "/"):
        page.goto(dashboard.url + path)
        settled(page)
        # What ran is known to the document in which it did
        assert executed(page) == [], path
    menu = page.get_by_label("Chain", exact=True)
    for index in range(len(PAYLOADS)):
        menu.select_option(f"odd-{index}")
        page.get_by_role("button", name=f"Delete odd-{index}", exact=True).wait_for()
    assert executed(page) == []
    # And workers whose every word is one, too
    page.goto(f"{dashboard.url}/workers")
    for payload in PAYLOADS:
        info = {"host": payload, "pid": "1", "device": payload, "checkpoints": payload}
        ledger.register(payload, payload, [payload], payload, info)
    expect(page.get_by_role("row").filter(has_text="pid 1").nth(len(PAYLOADS) - 1)).to_be_attached()
    assert executed(page) == []
    for job in jobs:
        for tab, there in (("stages", ".track"), ("events", "td")):
            page.goto(f"{dashboard.url}/jobs/{job}?tab={tab}")
            page.locator("main h1", has_text=job).wait_for()
            page.locator(f"[role=tabpanel] {there}").first.wait_for()
            # Then nothing of it ran
            assert executed(page) == []
    ledger.close()
    assert not watched.trouble


def test_whatever_an_answer_says_is_text(dashboard: Dashboard, drawn: dict[str, str]) -> None:
    """Catalog, licences, stages' own words, chains, recipes, events and refusals: the API's word is not relied on."""
    watched = watch(dashboard)
    page = watched.page
    used, refused = set[str](), []

    def answer(route: Route) -> None:
        found = route.fetch()
        if "json" not in found.headers.get("content-type", ""):
            route.fulfill(response=found)
            return
        if found.status >= 400:
            refused.append(found.status)
        route.fulfill(response=found, json=tainted(found.json(), used))

    page.context.add_init_script(EVENTS)
    page.route(re.compile(r"/api/v1/(?!events|.*/artifacts/\d)"), answer)
    seen: list[str] = []
    for path in (
        "/queue", f"/queue?run={drawn['run']}", "/gallery", f"/gallery?open={drawn['job']}", "/sweeps",
        f"/sweeps?run={drawn['run']}", "/workers", "/settings", "/quarantine", "/jobs/none", f"/jobs/{drawn['job']}",
        f"/jobs/{drawn['job']}?tab=recipe", f"/jobs/{drawn['job']}?tab=events", f"/jobs/{drawn['job']}?compare=1",
    ):  # fmt: skip
        page.goto(dashboard.url + path)
        settled(page)
        seen += executed(page)
    # And the form, with all that its stages, chains and checkpoints say; what it asks for is refused, in payloads
    page.goto(dashboard.url)
    page.get_by_label("Chain", exact=True).select_option(index=1)
    page.get_by_role("button", name="Parameters of stage 1").click()
    page.get_by_text(re.compile(r"^More \(")).first.click()
    asking = page.locator("details[open]").get_by_role("button", name=re.compile("^What "))
    expect(asking.first).to_be_visible()
    for one in page.get_by_role("button", name=re.compile("^What ")).all():
        one.click()
    page.get_by_text("Sweep", exact=True).click()
    page.get_by_role("button", name="Add an axis").click()
    page.get_by_label("Prompt", exact=True).fill("a pear")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    expect(page.locator(".submit .bad").first).to_be_visible()
    page.goto(f"{dashboard.url}/jobs/{drawn['job']}")
    page.get_by_role("button", name="Use all").click()
    expect(page.get_by_text("The form is filled")).to_be_visible()
    seen += executed(page)
    # Then
    assert (seen, watched.trouble) == ([], [])
    assert refused
    assert used == set(PAYLOADS)


def test_what_a_picture_says_is_text(dashboard: Dashboard) -> None:
    watched = watch(dashboard)
    page = watched.page
    page.goto(dashboard.url)
    field = page.get_by_label("Prompt", exact=True)
    field.wait_for()
    for seed, payload in enumerate(PAYLOADS):
        page.evaluate(DROP, [base64.b64encode(metadata(payload, seed)).decode(), f"{payload}.png"])
        # A payload may end as the one before it does: its seed is its own
        expect(page.get_by_label("Seed", exact=True)).to_have_value(str(seed))
        expect(field).to_have_value(re.compile(re.escape(payload.strip("\ufeff")[-12:])))
        expect(page.get_by_text("The picture was drawn with the LoRA")).to_be_visible()
    expect(page.get_by_text("The form is filled from a picture of").last).to_be_visible()
    assert (executed(page), watched.trouble) == ([], [])


def test_what_the_browser_kept_is_text(dashboard: Dashboard) -> None:
    token = dashboard.token(owner="kept")
    watched = dashboard.open(token=token)
    page = watched.page
    page.context.add_init_script(WATCH)
    for payload in PAYLOADS:
        stage = {"kind": payload, "checkpoint": payload, "prompt": payload, payload: payload}
        cards = [
            {"id": payload, "on": True, "spec": stage},
            {"id": "1", "on": True, "spec": {"kind": "img2img"}},
        ]
        kept = {
            **dict.fromkeys(("prompt", "negative", "preset", "seed", "count", "keep"), payload),
            "cards": cards, "axes": [{"id": payload, "field": payload, "values": payload}], "earlier": [payload],
            "rest": {payload: payload},
            "given": {"image": payload, "width": 1, "height": 1, "shown": "javascript:" + payload},
        }  # fmt: skip
        page.evaluate(KEEP, {"farm.form.kept": json.dumps(kept), "farm.theme": payload})
        page.goto(dashboard.url)
        page.get_by_label("Prompt", exact=True).wait_for()
        assert executed(page) == []
    # A picture that would be fetched from nowhere is refused by the policy; nothing else is said
    assert not watched.trouble


def test_nothing_that_is_done_by_hand_breaks_the_policy(dashboard: Dashboard, drawn: dict[str, str]) -> None:
    """Dragging, dropping, comparing, packing and another theme: the libraries of the page keep to it, too."""
    watched = watch(dashboard)
    page = watched.page
    page.goto(dashboard.url)
    # When a stage is dragged over the next
    page.get_by_label("Chain", exact=True).select_option("refine")
    stages = page.get_by_role("list", name="Stages").get_by_role("listitem")
    expect(stages).to_have_count(2)
    start, end = stages.nth(0).locator(".handle").bounding_box(), stages.nth(1).bounding_box()
    assert start
    assert end
    page.mouse.move(start["x"] + 5, start["y"] + 12)
    page.mouse.down()
    page.mouse.move(start["x"] + 5, start["y"] + 40, steps=4)
    page.locator("#dnd-action-dragged-el").wait_for()
    page.mouse.move(start["x"] + 5, end["y"] + 30, steps=20)
    expect(stages.nth(0).get_by_label("Kind of stage 1")).to_have_value("img2img")
    page.mouse.up()
    page.locator("#dnd-action-dragged-el").wait_for(state="detached")
    expect(page.get_by_label(re.compile("^Stage 1: img2img"))).to_be_visible()
    # And a picture that the farm drew is dropped
    page.evaluate(DROP, [base64.b64encode(dashboard.rig.farm.job(drawn["job"]).pngs()[0]).decode(), "drawn.png"])
    expect(page.get_by_text("The form is filled from a picture of latent-farm.")).to_be_visible()
    # And stages are compared
    page.goto(f"{dashboard.url}/jobs/{drawn['job']}?compare=1")
    slider = page.get_by_role("slider", name=re.compile("^How much of"))
    box = slider.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    expect(slider).to_have_value(re.compile("^2"))
    seen = executed(page)
    # And pictures are packed
    page.goto(f"{dashboard.url}/gallery")
    page.get_by_role("listitem").get_by_role("button").first.click(modifiers=["Control"])
    with page.expect_download():
        page.get_by_role("link", name="Download as zip").click()
    seen += executed(page)
    # And the theme is changed
    page.goto(f"{dashboard.url}/settings")
    for theme in ("light", "dark"):
        page.get_by_role("radio", name=theme).check()
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
    seen += executed(page)
    assert (seen, watched.trouble) == ([], [])
