"""Pipelines built from settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles
from ourvidz.pipelines.sdxl.lora import LoraFile
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring.models import build
from ourvidz.wiring.sdxl import TINY_CAP_PX, sdxl_options
from ourvidz.wiring.wan import TINY_WAN_CAP_PX, wan_options
from training.untrained.wan_image_models import build_vace

PRODUCTION = {
    "OURVIDZ_PROFILE": "production",
    "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
    "SUPABASE_URL": "http://127.0.0.1:1",
    "OURVIDZ_ALLOW_CPU": "true",
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tiny profile, with a home directory of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return load_settings()


def test_the_tiny_profile_runs_the_packaged_sdxl_checkpoint_with_a_size_cap(settings: Settings) -> None:
    """Without any settings."""
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


def test_a_pipeline_is_loaded_on_demand(settings: Settings) -> None:
    """Also after it was unloaded, and by `reload`."""
    models = build(settings, "sdxl")
    pipeline = models.images()
    assert pipeline.info()["loaded"] is True
    pipeline.unload()
    assert models.images().info()["loaded"] is True
    models.reload()
    assert models.info()["sdxl"]["loaded"] is True


def test_a_configured_checkpoint_has_no_size_cap(settings: Settings) -> None:
    """In production every size is rendered or refused, never scaled down."""
    tiny = build(settings, "sdxl").images().checkpoint.path
    models = build(load_settings(**PRODUCTION, OURVIDZ_SDXL_MODEL=str(tiny)), "sdxl")
    info = models.images().info()
    assert (info["kind"], info["size_cap"]) == ("folder", None)


@pytest.mark.parametrize("family", ["sdxl", "wan", "chat"])
@pytest.mark.parametrize(
    "variables", [{"OURVIDZ_GPU": "GPU-0000"}, {**PRODUCTION, "OURVIDZ_ALLOW_CPU": "false"}]
)
def test_a_worker_that_needs_a_gpu_does_not_run_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, variables: dict[str, str], family: str
) -> None:
    """An old driver or a mistyped UUID would make every job a hundred times slower, without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoints = {
        "OURVIDZ_SDXL_MODEL": str(PACKAGED / "tiny-sdxl"),
        "OURVIDZ_WAN_MODEL": str(PACKAGED / "tiny-wan"),
        "OURVIDZ_QWEN_MODEL": str(PACKAGED / "tiny-qwen"),
    }
    with pytest.raises(ModelLoadError, match="torch sees no GPU"):
        build(load_settings(**variables, **checkpoints), family)
    allowed = load_settings(**{**variables, **checkpoints, "OURVIDZ_ALLOW_CPU": "true"})
    assert build(allowed, family).info()


def test_a_worker_whose_models_are_remote_or_emulated_needs_no_gpu(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """Only models of this process run on a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    url = "http://127.0.0.1:1/v1"
    remote = load_settings(OURVIDZ_GPU="0", OURVIDZ_QWEN_INSTRUCT_URL=url, OURVIDZ_QWEN_BASE_URL=url)
    assert build(remote, "chat").info()
    assert not load_settings(OURVIDZ_GPU="0", OURVIDZ_EMULATED_GPU="card:48GiB,scale=0.001").requires_gpu


def test_a_wrong_path_is_reported_when_the_pipelines_are_built(settings: Settings, tmp_path: Path) -> None:
    """At start, not with the first job."""
    configured = load_settings(**PRODUCTION, OURVIDZ_SDXL_MODEL=str(tmp_path / "nowhere"))
    with pytest.raises(ModelLoadError, match="nowhere"):
        build(configured, "sdxl")


def test_a_family_without_pipelines_is_refused(settings: Settings) -> None:
    """A worker for it must not start."""
    with pytest.raises(ModelLoadError, match="sounds"):
        build(settings, "sounds")


def test_a_chat_worker_loads_both_language_models_and_nothing_else(settings: Settings) -> None:
    """If both fit, no job waits for a model."""
    models = build(settings, "chat")
    assert {name: info["loaded"] for name, info in models.info().items()} == {
        "qwen_instruct": False,
        "qwen_base": False,
    }
    models.warm()
    assert all(info["loaded"] for info in models.info().values())
    assert models.texts("qwen_base").info()["name"] == "tiny-qwen/base"
    with pytest.raises(ModelLoadError, match="qwen_large"):
        models.texts("qwen_large")
    with pytest.raises(ModelLoadError, match="pictures"):
        models.images()
    with pytest.raises(ModelLoadError, match="language"):
        build(settings, "wan").texts("qwen_base")


@pytest.mark.parametrize(("family", "needed"), [("sdxl", "OURVIDZ_SDXL_MODEL"), ("wan", "OURVIDZ_WAN_MODEL")])
def test_production_never_falls_back_to_a_tiny_checkpoint(
    settings: Settings, family: str, needed: str
) -> None:
    """The error names the missing variable."""
    with pytest.raises(ModelLoadError, match=needed):
        build(load_settings(**PRODUCTION), family)


def test_production_needs_qwen_checkpoints_for_a_chat_worker(settings: Settings, tmp_path: Path) -> None:
    """The packaged ones are not used in production unless they are configured."""
    sdxl = {**PRODUCTION, "OURVIDZ_SDXL_MODEL": str(tmp_path)}
    with pytest.raises(ModelLoadError, match="OURVIDZ_QWEN_MODEL"):
        build(load_settings(**sdxl), "chat")
    with pytest.raises(ModelLoadError, match="nowhere"):
        build(load_settings(**sdxl, OURVIDZ_QWEN_MODEL=str(tmp_path / "nowhere")), "chat")
    given = str(find_qwen(None, "base").root)
    info = build(load_settings(**sdxl, OURVIDZ_QWEN_MODEL=given), "chat").info()
    assert {one["kind"] for one in info.values()} == {"folder"}


def test_a_language_model_can_be_remote(settings: Settings, tmp_path: Path) -> None:
    """Each has its own URL; a model without one is local. With both URLs production needs no checkpoint."""
    there = {"OURVIDZ_QWEN_INSTRUCT_URL": "http://127.0.0.1:1/v1", "OURVIDZ_QWEN_INSTRUCT_NAME": "large"}
    info = build(load_settings(**there), "chat").info()
    assert (info["qwen_instruct"]["kind"], info["qwen_instruct"]["name"]) == ("remote", "large")
    assert info["qwen_instruct"]["inference_engine"] == "openai"
    assert (info["qwen_base"]["kind"], info["qwen_base"]["inference_engine"]) == ("tiny", "pure")
    production = {**PRODUCTION, **there, "OURVIDZ_SDXL_MODEL": str(tmp_path)}
    with pytest.raises(ModelLoadError, match="OURVIDZ_QWEN_BASE_URL"):
        build(load_settings(**production), "chat")
    both = load_settings(**production, OURVIDZ_QWEN_BASE_URL="http://127.0.0.1:1/v1")
    assert {one["kind"] for one in build(both, "chat").info().values()} == {"remote"}


def test_an_operator_can_allow_only_one_resident_language_model(settings: Settings) -> None:
    """The other one is loaded when a job needs it."""
    models = build(load_settings(OURVIDZ_QWEN_TOGETHER="never"), "chat")
    models.warm()
    assert [info["loaded"] for info in models.info().values()] == [True, False]
    models.texts("qwen_base")
    assert [info["loaded"] for info in models.info().values()] == [False, True]
    models.reload()
    assert [info["loaded"] for info in models.info().values()] == [True, False]


def test_a_wan_worker_runs_the_packaged_checkpoint_with_a_size_cap_and_videos_only(
    settings: Settings,
) -> None:
    """A worker has one family."""
    models = build(settings, "wan")
    assert models.info()["wan"]["loaded"] is False
    models.warm()
    info = models.info()["wan"]
    assert (info["loaded"], info["kind"], info["size_cap"]) == (True, "tiny", TINY_WAN_CAP_PX)
    assert models.videos().info()["loaded"] is True
    with pytest.raises(ModelLoadError, match="pictures"):
        models.images()
    models.videos().unload()
    models.reload()
    assert models.info()["wan"]["loaded"] is True


def test_production_needs_a_wan_checkpoint_for_a_wan_worker(settings: Settings, tmp_path: Path) -> None:
    """A configured one has no size cap."""
    sdxl = {**PRODUCTION, "OURVIDZ_SDXL_MODEL": str(tmp_path)}
    with pytest.raises(ModelLoadError, match="OURVIDZ_WAN_MODEL"):
        build(load_settings(**sdxl), "wan")
    tiny = str(find_wan(None).path)
    info = build(load_settings(**sdxl, OURVIDZ_WAN_MODEL=tiny), "wan").info()["wan"]
    assert (info["kind"], info["size_cap"]) == ("folder", None)


def test_without_settings_sdxl_has_the_default_options(settings: Settings) -> None:
    """Everything that changes speed or images is an operator's choice."""
    assert sdxl_options(settings) == SDXLOptions()


def test_sdxl_settings_are_shown_by_info(settings: Settings) -> None:
    """An operator sees that they are in effect."""
    configured = load_settings(
        OURVIDZ_SDXL_SCHEDULER="dpmpp_2m_karras",
        OURVIDZ_SDXL_DTYPE="float32",
        OURVIDZ_SDXL_ATTENTION="math",
        OURVIDZ_SDXL_CHANNELS_LAST="true",
    )
    models = build(configured, "sdxl")
    models.warm()
    info = models.info()["sdxl"]
    shown = {name: info[name] for name in ("scheduler", "dtype", "attention", "channels_last")}
    assert shown == {
        "scheduler": "DPMSolverMultistepScheduler",
        "dtype": "float32",
        "attention": "math",
        "channels_last": True,
    }


def test_lora_and_adapter_files_become_sdxl_options(settings: Settings) -> None:
    """LoRAs with their weights, the adapter with its image encoder."""
    configured = load_settings(
        OURVIDZ_SDXL_LORAS="hills=/m/hills.safetensors@0.8, sky=/m/sky.safetensors",
        OURVIDZ_SDXL_JOB_LORAS="ink=/m/ink.safetensors@-0.5",
        OURVIDZ_IP_ADAPTER="/m/adapter.safetensors",
        OURVIDZ_IP_ADAPTER_ENCODER="/m/encoder",
    )
    options = sdxl_options(configured)
    assert options.loras == (
        LoraFile("hills", Path("/m/hills.safetensors"), 0.8),
        LoraFile("sky", Path("/m/sky.safetensors")),
    )
    assert options.job_loras == (LoraFile("ink", Path("/m/ink.safetensors"), -0.5),)
    assert options.ip_adapter == AdapterFiles(Path("/m/adapter.safetensors"), Path("/m/encoder"))


def test_every_wan_setting_becomes_an_option(settings: Settings) -> None:
    """Without settings, checkpoint and device decide."""
    kept = settings.state_dir / "wan-calibrations"
    assert wan_options(settings) == WanOptions(calibrations=kept)
    configured = load_settings(
        OURVIDZ_WAN_DTYPE="float32",
        OURVIDZ_WAN_ATTENTION="math",
        OURVIDZ_WAN_COMPILE="true",
        OURVIDZ_WAN_FEW_STEPS="true",
        OURVIDZ_WAN_CACHE="first_block",
        OURVIDZ_WAN_CACHE_THRESHOLD="0.1",
        OURVIDZ_WAN_VAE_TILING="always",
        OURVIDZ_WAN_GROUP_OFFLOAD="true",
        OURVIDZ_PREVIEWS="false",
    )
    expected = WanOptions(
        dtype="float32",
        attention="math",
        compiled=True,
        few_steps=True,
        cache="first_block",
        threshold=0.1,
        calibrations=kept,
        tiled=True,
        grouped=True,
        previews=False,
    )
    assert wan_options(configured) == expected
    assert build(configured, "wan").info()["wan"]["cache"] == "first_block"


def test_vace_is_loaded_beside_wan_if_it_is_configured(settings: Settings, tmp_path: Path) -> None:
    """A checkpoint of another model is refused at start, not with the first job."""
    text = find_wan(None).path
    build_vace(tmp_path / "vace", text_to_video=text)
    configured = load_settings(OURVIDZ_WAN_VACE_MODEL=str(tmp_path / "vace"))
    models = build(configured, "wan")
    models.warm()
    info = models.info()["wan"]
    assert (info["model"], info["vace"], info["size_cap"]) == ("t2v", "vace", TINY_WAN_CAP_PX)
    for name, path, words in (
        ("OURVIDZ_WAN_VACE_MODEL", text, "tiny-wan is a text-to-video checkpoint, not a VACE one"),
        ("OURVIDZ_WAN_MODEL", tmp_path / "vace", "vace is a VACE checkpoint, not a text-to-video one"),
        ("OURVIDZ_WAN_VACE_MODEL", tmp_path / "nowhere", "nowhere"),
    ):
        with pytest.raises(ModelLoadError, match=words):
            build(load_settings(**{name: str(path)}), "wan")
