"""A farm of real workers, its API, and a real browser that looks at its page."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, sync_playwright

from farm.client import Farm
from farm.handle import JobHandle
from farm.ledger import FAN
from farm.records import WorkerRecord
from farm.scripts import Server
from farm.tokens import Tokens
from tests.api.conftest import serving
from tests.e2e.conftest import models_dir, rig
from tests.e2e.rig import ALONE, Rig, until
from tests.ui.browser import find, flags

__all__ = ["models_dir", "rig"]
WAIT_MS = 60_000
DROP = """
([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0)), dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, {type: 'image/png'}));
  const told = {dataTransfer: dropped, bubbles: true, cancelable: true};
  document.querySelector('main').dispatchEvent(new DragEvent('drop', told));
}
"""
"""Drops a picture, given as base64 of its bytes and its name."""


@dataclass
class Dashboard:
    """A served page. `rig` is the farm behind it, `workers` are all that this has."""

    url: str
    rig: Rig
    tokens: Tokens
    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    workers: Sequence[WorkerRecord] = ()

    def token(self, *scopes: str, owner: str = "") -> str:
        """A token's text."""
        return self.tokens.create(owner or f"o{secrets.token_hex(4)}", scopes or ("admin",))[1]

    def open(self, path: str = "/", token: str | None = None, **options: object) -> Watched:
        """A page of a browser that knows nothing of others, logged in."""
        context = self.browser.new_context(viewport={"width": 1400, "height": 900}, **options)  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        self.contexts.append(context)
        return Watched.of(context.new_page(), f"{self.url}{path}#token={token or self.token()}")

    @contextmanager
    def idle(self, queue: str = "") -> Iterator[None]:
        """Has no worker take work meanwhile, or only none of those that serve `queue`."""
        # By the names that they began with: one that is not heard for a moment is not listed, and comes back drained.
        names = [one.worker for one in self.workers if not queue or queue in one.queues]
        assert names
        try:
            for name in names:
                self.rig.farm.ledger.drain(name)
            yield
        finally:
            for name in names:
                self.rig.farm.ledger.drain(name, on=False)


@dataclass
class Watched:
    """A page, and what went wrong in it."""

    page: Page
    trouble: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, page: Page, address: str) -> Watched:
        """The page at `address`."""
        found = cls(page)
        page.on("pageerror", lambda error: found.trouble.append(f"error: {error}"))
        page.on("console", found._heard)
        page.on("dialog", lambda dialog: (found.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        page.get_by_role("navigation", name="Views").wait_for()
        return found

    def _heard(self, message: ConsoleMessage) -> None:
        # A call that is refused is told in the page; the browser notes it, too.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.trouble.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for the session."""
    path = find()
    if path is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=flags())
        yield found
        found.close()


@pytest.fixture(scope="module")
def slots() -> Sequence[str]:
    """The workers of the module's farm: one for all stages, unless the module has another fixture of this name."""
    return ALONE


@pytest.fixture(scope="module")
def dashboard(rig: Rig, browser: Browser, slots: Sequence[str]) -> Iterator[Dashboard]:
    """The module's dashboard, on a farm that has workers for each stage of the tiny family."""
    rig.supervise(slots)
    workers = rig.ready(len(slots))
    server = Server(rig.farm.settings, FAN)
    # A fast machine does in a second what no hand does: how much one token may ask for is no question of these tests.
    with serving(rig.farm.settings.model_copy(update={"rate_per_s": 0}), heartbeat_s=0.5) as url:
        found = Dashboard(url, rig, Tokens(server), browser, workers=workers)
        yield found
        for context in found.contexts:
            shut(context)
    server.close()


@pytest.fixture
def watched(dashboard: Dashboard) -> Iterator[Watched]:
    """A page of an admin's; nothing may have gone wrong in it at the end."""
    found = dashboard.open()
    yield found
    assert not found.trouble
    shut(found.page.context)


def shut(context: BrowserContext) -> None:
    """Closes its pages, also while they wait for an answer that a test is changing."""
    for page in context.pages:
        page.unroute_all(behavior="ignoreErrors")
    context.close()


def first_of(page: Page, held: Sequence[Route]) -> Route:
    """The first request that is held, once there is one."""
    heard(page, lambda: bool(held), "a request that is held")
    return held[0]


def heard(page: Page, condition: Callable[[], bool], what: str) -> None:
    """Waits for what listeners to the page are told: a look at it has Playwright tell what has happened meanwhile."""
    until(lambda: page.evaluate("true") and condition(), 60, what)


def four(farm: Farm, prompt: str) -> list[JobHandle]:
    """Four done jobs; the last is the newest."""
    run = list(farm.run(prompt, chain="txt", seed=1, count=4, steps=1))
    for job in run:
        job.wait(300)
    return run


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """A folder for screenshots."""
    return tmp_path
