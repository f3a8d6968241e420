"""Is what people see of a running stage its own, small, rare enough, and never in its way?"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import diffusers
import pytest
import redis
import torch
from PIL import Image

from farm import models
from farm.catalog import Catalog, Space
from farm.ledger import Ledger
from farm.readers import WATCHED_MS
from farm.records import Beat, Claim, Commit, Lane, StageEntry, Submission
from farm.sampler import SCHEDULERS
from farm.settings import Settings
from tests.conftest import Valkey, free_port
from workers import preview
from workers.demo import family, tiny
from workers.preview import MAX_BYTES, SIDE, Screen, colours, fit, scaled, views, webp

RED_AND_GREEN = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0, 0, 0], [0, 0, 0], [-1.0, -1.0, -1.0]]
"""A projection of four channels: the first is red, the second green, and nothing is black."""


def claims_of(ledger: Ledger, count: int, *lanes: Lane) -> list[Claim]:
    """The claims of jobs `j0`, `j1`, … of one stage each."""
    jobs = [
        Submission(f"j{number}", (StageEntry(f"x{number}", "q", "{}"),), "{}", "", "h", lane=lane)
        for number, lane in enumerate(lanes or ("interactive",) * count)
    ]
    ledger.submit(jobs)
    found, _ = ledger.claim(["q"], "w", "boot", limit=count)
    return sorted(found, key=lambda claim: claim.exec)


def seen(*members: tuple[float, float]) -> Callable[[], Any]:
    """Views of members, each of one colour: red and green, 0 to 2."""
    latents = torch.zeros(2, len(members), 4, 8, 8)
    for row, colour in enumerate(members):
        latents[:, row, :2] = torch.tensor(colour)[:, None, None]
    return lambda: latents


def shown(screen: Screen, made: Callable[[], Any], row: int = 0) -> None:
    """Shows, and waits until that is over."""
    screen.show(made, row)
    if screen._sending is not None:
        screen._sending.join(30)
        assert not screen._sending.is_alive()


def colour_of(data: bytes | None) -> tuple[int, ...]:
    """The colour in the middle of a picture, to the next sixteenth."""
    assert data
    picture = Image.open(BytesIO(data), formats=["WEBP"]).convert("RGB")
    found = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(found, tuple)
    return tuple(round(level / 16) * 16 for level in found)


# ------------------------------------------------------------------------------------------- the ledger


def picture(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_the_newest_picture_of_a_running_stage_is_there_until_it_ends(ledger: Ledger, valkey: Valkey) -> None:
    # Given
    (claim,) = claims_of(ledger, 1)
    assert (ledger.job("j0").stages[0].preview, ledger.preview("x0")) == (0, None)
    # When
    numbers = []
    for text in ("one", "two"):
        ledger.show([(claim, picture(text))])
        numbers.append(ledger.job("j0").stages[0].preview)
        assert ledger.preview("x0") == text.encode()
    # Then each has another number, and none outlives its stage for long, even if nobody ends that
    assert 0 < numbers[0] < numbers[1]
    lives_ms = redis.Redis.from_url(valkey.url).pttl("{farm}:preview:x0")
    assert 0 < lives_ms <= 60_000
    ledger.commit([Commit(claim, "out", claim.finishing)])
    assert (ledger.job("j0").stages[0].preview, ledger.preview("x0")) == (0, None)


def test_only_the_holder_of_the_token_shows_anything(ledger: Ledger) -> None:
    # Given a stage that was given back and claimed again
    (old,) = claims_of(ledger, 1)
    ledger.watch(["x0"])
    ledger.show([(old, picture("old"))])
    assert ledger.preview("x0") == b"old"
    ledger.release([old])
    (claim,), _ = ledger.claim(["q"], "w2", "boot")
    assert ledger.job("j0").stages[0].preview == 0
    # When, Then
    for held, text in ((old, "old"), (claim, "new"), (old, "old")):
        ledger.show([(held, picture(text))])
    assert ledger.preview("x0") == b"new"


def test_what_is_made_in_bulk_is_not_looked_at(ledger: Ledger) -> None:
    bulk, claim = claims_of(ledger, 2, "bulk", "interactive")
    ledger.watch(["x0", "x1"])
    assert ledger.beat([bulk, claim], "step", 1, 2) == [Beat.OK, Beat.WATCHED]
    ledger.show([(bulk, picture("x")), (claim, picture("y"))])
    assert (ledger.preview("x0"), ledger.preview("x1")) == (None, b"y")


def test_a_picture_is_wanted_for_a_while_after_somebody_looked(ledger: Ledger, valkey: Valkey) -> None:
    # Given a stage at which nobody has looked
    (claim,) = claims_of(ledger, 1)
    raw = redis.Redis.from_url(valkey.url)

    def wanted() -> bool:
        ledger.show([(claim, picture("new"))])
        (told,) = ledger.beat([claim], "step", 1, 2)
        assert told in (Beat.OK, Beat.WATCHED)
        assert (told is Beat.WATCHED) == (ledger.job("j0").stages[0].preview > 0)
        return told is Beat.WATCHED

    assert not wanted()
    # When somebody asks for its picture, then there is none yet, but one is wanted
    assert ledger.preview("x0") is None
    assert wanted()
    # When that is nearly over, and somebody looks again, then it goes on for as long as at first
    assert 0 < raw.pttl("{farm}:watched:x0") <= WATCHED_MS
    raw.pexpire("{farm}:watched:x0", WATCHED_MS // 3)
    ledger.watch(["x0"])
    assert raw.pttl("{farm}:watched:x0") > WATCHED_MS // 2
    # But one look right after another costs no writing
    raw.pexpire("{farm}:watched:x0", round(WATCHED_MS * 0.9))
    ledger.watch(["x0"])
    assert raw.pttl("{farm}:watched:x0") <= WATCHED_MS * 0.9


# ------------------------------------------------------------------------------------------- the screen


def watched(ledger: Ledger, claims: list[Claim], pause_s: float) -> Screen:
    """A screen of `claims` at which somebody looks."""
    ledger.watch([claim.exec for claim in claims])
    screen = Screen(ledger, claims, RED_AND_GREEN, pause_s)
    screen.watched = True
    return screen


def test_each_member_of_a_call_has_its_own_picture(ledger: Ledger) -> None:
    # Given a call of three
    claims = claims_of(ledger, 3)
    screen = watched(ledger, claims, 0.5)
    # When
    shown(screen, seen((2, 0), (0, 2), (0, 0)))
    # Then
    assert [colour_of(ledger.preview(f"x{row}")) for row in range(3)] == [(256, 0, 0), (0, 256, 0), (0, 0, 0)]


def test_members_in_calls_of_their_own_are_told_apart(ledger: Ledger) -> None:
    claims = claims_of(ledger, 2)
    screen = watched(ledger, claims, 60)
    shown(screen, seen((2, 0)), 0)
    shown(screen, seen((0, 2)), 1)
    assert [colour_of(ledger.preview(f"x{row}")) for row in range(2)] == [(256, 0, 0), (0, 256, 0)]


def test_pictures_come_no_sooner_than_they_should(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a clock that stands still
    now = [100.0]
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    screen, made = watched(ledger, claims_of(ledger, 1), 0.5), []

    def step() -> Any:
        made.append(now[0])
        return seen((2, 0))()

    # When there is a step every eighth of a second
    for _ in range(16):
        shown(screen, step)
        now[0] += 0.125
    # Then two in a second are drawn, and nothing is computed for the others
    assert made == [100.0, 100.5, 101.0, 101.5]


def test_nothing_is_drawn_where_nobody_looks(ledger: Ledger) -> None:
    screen, made = watched(ledger, claims_of(ledger, 1), 0.0), []
    for screen.watched in (True, False, True, False, False):
        shown(screen, lambda: made.append(screen.watched) or seen((2, 0))())
    assert made == [True, True]


def test_nothing_that_goes_wrong_reaches_the_stage(ledger: Ledger, settings: Settings, tmp_path: Path) -> None:
    # Given a device without room, latents of another space, and a ledger that is away
    (claim,) = claims_of(ledger, 1)

    def full() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    away = Ledger(Settings.load(redis_url=f"redis://127.0.0.1:{free_port()}/0", data=tmp_path))
    for where, made in ((ledger, full), (ledger, lambda: torch.zeros(2, 1, 7, 8, 8)), (away, seen((2, 0)))):
        calls: list[int] = []
        screen = Screen(where, [claim], RED_AND_GREEN, 0.0)
        screen.watched = True
        for _ in range(3):
            # When, Then it is over with the pictures, and with nothing else
            shown(screen, lambda made=made, calls=calls: calls.append(1) or made())
        assert calls == [1]
    assert ledger.job("j0").stages[0].state == "running"
    assert ledger.preview("x0") is None


# ------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("shape", [(8, 8), (128, 128), (16, 96), (300, 520), (1, 1)])
def test_a_picture_is_small_whatever_it_shows(shape: tuple[int, int]) -> None:
    # Given noise, which compresses worst
    latents = 3 * torch.randn(2, 1, 4, *shape, generator=torch.Generator().manual_seed(1))
    # When
    (pixels,) = colours(latents, RED_AND_GREEN)()
    data = webp(scaled(Image.fromarray(pixels)))
    # Then
    assert max(Image.open(BytesIO(data)).size) == SIDE
    assert len(data) <= MAX_BYTES
    assert len(base64.b64encode(data)) < 32 * 1024


def test_what_is_no_number_is_some_colour() -> None:
    latents = torch.full((2, 1, 4, 8, 8), float("nan"))
    latents[0] = float("inf")
    assert colours(latents, RED_AND_GREEN)().shape == (1, 8, 8, 3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_estimate_is_the_picture_where_the_model_is_right(name: str, kind: str) -> None:
    # Given latents, noised as the scheduler does it, and a model that sees through that
    scheduler = getattr(diffusers, name)(
        prediction_type=kind, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(10)
    draw = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(2))
    timestep = scheduler.timesteps[4]  # some schedulers go half-steps between these
    sample = scheduler.add_noise(latents, noise, timestep.repeat(2))
    level = scheduler.alphas_cumprod[int(timestep)]
    velocity = level.sqrt() * noise - (1 - level).sqrt() * latents
    made = {"epsilon": noise, "v_prediction": velocity, "sample": latents}[kind]
    # When
    found = views(scheduler, made, timestep, sample)
    # Then, but for timesteps between two others
    assert float((found[1] - latents).abs().mean()) < 0.05
    # And the noisy ones are of a strength that can be shown, however the scheduler scales them
    assert 0.5 < float(found[0].std()) < 1.5


def test_the_command_prints_a_line_of_the_catalog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Given a checkpoint on this machine
    settings = Settings.load()
    catalog = Catalog.load(settings)
    tiny.build("tiny", catalog.path(catalog.checkpoints["tiny"]))
    models.record(catalog, catalog.checkpoints["tiny"])
    # When
    preview.main("tiny")
    # Then it can be put into its space
    told = tomllib.loads(capsys.readouterr().out)
    assert Space(name="tiny", channels=4, factor=8, preview=told["preview"]).preview


def test_a_space_without_a_projection_can_be_given_one(tmp_path: Path) -> None:
    # Given the demo family's VAE, and pictures of blocks of colour
    family.build("demo", tmp_path)
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path, subfolder="vae", torch_dtype=torch.float32)
    draw = torch.Generator().manual_seed(9)
    blocks = torch.rand(8, 3, 4, 4, generator=draw) * 2 - 1
    pictures = torch.nn.functional.interpolate(blocks, (64, 64), mode="nearest")
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
    wanted = torch.nn.functional.avg_pool2d(pictures, 4)

    def error_db(rows: list[list[float]]) -> float:
        matrix = torch.tensor(rows)
        shown = torch.einsum("bchw,cr->brhw", latents, matrix[:-1]) + matrix[-1][:, None, None]
        return float(10 * torch.log10(4 / (shown - wanted).square().mean()))

    # When
    fitted = error_db(fit(vae))
    # Then it is no worse than the catalog's, which was fitted to scenes
    assert fitted >= 15
    assert fitted >= error_db(Catalog.load(Settings(catalog=None)).spaces["demo"].preview or [])
