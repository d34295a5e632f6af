"""The text encoders as the shim finds them, without torch."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import control


def settings_with(model: Path | None = None) -> Settings:
    return load_settings(_env_file=None, OURVIDZ_SDXL_MODEL=model)


def test_the_shim_finds_the_checkpoint_that_the_worker_loads(untrained_sdxl: Path, tmp_path: Path) -> None:
    """Else the shim would count tokens that the worker does not see."""
    single = tmp_path / "landscape.safetensors"
    single.write_bytes(b"")
    copytree(untrained_sdxl, tmp_path / "landscape.config")
    packaged = tmp_path / "packaged"
    copytree(untrained_sdxl, packaged / "tiny-sdxl")
    for model in (untrained_sdxl, single, None):
        worker = find_sdxl(model, packaged=packaged)
        assert control.text_encoder_folder(settings_with(model), packaged=packaged) == (
            worker.config or worker.path
        )


def test_a_host_without_a_checkpoint_has_no_text_encoders(tmp_path: Path) -> None:
    """The shim may run on a host without models."""
    assert control.text_encoders(settings_with(), packaged=tmp_path) is None
    assert control.text_encoders(settings_with(tmp_path / "nowhere"), packaged=tmp_path) is None
    assert control.text_encoders(settings_with(tmp_path / "nowhere.safetensors"), packaged=tmp_path) is None


def test_a_production_shim_does_not_count_with_the_tiny_tokenizers() -> None:
    """Their vocabulary has a few hundred words: every count would be wrong."""
    production = {"OURVIDZ_PROFILE": "production", "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0"}
    settings = load_settings(_env_file=None, SUPABASE_URL="http://127.0.0.1:1", **production)
    assert control.text_encoders(settings) is None


def test_the_checkpoint_that_ships_can_be_read() -> None:
    """Prompts can be inspected without any setup."""
    found = control.text_encoders(settings_with())
    assert found is not None
    assert found.widths == (64, 96)
