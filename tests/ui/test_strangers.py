"""Is what a stranger writes ever more than text in somebody else's browser?"""

from __future__ import annotations

import csv
import json
from io import StringIO

import pytest
from playwright.sync_api import Page

from farm.dataset.asking import carry_out
from farm.dataset.folder import Folder
from tests.api.conftest import serving
from tests.dataset.farms import asked
from tests.ui.conftest import Dashboard

RUN = "window.__ran = (window.__ran || 0) + 1"
PAYLOADS = [
    f"<script>{RUN}</script>", f"<ScRiPt>{RUN}</sCrIpT>", f"<script/x>{RUN}</script>", f"<script\n>{RUN}</script>",
    f"</title><script>{RUN}</script>", f"</textarea><script>{RUN}</script>", f"</style><script>{RUN}</script>",
    f"--><script>{RUN}</script>", f"]]><script>{RUN}</script>", f"'\"><script>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>", f"<img src=x onerror={RUN.replace(' ', '/**/')}>", f"<img/src=x/onerror='{RUN}'>",
    f"<image src=x onerror='{RUN}'>", f"<svg onload='{RUN}'>", f"<svg/onload='{RUN}'>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin='{RUN}' attributeName=x dur=1s>",
    f"<svg><set onbegin='{RUN}' attributename=x>",
    f"<svg><a xlink:href='javascript:{RUN}'><text y=20>x</text></a></svg>",
    f"<math><mi//xlink:href='data:x,<script>{RUN}</script>'>", f"<body onload='{RUN}'>", f"<body onpageshow='{RUN}'>",
    f"<iframe src='javascript:{RUN}'></iframe>", f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<object data='javascript:{RUN}'></object>", f"<embed src='javascript:{RUN}'>", f"<video><source onerror='{RUN}'>",
    f"<video src=x onerror='{RUN}'></video>", f"<audio src=x onerror='{RUN}'></audio>",
    f"<details open ontoggle='{RUN}'>x</details>", f"<input autofocus onfocus='{RUN}'>",
    f"<select autofocus onfocus='{RUN}'></select>", f"<textarea autofocus onfocus='{RUN}'></textarea>",
    f"<keygen autofocus onfocus='{RUN}'>", f"<marquee onstart='{RUN}'>x</marquee>",
    f"<div style='animation-name:x' onanimationstart='{RUN}'>x</div>",
    f"<style>@keyframes x{{}}</style><b style='animation:x' onanimationstart='{RUN}'>x</b>",
    f"<a href='javascript:{RUN}' autofocus onfocus='{RUN}'>x</a>", f"<a href=' javascript:{RUN}'>x</a>",
    f"javascript:{RUN}", f"data:text/html,<script>{RUN}</script>", f"<base href='javascript:{RUN}//'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>", f"<link rel=stylesheet href='javascript:{RUN}'>",
    f"<form action='javascript:{RUN}'><button autofocus onfocus='{RUN}'>x</button></form>",
    f"<button popovertarget=x onbeforetoggle='{RUN}'>x</button><div popover id=x onbeforetoggle='{RUN}'>x</div>",
    f"<dialog open onclose='{RUN}'><form method=dialog><button>x</button></form></dialog>",
    f"<template><script>{RUN}</script></template>", f"<noscript><p title='</noscript><img src=x onerror={RUN!r}>'>",
    f"<xss onpointerrawupdate='{RUN}' style=display:block>x</xss>",
    f"<x onclick='{RUN}' tabindex=1 autofocus onfocus='{RUN}'>x",
    f"{{{{constructor.constructor('{RUN}')()}}}}", f"${{{RUN}}}", f"{{@html '<script>{RUN}</script>'}}",
    f"\"; {RUN}; //", f"'; {RUN}; //", f"`; {RUN}; //", f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"%3Cscript%3E{RUN}%3C/script%3E", f"&lt;script&gt;{RUN}&lt;/script&gt;", f"&#60;script&#62;{RUN}&#60;/script&#62;",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>", f"\ufeff<script>{RUN}</script>",
]  # fmt: skip
"""Ways in which a text becomes a program. Source: OWASP's and PortSwigger's XSS cheat sheets."""
WATCH = """
addEventListener("securitypolicyviolation", (event) => {
  (window.__violations ||= []).push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


def executed(page: Page) -> list[str]:
    """What ran in the page since it was loaded, or would have, were there no policy."""
    found: list[str] = page.evaluate("() => [...Array(window.__ran || 0).fill('ran'), ...(window.__violations || [])]")
    return found


def test_there_are_many() -> None:
    assert len(set(PAYLOADS)) >= 60


@pytest.fixture(scope="module")
def stored(dashboard: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Jobs that have each payload in every text that a caller may store; they are paused, or ended by their chain."""
    farm = dashboard.rig.farm
    jobs = []
    for index, payload in enumerate(PAYLOADS):
        chain = {
            "prompt": payload, "negative_prompt": payload,
            "stages": [{"kind": "text2img", "num_inference_steps": 1, "prompt": payload, "negative_prompt": payload}],
        }  # fmt: skip
        jobs.append(farm.render(chain=chain, seed=index))
        farm.save_chain(f"strange-{index}", chain, payload)
    run = farm.run(chain="txt", sweep=[{"prompt": PAYLOADS[:30]}], steps=1, seed=1)
    for job in [*jobs, *run]:
        job.wait(300)
    # Every cell, every column's name, and what is told of wrong rows
    rows = [["prompt", *PAYLOADS], *([payload, *PAYLOADS] for payload in PAYLOADS)]
    table = StringIO()
    csv.writer(table).writerows(rows)
    path = tmp_path_factory.mktemp("rows") / "strangers.csv"
    path.write_text(table.getvalue())
    asked(dashboard.rig, "strangers", table.getvalue())
    carry_out(farm, "strangers", lambda: False)
    wrong = StringIO()
    csv.writer(wrong).writerows([["prompt", "steps"], *([payload, payload] for payload in PAYLOADS)])
    asked(dashboard.rig, "wrong-strangers", wrong.getvalue())
    carry_out(farm, "wrong-strangers", lambda: False)
    failed = [
        {"key": f"{index:09d}", "sample": "x", "row": index, "variant": 0, "state": "failed", "code": "stage_failed",
         "message": payload}
        for index, payload in enumerate(PAYLOADS)
    ]  # fmt: skip
    folder = Folder(farm.store, "strangers")
    files = {f"00000.{end}": {"bytes": 1, "sha256": "0" * 64} for end in ("tar", "parquet")}
    stats = {"shard": 0, "successes": 0, "failed": len(failed), "failures": failed, "files": files, "kept": []}
    folder.write("shards/00000_stats.json", json.dumps({**stats, "began": 1, "ended": 2}).encode())
    folder.write("progress.json", json.dumps({"shards": 1, "done": 0, "failed": len(failed)}).encode())
    return {
        "job": jobs[0].id,
        "last": jobs[-1].id,
        "run": run[0].record.run or "",
        "table": str(path),
        "count": str(len(jobs)),
    }


def test_no_text_becomes_a_program(dashboard: Dashboard, stored: dict[str, str]) -> None:
    watched = dashboard.open("/")
    page = watched.page
    page.context.add_init_script(WATCH)
    seen: list[str] = []

    def look() -> None:
        seen.extend(executed(page))

    # When every view is opened; what an address says is a stranger's, too
    rows, tiles = "[aria-label=Jobs] [role=listitem]", "[data-at]"
    for path, there in (
        ("/queue", rows), ("/queue?state=done", rows), (f"/queue?run={stored['run']}", rows), ("/gallery", tiles),
        (f"/gallery?open={stored['job']}", "dialog[open] h2"), ("/sweeps", ".run"),
        (f"/sweeps?run={stored['run']}", "[aria-label=Grid] a"), ("/workers", "td"),
        ("/settings", "[aria-label=Tokens] td"), ("/queue?state=%3Cscript%3E&run=javascript:1", "[role=alert], .empty"),
        (f"/gallery?text={RUN}&open=%3Cimg%20src%3Dx%3E", f"{tiles}, .empty"),
        ("/jobs/%3Cimg%20src=x%20onerror=alert(1)%3E", ".empty"), (f"/jobs/{stored['job']}", ".track"),
        ("/datasets", ".one"), ("/datasets/strangers", "[aria-label='Samples that failed'] td"),
        ("/datasets/wrong-strangers", "[aria-label='Why it was refused'] td"),
        ("/datasets/%3Cimg%20src=x%20onerror=alert(1)%3E", ".empty"),
    ):  # fmt: skip
        page.goto(dashboard.url + path)
        page.locator(f"main :is({there}):visible").first.wait_for()
        look()
    # And a dataset's failures and card, and a table of such texts on the form
    page.goto(f"{dashboard.url}/datasets/strangers")
    page.get_by_role("region", name="Samples that failed").get_by_role("row").nth(len(PAYLOADS)).wait_for()
    page.get_by_role("button", name="Open the card").click()
    page.get_by_role("region", name="Card").wait_for()
    look()
    page.goto(f"{dashboard.url}/datasets?new=1")
    page.locator("input[type=file]").first.set_input_files(stored["table"])
    page.get_by_role("region", name="Samples of the first rows").get_by_role("row").nth(5).wait_for()
    look()
    # And each job, with its recipe and its events
    for record in dashboard.rig.farm.jobs(limit=len(PAYLOADS) + 30):
        for tab, there in (("stages", ".track"), ("recipe", "pre"), ("events", "td")):
            page.evaluate(
                "(path) => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')); }",
                f"/jobs/{record.job}?tab={tab}",
            )
            page.locator("main h1", has_text=record.job).wait_for()
            page.locator(f"[role=tabpanel] {there}").first.wait_for()
    look()
    # And the form is filled with each
    page.goto(dashboard.url)
    field = page.get_by_label("Prompt", exact=True)
    for payload in PAYLOADS:
        field.fill(payload)
        field.press("Control+ArrowUp")
    look()
    # And so it is by each saved chain, whose description stands in the menu, below it and in the dialog
    menu, field = page.get_by_label("Chain", exact=True), page.get_by_label("Prompt", exact=True)
    for index, payload in enumerate(PAYLOADS):
        menu.select_option(f"strange-{index}")
        page.get_by_role("button", name=f"Delete strange-{index}", exact=True).wait_for()
        assert field.input_value() == payload
    page.get_by_role("button", name="Save the chain").click()
    page.get_by_role("dialog", name="Save the chain").get_by_label("What it gives").wait_for()
    look()
    # Then
    assert (seen, watched.trouble) == ([], [])


def test_the_policy_forbids_what_nobody_wrote(dashboard: Dashboard) -> None:
    """Were there ever a hole, no script would come through it: the policy is tried, not only read."""
    watched = dashboard.open("/")
    page = watched.page
    page.evaluate(WATCH)
    page.evaluate(
        f"() => document.body.append(Object.assign(document.createElement('script'), {{text: {json.dumps(RUN)}}}))"
    )
    page.evaluate("() => document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.__ran = 1\">')")
    page.wait_for_function("() => (window.__violations || []).length >= 2")
    assert page.evaluate("() => window.__ran || 0") == 0


def test_the_page_is_not_framed_and_runs_nothing_of_elsewhere(dashboard: Dashboard) -> None:
    with serving(dashboard.rig.farm.settings, auth=False) as url:
        page = dashboard.browser.new_page()
        told = page.request.get(url).headers
        page.close()
    policy = dict(part.strip().partition(" ")[::2] for part in told["content-security-policy"].split(";"))
    assert policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert told["x-frame-options"] == "DENY"
