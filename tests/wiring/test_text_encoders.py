"""The text encoders as the shim finds them, without torch."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

from ourvidz.pipelines.checkpoints import SDXL_BASE_CONFIG
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring import control
from tests.pipelines.weight_files import SDXL, write_sparse


def settings_with(model: Path | None = None) -> Settings:
    return load_settings(_env_file=None, OURVIDZ_SDXL_MODEL=model)


def test_the_shim_finds_the_checkpoint_that_the_worker_loads(untrained_sdxl: Path, tmp_path: Path) -> None:
    """Else the shim would count tokens that the worker does not see."""
    single = tmp_path / "landscape.safetensors"
    bare = write_sparse(tmp_path / "bare.safetensors", SDXL)
    write_sparse(single, SDXL)
    copytree(untrained_sdxl, tmp_path / "landscape.config")
    packaged = tmp_path / "packaged"
    copytree(untrained_sdxl, packaged / "tiny-sdxl")
    copytree(untrained_sdxl, packaged / SDXL_BASE_CONFIG)
    for model in (untrained_sdxl, single, bare, None):
        worker = find_sdxl(model, packaged=packaged)
        assert control.text_encoder_folder(settings_with(model), packaged=packaged) == (
            worker.config or worker.path
        )


def test_the_shim_reads_the_config_folder_of_the_settings(untrained_sdxl: Path, tmp_path: Path) -> None:
    """As the worker does."""
    bare = write_sparse(tmp_path / "bare.safetensors", SDXL)
    settings = load_settings(_env_file=None, OURVIDZ_SDXL_MODEL=bare, OURVIDZ_SDXL_CONFIG=untrained_sdxl)
    assert control.text_encoder_folder(settings) == untrained_sdxl


def test_the_shim_counts_the_tokens_of_a_bare_file(tmp_path: Path) -> None:
    """With the configs of SDXL base and CLIP's vocabulary."""
    found = control.text_encoders(settings_with(write_sparse(tmp_path / "bare.safetensors", SDXL)))
    assert found is not None
    assert (found.widths, found.pooled_width) == ((768, 1280), 1280)
    assert [tokenizer.tokens("a fox!") for tokenizer in found.tokenizers] == [
        ["a</w>", "fox</w>", "!</w>"],
        ["a</w>", "fox</w>", "!"],
    ]


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
