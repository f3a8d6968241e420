"""What of a page that is hidden, comes late, or becomes another person's?"""

from __future__ import annotations

from playwright.sync_api import Page, Route, expect

from tests.e2e.rig import until
from tests.ui.conftest import WAIT_MS, Dashboard, Watched

expect.set_options(timeout=WAIT_MS)
LINES = """
  window.__lines = [];
  const Plain = EventSource;
  window.EventSource = class extends Plain { constructor(...told) { super(...told); window.__lines.push(this); } };
"""
"""Keeps the page's streams for the test to look at."""
HIDE = """
(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}
"""
"""Does what a browser does to a page whose window is covered by another, or no longer."""


def live(page: Page) -> int:
    """How many streams the page holds."""
    return int(page.evaluate("window.__lines.filter((one) => one.readyState !== EventSource.CLOSED).length"))


def test_a_hidden_page_holds_no_connection_and_misses_nothing(dashboard: Dashboard) -> None:
    # Given a page with a job in its queue
    watched = dashboard.open("/queue")
    page = watched.page
    page.add_init_script(LINES)
    page.reload()
    job = dashboard.rig.farm.render("a hidden pear", chain="txt", steps=2, seed=5)
    row = page.get_by_role("listitem").filter(has_text="a hidden pear")
    expect(row).to_be_visible()
    assert live(page) == 1
    # When it is hidden, Then it leaves the browser's few connections to the others
    page.evaluate(HIDE, True)
    until(lambda: live(page) == 0, 30, "the end of its stream")
    # And once it is seen again it is told what it has missed
    job.wait(120)
    page.evaluate(HIDE, False)
    expect(row).to_contain_text("done")
    assert live(page) == 1
    # When it is hidden for a moment only, Then its connection stays
    page.evaluate(HIDE, True)
    page.evaluate(HIDE, False)
    assert page.evaluate("window.__lines.length") == 2
    # When it is left, and kept for the back button, Then it lets go at once, and listens again when one comes back
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    assert live(page) == 0
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    assert live(page) == 1
    assert not watched.trouble


def test_what_ends_before_the_page_listens_is_told(dashboard: Dashboard) -> None:
    # Given a job that waits, and a page that has listed it and cannot listen yet
    farm = dashboard.rig.farm
    with dashboard.idle():
        job = farm.render("an early pear", chain="txt", seed=6)
        held: list[Route] = []
        context = dashboard.browser.new_context(viewport={"width": 1400, "height": 900})
        dashboard.contexts.append(context)
        context.route("**/api/v1/events*", lambda route: held.append(route))
        watched = Watched.of(context.new_page(), f"{dashboard.url}/queue#token={dashboard.token()}")
        row = watched.page.get_by_role("listitem").filter(has_text="an early pear")
        expect(row).to_contain_text("queued")
        # When the job ends, and the stream opens after that
        farm.ledger.cancel(job.id)
        context.unroute("**/api/v1/events*")  # which lets go what is held
        # Then its end is seen
        expect(row).to_contain_text("cancelled")
        assert not watched.trouble


def test_who_logs_out_is_out_or_told(dashboard: Dashboard) -> None:
    watched = dashboard.open("/settings")
    page = watched.page
    # When the farm does not hear of it, Then the page does not claim it
    page.context.set_offline(True)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("status").filter(has_text="cannot be reached")).to_be_visible()
    expect(page.get_by_role("heading", name="Settings")).to_be_visible()
    # When it does, Then a reload does not let anybody in
    page.context.set_offline(False)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert not watched.trouble


def test_a_link_with_a_token_makes_the_page_its_owners(dashboard: Dashboard) -> None:
    # Given a page of one person's, with a job of theirs
    ada, bob = dashboard.token("read", "submit", owner="ada"), dashboard.token("read", "submit", owner="bob")
    watched = dashboard.open("/queue", ada)
    page = watched.page
    row = page.get_by_role("listitem").filter(has_text="ada's pear")
    page.evaluate(
        """() => fetch("/api/v1/session").then((one) => one.json()).then((who) => fetch("/api/v1/jobs", {
            method: "POST", headers: {"Content-Type": "application/json", "X-CSRF-Token": who.csrf_token},
            body: JSON.stringify({chain: "txt", prompt: "ada's pear"})}))"""
    )
    expect(row).to_be_visible()
    # When a link with a wrong token is opened there, Then that is told, and nothing changes
    page.evaluate("location.hash = 'token=wrong'")
    expect(page.get_by_role("status").filter(has_text="token")).to_be_visible()
    expect(row).to_be_visible()
    # When it is another person's, Then the page is theirs, with nothing of the first one's
    page.evaluate("(token) => { location.hash = `token=${token}`; }", bob)
    expect(page.get_by_text("There is no job yet.")).to_be_visible()
    expect(row).to_have_count(0)
    page.get_by_role("link", name="Settings").click()
    expect(page.get_by_text("bob, who may read, submit")).to_be_visible()
    assert not watched.trouble


def test_keys_of_one_character_can_be_switched_off(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("link", name="Settings").click()
    switch = page.get_by_label("Shortcuts of one character")
    # Given that they are off, as the page keeps it
    switch.uncheck()
    page.reload()
    expect(switch).not_to_be_checked()
    # When they are pressed, Then nothing happens
    switch.blur()
    page.keyboard.press("2")
    page.keyboard.press("Shift+?")
    expect(page.get_by_role("heading", name="Settings")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    # When they are on again, Then they do what they did
    switch.check()
    switch.blur()
    page.keyboard.press("Shift+?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
