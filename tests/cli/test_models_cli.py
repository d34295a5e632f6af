"""`ourvidz models`: which checkpoints there are, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ourvidz.cli.main import cli
from ourvidz.cli.models import damage
from ourvidz.settings import settings


def safetensors(path: Path, data: bytes = b"\0" * 16) -> Path:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The production profile with a checkpoint in the diffusers layout."""
    made = tmp_path / "model"
    safetensors(made / "unet" / "diffusion_pytorch_model.safetensors")
    (made / "model_index.json").write_text("{}")
    for name, value in {"OURVIDZ_PROFILE": "production", "OURVIDZ_SDXL_MODEL": str(made),
                        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
                        "SUPABASE_URL": "http://127.0.0.1:1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    return made


@pytest.fixture(autouse=True)
def _fresh_settings() -> object:
    yield
    settings.cache_clear()


def test_a_whole_checkpoint_verifies(folder: Path) -> None:
    """Exit status 0 after a download means it can be loaded."""
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["path"], row["problem"]) == (str(folder), None)


def test_a_download_that_broke_off_is_found(folder: Path) -> None:
    """Half a weight file otherwise fails minutes later, in a worker, on a rented GPU."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 1
    assert str(weights) in json.loads(result.stdout)[0]["problem"]


def test_a_checkpoint_that_is_not_there_is_listed_with_its_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list says what a worker would say."""
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(folder / "none"))
    settings.cache_clear()
    (row,) = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).stdout)
    assert "no SDXL checkpoint" in row["problem"]


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"<html>", (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_weight_file_is_damage(tmp_path: Path, content: bytes) -> None:
    """An error page saved under the name of a model is found, never a traceback."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    told = damage(path)
    assert told is not None
    assert str(path) in told
