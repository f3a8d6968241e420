"""How well does a picture fit its prompt, and what does the safety checker say of it?

Both are asked of the pictures of a dataset after it was made, shard by shard, and the answers lie beside each shard
(`farm.dataset.scores`). What was answered already, by the same files about the same tar, is not asked again, so the
program may be ended at any time. People call `farm dataset score`, which calls `python -m workers.scoring`.

All is computed in float32, in calls of one and the same shape, the last one filled up: of other shapes other kernels
take care, whose sums differ in the last bits (by 5e-8 between 1 and 8 pictures of ViT-B/32 on a CPU). In one shape a
picture's score is the same to the last bit whatever stands beside it; other devices and versions may differ by some
1e-7, of which the rounding to `DIGITS` hides nearly all.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from farm.catalog import Adapter, Catalog
from farm.dataset.encoding import decode
from farm.dataset.fetched import Fetched
from farm.dataset.folder import Folder
from farm.dataset.scores import made_by, merged
from farm.dataset.sharding import file_facts
from farm.dataset.tars import Entry, entries
from farm.errors import BadBlob, FarmError, StageFailed
from farm.job import adapter_of
from farm.log import log_to_stderr
from farm.parent import die_with_parent
from farm.settings import Settings
from farm.stage import AdapterType
from farm.store import Store
from workers.adapters import Files, files_of
from workers.pipelines import device_errors, pick_device
from workers.safety import Checker

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

BATCH = 16
"""Pictures of a call. More are hardly faster: ViT-B/32 is busy with so many, and reading them takes its time too."""
DIGITS = 6
"""Decimals of a score: what float32 means."""
DECODERS = 4
"""Threads that decode pictures while a device would wait."""
INTERRUPTED = 130
"""Exit status after Ctrl+C. Source: the shells' 128 + SIGINT."""


class Scorer(Protocol):
    """What gives each picture of a dataset a number."""

    column: ClassVar[str]
    """The name of that number in a table."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """The number of each of the RGB pictures, which were made of these prompts."""


class Clip:
    """How well pictures fit their prompts: the cosine of what CLIP makes of both, -1 to 1.

    In practice 0 to 0.4. CLIPScore is 2.5 × the cosine, or 0 where that is negative; this is the bare cosine.
    Source: Hessel et al. 2021, arXiv:2104.08718, section 3; CLIP: Radford et al. 2021, arXiv:2103.00020.
    """

    column: ClassVar[str] = "clip_score"

    def __init__(self, files: Files, device: str) -> None:
        import torch
        import transformers

        # Without torchvision this is the class that transformers falls back to; its pixels do not depend on that.
        extractor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        told: dict[str, Any] = {"local_files_only": True}
        self._extractor = extractor.from_pretrained(files.path, **told)
        self._tokenizer = transformers.CLIPTokenizer.from_pretrained(files.path, **told)
        told |= {"use_safetensors": True, "variant": files.variant, "dtype": torch.float32}
        model, found = transformers.CLIPModel.from_pretrained(files.path, output_loading_info=True, **told)
        if lacking := sorted(found["missing_keys"]):
            # It would be random there.
            raise ValueError(f"it has no {lacking[0]}")
        if len(self._tokenizer) != model.config.text_config.vocab_size:
            # Without its files transformers makes one that knows nothing.
            raise ValueError("its tokenizer does not have the tokens of its text model")
        self._model = model.eval().to(device)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """The cosine of each picture and its prompt, which is cut at the tokens that the model takes (77)."""
        import torch

        length = self._model.config.text_config.max_position_embeddings
        found: list[float] = []
        for some, words in zip(_calls(images), _calls(prompts), strict=True):
            # All of one length: also in that, other shapes would add up otherwise.
            read = self._tokenizer(words, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            seen = self._extractor(some, return_tensors="pt").pixel_values
            given = {"input_ids": read.input_ids, "attention_mask": read.attention_mask, "pixel_values": seen}
            with torch.no_grad():
                told = self._model(**{name: _filled(each).to(self._model.device) for name, each in given.items()})
                cosines = (told.image_embeds * told.text_embeds).sum(-1)
            found += [round(one, DIGITS) for one in cosines[: len(some)].tolist()]
        return found


class Safety:
    """How far pictures are within what the safety checker finds: its greatest margin, > 0 where it would find it.

    The margin is a cosine minus a threshold (`workers.safety.Checker.margins`); nothing is blackened.
    """

    column: ClassVar[str] = "safety_score"

    def __init__(self, files: Files, device: str) -> None:
        import torch

        self._checker = Checker(files, device, torch.float32)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:  # noqa: ARG002 — see Scorer
        """The margin of each picture."""
        return [
            one
            for some in _calls(images)
            for one in self._checker.margins(_filled(self._checker.seen(some)))[: len(some)]
        ]


SCORERS: dict[AdapterType, type[Clip] | type[Safety]] = {"clip": Clip, "safety_checker": Safety}
"""Which type of catalog entries is loaded by what."""


def _calls(things: Sequence[Any]) -> Iterator[list[Any]]:
    """`BATCH` of them at a time."""
    for start in range(0, len(things), BATCH):
        yield list(things[start : start + BATCH])


def _filled(tensor: Any) -> Any:
    """The tensor with as many rows as every call has: the last one once more."""
    import torch

    return tensor[torch.arange(BATCH).clamp(max=len(tensor) - 1)]


# ------------------------------------------------------------------------------------------------ a dataset's shards


@dataclass(frozen=True)
class Wanted:
    """A column that every shard shall have: what makes it, as its table tells, and how that is loaded."""

    made: dict[str, Any]
    load: Callable[[], Scorer]


@dataclass
class Scored:
    """What a run came to. `shards` were scored, `before` had it all; of `samples` pictures `damaged` cannot be read."""

    shards: int = 0
    before: int = 0
    samples: int = 0
    damaged: int = 0


def wanted(catalog: Catalog, entries: Sequence[Adapter], device: str) -> dict[str, Wanted]:
    """The columns that these entries make, on `device` (`auto`: the best that is here).

    Raises:
        InvalidJob: (`not_pulled`) one of them is not here.
    """
    return {
        SCORERS[entry.type].column: Wanted(
            {"name": entry.name, **adapter_of(catalog, entry)}, partial(_loaded, catalog, entry, device)
        )
        for entry in entries
    }


def _loaded(catalog: Catalog, entry: Adapter, device: str) -> Scorer:
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    # CUDA's convolutions would else be of 10 bits, and add up in any order.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    files = files_of(catalog, entry)
    try:
        return SCORERS[entry.type](files, pick_device(device))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise StageFailed(
            f"the adapter {entry.name} cannot be loaded as a {entry.type}: {str(error).partition(chr(10))[0][:200]}",
            code="bad_checkpoint",
            hint="its files are to be those that transformers and diffusers save of one",
        ) from error


def score(
    folder: Folder | Fetched, columns: Mapping[str, Wanted], say: Callable[[str], None] = lambda _: None
) -> Scored:
    """Scores every whole shard of a dataset that lacks one of `columns`; `say` is told of each.

    Raises:
        NotFound: there is no such dataset.
        BadBlob: tars are not those that were written; all other shards were scored.
        StageFailed: (`bad_checkpoint`) the files of what scores are not those that were pulled, or not of its kind;
            (`gpu_oom`) they do not fit the device.
        Unavailable: the store does not answer; what was scored stays.
    """
    folder.plan()
    told, loaded, wrong = Scored(), dict[str, Scorer](), list[int]()
    for number in folder.numbers():
        before = _before(folder, number)
        made = {} if before is None else made_by(before)
        missing = {name: one.made for name, one in columns.items() if made.get(name) != one.made}
        if not missing:
            told.before += 1
            continue
        for name in sorted(missing.keys() - loaded.keys()):
            say(f"loading {missing[name]['name']}")
            with device_errors():
                loaded[name] = columns[name].load()
        began, sha256 = time.monotonic(), folder.stats(number)["files"][f"{number:05d}.tar"]["sha256"]
        try:
            with folder.tar(number) as tar, device_errors():
                if file_facts(tar)["sha256"] != sha256:
                    raise BadBlob("it is not the tar that was written")
                keys, values, damaged = _measured(tar, [loaded[name] for name in missing])
        except BadBlob as error:
            say(f"shard {number} is left out: {error.message}")
            wrong.append(number)
            continue
        folder.write_scores(number, merged(before, sha256, keys, values, missing))
        told.shards, told.samples, told.damaged = told.shards + 1, told.samples + len(keys), told.damaged + damaged
        lost = f", {damaged} cannot be read" if damaged else ""
        say(f"shard {number}: {len(keys)} pictures{lost}, {len(keys) / (time.monotonic() - began):.1f} a second")
    if wrong:
        raise BadBlob(
            f"not scored, for their tars are not those that were written: shards {', '.join(map(str, wrong))}",
            hint="one that is just made again can be scored in a moment",
        )
    return told


def _before(folder: Folder | Fetched, number: int) -> pa.Table | None:
    """What a shard's pictures were given before; nothing where that cannot be read."""
    try:
        return folder.scores(number)
    except BadBlob:
        return None


def _measured(tar: Path, scorers: Sequence[Scorer]) -> tuple[list[str], dict[str, list[float | None]], int]:
    """The keys of a tar's samples, their numbers by column, and how many pictures cannot be read.

    No more than one call's pictures are in memory.
    """
    keys = list[str]()
    columns: dict[str, list[float | None]] = {one.column: [] for one in scorers}
    damaged = 0
    with ThreadPoolExecutor(DECODERS) as pool, entries(tar) as found:
        while some := [(entry.key, *_given(entry)) for entry in islice(found, BATCH)]:
            keys += [key for key, _, _ in some]
            decoded = pool.map(_decoded, [data for _, _, data in some])
            whole = [(place, image, some[place][1]) for place, image in enumerate(decoded) if image is not None]
            damaged += len(some) - len(whole)
            for scorer in scorers:
                numbers: list[float | None] = [None] * len(some)
                made = scorer.score([image for _, image, _ in whole], [prompt for _, _, prompt in whole])
                for (place, _, _), number in zip(whole, made, strict=True):
                    numbers[place] = number
                columns[scorer.column] += numbers
    return keys, columns, damaged


def _given(entry: Entry) -> tuple[str, bytes]:
    """The prompt and the picture's bytes of one sample; no bytes where one of them is not there."""
    try:
        return entry.read("txt").decode(), entry.picture()[1]
    except (BadBlob, UnicodeDecodeError):
        return "", b""


def _decoded(data: bytes) -> Image | None:
    try:
        return decode(data)
    except BadBlob:
        return None


# ------------------------------------------------------------------------------------------------ the program


def main(argv: Sequence[str] | None = None) -> None:
    """Scores for the pictures of a dataset; stdout gets what it came to as JSON, or the error."""
    parser = argparse.ArgumentParser(prog="workers.scoring", description=main.__doc__)
    parser.add_argument("dataset", nargs="?", help="its name")
    parser.add_argument("--from", dest="folder", type=Path, help="in place of a name: the folder it was fetched to")
    parser.add_argument("--clip", help="the catalog's entry that gives clip_score")
    parser.add_argument("--safety", help="the catalog's entry that gives safety_score")
    parser.add_argument("--device", help="cpu, cuda:1, … [FARM_DEVICE]")
    parser.add_argument("--parent", type=int, help="pid of a process to end with")
    given = parser.parse_args(argv)
    if not (given.clip or given.safety):
        parser.error("--clip NAME, --safety NAME, or both")
    if (given.dataset is None) == (given.folder is None):
        parser.error("the dataset's name, or --from FOLDER")
    # As Ctrl+C does: what lies in temporary folders is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if given.parent is not None:
        die_with_parent(given.parent, signal.SIGTERM)
    try:
        told = asdict(_run(given))
    except FarmError as error:
        print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    print(json.dumps(told))


def _run(given: argparse.Namespace) -> Scored:
    """What is done for a command line."""
    settings = Settings.load()
    log_to_stderr(settings.log_level)
    catalog = Catalog.load(settings)
    asked: tuple[tuple[str, AdapterType], ...] = (("clip", "clip"), ("safety", "safety_checker"))
    entries = [catalog.judge(name, type_, loc) for loc, type_ in asked if (name := getattr(given, loc))]
    columns = wanted(catalog, entries, given.device or settings.device)
    folder = Fetched(given.folder) if given.folder else Folder(Store(settings), given.dataset)
    return score(folder, columns, lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
