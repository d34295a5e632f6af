from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest

from ourvidz.pipelines.checkpoints import find_sdxl
from ourvidz.pipelines.tiny_sdxl import tiny_sdxl
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import wording


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with random weights."""
    return tiny_sdxl(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of its own, where the cache lies."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def chosen(model: Path | None = None) -> Settings:
    return load_settings(_env_file=None, OURVIDZ_SDXL_MODEL=model)


def test_the_shim_reads_prompts_like_the_worker(tiny: Path, home: Path) -> None:
    """Both must look at the same checkpoint, or the shim foretells what the worker does not do."""
    single = home / "landscape.safetensors"
    single.write_bytes(b"")
    copytree(tiny, home / "landscape.config")
    packaged = home / "packaged"
    for model in (tiny, single, None):
        settings = chosen(model)
        worker = find_sdxl(model, settings.cache_dir, packaged=packaged)
        assert wording.find_folder(settings, packaged=packaged) == (worker.config or worker.path)
    copytree(tiny, packaged / "tiny-sdxl")
    assert wording.find_folder(chosen(), packaged=packaged) == packaged / "tiny-sdxl"


def test_a_machine_without_a_checkpoint_has_no_tokenizers(home: Path) -> None:
    """The shim may stand alone, or start before the worker has built the tiny one."""
    assert wording.encoders(chosen(), packaged=home) is None
    assert wording.encoders(chosen(home / "nowhere"), packaged=home) is None
    assert wording.encoders(chosen(home / "nowhere.safetensors"), packaged=home) is None


def test_a_checkpoint_that_appears_is_found(tiny: Path, home: Path) -> None:
    """The worker builds the tiny one on its first start, while the shim is already up."""
    assert wording.encoders(chosen(), packaged=home) is None
    cache = chosen().cache_dir
    copytree(tiny, cache / tiny.name)
    (cache / "tiny-sdxl-random-vx").mkdir()
    found = wording.encoders(chosen(), packaged=home)
    assert found is not None
    assert found.widths == (24, 40)


def test_the_newest_format_wins(home: Path) -> None:
    """An older worker's cache may lie beside the current one."""
    for version in (2, 10, 9):
        (chosen().cache_dir / f"tiny-sdxl-random-v{version}").mkdir(parents=True)
    found = wording.find_folder(chosen(), packaged=home)
    assert found is not None
    assert found.name == "tiny-sdxl-random-v10"
