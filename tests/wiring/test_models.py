from __future__ import annotations

from pathlib import Path

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring.models import TINY_CAP_PX, build

PRODUCTION = {
    "OURVIDZ_PROFILE": "production",
    "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
    "SUPABASE_URL": "http://127.0.0.1:1",
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tiny profile with a cache of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return load_settings()


def test_the_tiny_profile_is_warm_small_and_capped(settings: Settings) -> None:
    """A laptop with nothing installed serves pictures after one call."""
    models = build(settings, "sdxl")
    assert models.info()["sdxl"]["loaded"] is False
    models.warm()
    info = models.info()["sdxl"]
    assert (info["loaded"], info["kind"], info["size_cap"]) == (True, "tiny", TINY_CAP_PX)
    assert set(models.memory()) == {
        "vram_used",
        "vram_total",
        "vram_utilization",
        "vram_used_gb",
        "vram_total_gb",
    }


def test_images_are_loaded_on_demand_and_anew_after_a_reload(settings: Settings) -> None:
    """A worker that was asked to give its memory back serves the next job all the same."""
    models = build(settings, "sdxl")
    pipeline = models.images()
    assert pipeline.info()["loaded"] is True
    pipeline.unload()
    assert models.images().info()["loaded"] is True
    models.reload()
    assert models.info()["sdxl"]["loaded"] is True


def test_production_loads_the_given_checkpoint_without_a_cap(settings: Settings) -> None:
    """In production every size is honoured or refused, never shrunk."""
    tiny = build(settings, "sdxl").images().checkpoint.path
    models = build(load_settings(**PRODUCTION, OURVIDZ_SDXL_MODEL=str(tiny)), "sdxl")
    info = models.images().info()
    assert (info["kind"], info["size_cap"]) == ("folder", None)


def test_missing_weights_are_said_before_anything_starts(settings: Settings, tmp_path: Path) -> None:
    """An operator learns of a wrong path at start, not with the first job."""
    chosen = load_settings(**PRODUCTION, OURVIDZ_SDXL_MODEL=str(tmp_path / "nowhere"))
    with pytest.raises(ModelLoadError, match="nowhere"):
        build(chosen, "sdxl")


def test_a_family_without_pipelines_is_refused(settings: Settings) -> None:
    """A worker for it must not claim to be ready."""
    with pytest.raises(ModelLoadError, match="wan"):
        build(settings, "wan")
