"""Which Chromium do tests of the dashboard use? `python -m tests.ui.browser` installs one where it may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
"""Nothing but the page asks for anything over the network."""


def find() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def flags() -> list[str]:
    """What the browser is started with; root has no sandbox to give it."""
    return [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


def install() -> None:
    """Installs Debian's Chromium, where this user may; says what to do where not."""
    if find() is not None:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        print("no Chromium here: tests of the dashboard are skipped; install the package chromium to run them")
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["-y", "--no-install-recommends", "install", "chromium"]):
        subprocess.run([apt, "-qq", *words], env=env, stdout=sys.stderr, check=False)
    if find() is None:
        print("Chromium could not be installed: tests of the dashboard are skipped")


if __name__ == "__main__":
    install()
