"""Are only the recorded files loaded, and is a loaded pipeline ready for one run after another?"""

from __future__ import annotations

import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import save_file

import workers.stages
from farm import models
from farm.catalog import Catalog, Checkpoint
from farm.errors import Failure, StageFailed
from farm.settings import Settings
from tests.stages import conftest as family
from workers import calling, pipelines
from workers.stages.text2img import Text2Img
from workers.stages.upscale import Upscale

catalog, pipe = family.catalog, family.pipe
MODULES = [
    "workers.pipelines",
    "workers.codec",
    "workers.demo.tiny",
    *(f"workers.stages.{module.name}" for module in pkgutil.iter_modules(workers.stages.__path__)),
]


@pytest.fixture
def copy(catalog: Catalog, tmp_path: Path) -> tuple[Catalog, Checkpoint, Path]:
    """A catalog with a recorded copy of `tiny` that a test may damage."""
    shutil.copytree(catalog.models_dir / "tiny", tmp_path / "tiny")
    own = Catalog.load(Settings(models=tmp_path))
    models.record(own, own.checkpoints["tiny"])
    return own, own.checkpoints["tiny"], tmp_path / "tiny"


def test_importing_a_stage_leaves_torch_out() -> None:
    # Given a fresh interpreter for all stages and for what they use
    heavy = ["torch", "diffusers", "transformers", "safetensors", "numpy", "PIL"]
    code = (
        f"import sys, importlib\nfor name in {MODULES}:\n    importlib.import_module(name)\n"
        f"    print([heavy for heavy in {heavy} if heavy in sys.modules])\n"
        "from farm.stage import kinds\nprint(sorted(kinds()))"
    )
    # When they are imported, and the kinds are listed
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Then nothing heavy came with them
    *found, listed = ended.stdout.splitlines()
    assert len(MODULES) == 10
    assert found == ["[]"] * len(MODULES)
    assert all(kind in listed for kind in ("img2img", "text2img", "upscale", "upscale_latent"))


def test_recorded_files_are_taken(copy: tuple[Catalog, Checkpoint, Path]) -> None:
    # Given a recorded checkpoint
    catalog, checkpoint, folder = copy
    # When its files are checked
    files = pipelines.files_of(catalog, checkpoint)
    # Then they are described as the catalog says
    manifest = catalog.lock(checkpoint).manifest
    assert files == pipelines.Files("tiny", folder, False, None, None, "float32", "tiny", manifest=manifest)


def _missing(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()


def _changed(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def _pickle(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04N.")


def _code(folder: Path) -> None:
    (folder / "pipeline.py").write_text("raise SystemExit")


def _variant(folder: Path) -> None:
    shutil.copy(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )


def _link(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder.parent / "elsewhere.safetensors")
    weights.symlink_to(folder.parent / "elsewhere.safetensors")


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _unrecorded(folder: Path) -> None:
    for lock in folder.parent.glob("*.lock.json"):
        lock.unlink()


DAMAGE = [_missing, _changed, _pickle, _code, _variant, _link, _gone, _unrecorded]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__.strip("_"))
def test_other_files_are_refused(copy: tuple[Catalog, Checkpoint, Path], damage: Callable[[Path], None]) -> None:
    # Given a checkpoint whose files are not those of its lock
    catalog, checkpoint, folder = copy
    damage(folder)
    # When they are checked
    with pytest.raises(StageFailed) as caught:
        pipelines.files_of(catalog, checkpoint)
    # Then nothing is loaded, and the reader is told what to do
    assert (caught.value.code, caught.value.failure) == ("bad_checkpoint", Failure.DETERMINISTIC)
    assert "farm models pull tiny" in caught.value.hint


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}")


def _no_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


def _no_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def _other_code(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"UNet2DConditionModel"', '"SomethingElse"'))


@pytest.mark.parametrize(
    "damage", [_no_index, _no_json, _no_weights, _other_code], ids=lambda each: each.__name__.strip("_")
)
def test_recorded_but_unloadable_files_are_refused(
    copy: tuple[Catalog, Checkpoint, Path], damage: Callable[[Path], None]
) -> None:
    # Given a checkpoint that was recorded broken
    catalog, checkpoint, folder = copy
    damage(folder)
    models.record(catalog, checkpoint, force=True)
    # When it is loaded
    with pytest.raises(StageFailed) as caught:
        Text2Img().load(pipelines.files_of(catalog, checkpoint), "cpu")
    # Then the farm's own error says so
    assert caught.value.code == "bad_checkpoint"


def test_a_single_file_is_read_without_the_network(tmp_path: Path) -> None:
    # Given a safetensors file that holds no Stable Diffusion, with a local configuration
    save_file({"weight": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "model_index.json").write_text("{}")
    files = pipelines.Files("one", tmp_path / "one.safetensors", True, tmp_path / "config", None, "float32", "sd1")
    # When it is loaded
    with pytest.raises(StageFailed) as caught:
        Text2Img().load(files, "cpu")
    # Then it is refused as what it is
    assert caught.value.code == "bad_checkpoint"


def test_devices() -> None:
    # Given names of devices
    # Then a name is taken as it is, and auto is one that torch has
    assert pipelines.pick_device("cuda:1") == "cuda:1"
    found = pipelines.pick_device("auto")
    assert torch.zeros(1, device=found).device.type == found


def test_a_generator_is_its_seed() -> None:
    # Given the largest seed
    first, again = (calling.generator(2**53 - 1) for _ in range(2))
    # When noise is drawn
    # Then it is the same, on the CPU, and the seed can be read back
    assert torch.equal(torch.randn(4, generator=first), torch.randn(4, generator=again))
    assert (first.device.type, first.initial_seed()) == ("cpu", 2**53 - 1)


def test_each_run_has_a_scheduler_of_its_own(pipe: Callable[..., Any]) -> None:
    # Given a pipeline whose checkpoint has DDIM, v-prediction and betas of its own
    loaded = pipe(Text2Img())
    own = dict(loaded.own.scheduler.config)
    # When another scheduler, one with needs of its own, and the checkpoint's own follow each other
    for name, cls in (("EulerDiscreteScheduler", EulerDiscreteScheduler), ("PNDMScheduler", PNDMScheduler)):
        calling.fresh_scheduler(loaded, name, {}, [])
        assert type(loaded.scheduler) is cls
        assert loaded.scheduler.config.prediction_type == "v_prediction"
        assert loaded.scheduler.config.beta_end == own["beta_end"]
    assert loaded.scheduler.config.skip_prk_steps is True
    calling.fresh_scheduler(loaded, None, {}, [])
    # Then the last is the checkpoint's, unchanged and unused
    assert type(loaded.scheduler) is DDIMScheduler
    assert loaded.scheduler is not loaded.own.scheduler
    assert dict(loaded.scheduler.config) == own
    assert loaded.own.scheduler.num_inference_steps is None


def test_the_sde_scheduler_is_told_the_seeds(pipe: Callable[..., Any]) -> None:
    loaded = pipe(Text2Img())
    calling.fresh_scheduler(loaded, "DPMSolverSDEScheduler", {}, [calling.generator(seed) for seed in (3, 4)])
    assert loaded.scheduler.noise_sampler_seed == [3, 4]


def test_loading_is_silent_and_nothing_is_checked_for_safety(
    copy: tuple[Catalog, Checkpoint, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a recorded checkpoint
    catalog, checkpoint, _ = copy
    # When it is loaded
    loaded = Text2Img().load(pipelines.files_of(catalog, checkpoint), "cpu")
    # Then no bar and no warning is written, and there is no safety checker
    assert capfd.readouterr() == ("", "")
    assert loaded.safety_checker is None


def test_a_pipeline_of_another_kind_is_refused(copy: tuple[Catalog, Checkpoint, Path]) -> None:
    # Given a checkpoint of text2img
    catalog, checkpoint, _ = copy
    # When the x4 upscaler loads it
    with pytest.raises(StageFailed) as caught:
        Upscale().load(pipelines.files_of(catalog, checkpoint), "cpu")
    # Then it is refused
    assert caught.value.code == "bad_checkpoint"
