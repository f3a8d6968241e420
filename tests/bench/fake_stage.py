"""What is a stage that costs nothing? It claims many samples at once, and commits pictures that lie in the store.

A program of its own, for `tests.bench.datasets`: `python -m tests.bench.fake_stage`.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from typing import Any

from PIL import Image

from farm.client import Farm
from farm.errors import FarmError
from farm.image import hash_pixels
from farm.job import canonical
from farm.ledger import Ledger
from farm.records import Commit
from farm.settings import Settings

QUEUE = "text2img.tiny"
PICTURES = 64
"""Different pictures that it gives out."""
CLAIMED = 50


def main() -> None:
    """Claims and commits until SIGTERM."""
    settings = Settings.load()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    farm, ledger = Farm(settings), Ledger(settings)
    outputs = [_output(farm, number) for number in range(PICTURES)]
    number = 0
    while not stop.is_set():
        try:
            claims, _ = ledger.claim([QUEUE], "fake", "boot", CLAIMED)
            if claims:
                commits = [Commit(one, outputs[(number + at) % PICTURES]) for at, one in enumerate(claims)]
                ledger.commit(commits)
                number += len(claims)
            else:
                stop.wait(0.01)
        except FarmError as error:
            print(error, file=sys.stderr)
            stop.wait(0.1)


def _output(farm: Farm, number: int) -> str:
    """What the ledger is told of one picture, which lies in the store then."""
    image = Image.effect_noise((64, 64), 8 + number).convert("RGB")
    data = io.BytesIO()
    image.save(data, "PNG")
    sha256 = farm.store.put_blob(data.getvalue(), "image/png")
    told: dict[str, Any] = {"v": 1, "medium": "image", "size": [64, 64], "made": [{"device": "cpu"}]}
    told |= {"pixels": hash_pixels(image), "bytes": len(data.getvalue()), "blob": sha256}
    return canonical(told)


if __name__ == "__main__":
    main()
