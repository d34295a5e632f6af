from __future__ import annotations

from pathlib import Path
from shutil import copytree

from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import wording


def chosen(model: Path | None = None) -> Settings:
    return load_settings(_env_file=None, OURVIDZ_SDXL_MODEL=model)


def test_the_shim_reads_prompts_like_the_worker(untrained_sdxl: Path, tmp_path: Path) -> None:
    """Both must look at the same checkpoint, or the shim foretells what the worker does not do."""
    single = tmp_path / "landscape.safetensors"
    single.write_bytes(b"")
    copytree(untrained_sdxl, tmp_path / "landscape.config")
    packaged = tmp_path / "packaged"
    copytree(untrained_sdxl, packaged / "tiny-sdxl")
    for model in (untrained_sdxl, single, None):
        worker = find_sdxl(model, packaged=packaged)
        assert wording.find_folder(chosen(model), packaged=packaged) == (worker.config or worker.path)


def test_a_machine_without_a_checkpoint_has_no_tokenizers(tmp_path: Path) -> None:
    """The shim may stand alone."""
    assert wording.encoders(chosen(), packaged=tmp_path) is None
    assert wording.encoders(chosen(tmp_path / "nowhere"), packaged=tmp_path) is None
    assert wording.encoders(chosen(tmp_path / "nowhere.safetensors"), packaged=tmp_path) is None


def test_a_production_shim_does_not_count_with_the_tiny_tokenizers() -> None:
    """They know a few hundred words: every count would be wrong."""
    production = {"OURVIDZ_PROFILE": "production", "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0"}
    settings = load_settings(_env_file=None, SUPABASE_URL="http://127.0.0.1:1", **production)
    assert wording.encoders(settings) is None


def test_the_checkpoint_that_ships_can_be_read() -> None:
    """Prompts are inspected out of the box."""
    found = wording.encoders(chosen())
    assert found is not None
    assert found.widths == (64, 96)
