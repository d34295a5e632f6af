"""The checks for GPUs, checkpoints and the options of the pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.cli import model_checks
from ourvidz.settings import Settings
from tests.pipelines.weight_files import KOHYA, SDXL, write_sparse
from training.untrained.wan_image_models import build_vace

MakeSettings = Callable[..., Settings]
Variables = dict[str, str]


def test_production_needs_a_gpu_with_enough_memory_and_the_tiny_profile_needs_none() -> None:
    """SDXL needs 11 GiB; the tiny checkpoints run on the CPU; group offload always needs a GPU."""
    small = [{"name": "small", "free": 4 << 30, "total": 10 << 30}]
    large = [{"name": "large", "free": 40 << 30, "total": 48 << 30}]
    none: list[dict[str, Any]] = []
    statuses = [
        model_checks.check_gpus(gpus, production=True, required=True).status for gpus in (none, small, large)
    ]
    assert statuses == ["failed", "failed", "ok"]
    assert model_checks.check_gpus(none, production=False, required=False).status == "skipped"
    assert model_checks.check_gpus(none, production=False, required=True).status == "failed"
    offload = model_checks.check_gpus(none, production=False, required=False, group_offload=True)
    assert (offload.status, "OURVIDZ_WAN_GROUP_OFFLOAD" in offload.fix) == ("failed", True)
    assert model_checks.check_gpus(large, production=False, required=False, group_offload=True).status == "ok"


def test_a_missing_wan_checkpoint_is_a_failure_only_where_one_is_set(
    make_settings: MakeSettings, production: Variables, tmp_path: Path
) -> None:
    """A production host without a Wan worker is valid; a path to nothing is a failure with its fix."""
    production["OURVIDZ_SDXL_MODEL"] = str(tmp_path)
    unset = model_checks.check_wan_checkpoint(make_settings(**production))
    missing = model_checks.check_wan_checkpoint(
        make_settings(**production, OURVIDZ_WAN_MODEL=tmp_path / "nowhere")
    )
    assert (unset.status, missing.status) == ("skipped", "failed")
    assert "nowhere" in missing.reason
    assert "OURVIDZ_WAN_MODEL" in missing.fix
    assert model_checks.check_wan_checkpoint(make_settings()).status == "ok"


def test_the_vace_checkpoint_is_checked_with_the_wan_checkpoint(
    make_settings: MakeSettings, tmp_path: Path, untrained_wan: Path
) -> None:
    """The worker loads both; the reason names both paths."""
    build_vace(tmp_path / "vace", text_to_video=untrained_wan)
    variables = {"OURVIDZ_WAN_MODEL": untrained_wan, "OURVIDZ_WAN_VACE_MODEL": tmp_path / "vace"}
    both = model_checks.check_wan_checkpoint(make_settings(**variables))
    assert both.status == "ok"
    assert all(str(folder) in both.reason for folder in variables.values())
    variables["OURVIDZ_WAN_VACE_MODEL"] = untrained_wan
    wrong = model_checks.check_wan_checkpoint(make_settings(**variables))
    assert (wrong.status, "OURVIDZ_WAN_VACE_MODEL" in wrong.fix) == ("failed", True)


def test_the_sdxl_options_that_are_set_are_listed(make_settings: MakeSettings, tmp_path: Path) -> None:
    """The options come from many variables; doctor shows them in one place."""
    assert model_checks.check_sdxl_options(make_settings()).reason == model_checks.DEFAULTS
    write_sparse(tmp_path / "hills.safetensors", KOHYA)
    check = model_checks.check_sdxl_options(
        make_settings(
            OURVIDZ_SDXL_SCHEDULER="ddim",
            OURVIDZ_SDXL_COMPILE="true",
            OURVIDZ_SDXL_LORAS=f"hills={tmp_path / 'hills.safetensors'}@0.8",
            OURVIDZ_SDXL_JOB_LORAS=f"ink={tmp_path / 'hills.safetensors'}",
        )
    )
    assert check.status == "ok"
    assert check.reason == "scheduler ddim; compiled; LoRAs hills; LoRAs by name ink"


@pytest.mark.parametrize(
    ("variable", "prefix", "wanted"),
    [
        ("OURVIDZ_SDXL_MODEL", "", "an SDXL checkpoint"),
        ("OURVIDZ_WAN_MODEL", "", "a checkpoint folder"),
        ("OURVIDZ_SDXL_JOB_LORAS", "hills=", "a LoRA"),
        ("OURVIDZ_SDXL_VAE", "", "a VAE"),
    ],
)
def test_a_file_of_the_wrong_kind_is_named(
    make_settings: MakeSettings, tmp_path: Path, variable: str, prefix: str, wanted: str
) -> None:
    """Doctor says in one line what the file is: the worker would fail with the same words minutes later."""
    tensors = SDXL if "LORAS" in variable else KOHYA
    wrong = write_sparse(tmp_path / "wrong.safetensors", tensors)
    settings = make_settings(**{variable: f"{prefix}{wrong}"})
    checks = (
        model_checks.check_sdxl_checkpoint(settings),
        model_checks.check_sdxl_options(settings),
        model_checks.check_wan_checkpoint(settings),
    )
    (failure,) = [check for check in checks if check.status == "failed"]
    name = "an SDXL checkpoint" if tensors is SDXL else "a LoRA"
    assert failure.reason == f"{wrong} is {name}, not {wanted}."
    assert variable in failure.fix


def test_the_wan_options_that_are_set_are_listed(make_settings: MakeSettings) -> None:
    """As for SDXL."""
    default = model_checks.check_wan_options(make_settings())
    assert (default.status, default.reason) == ("ok", model_checks.DEFAULTS)
    check = model_checks.check_wan_options(
        make_settings(
            OURVIDZ_WAN_DTYPE="bfloat16",
            OURVIDZ_WAN_CACHE="mag",
            OURVIDZ_WAN_CACHE_THRESHOLD="0.1",
            OURVIDZ_WAN_VAE_TILING="always",
            OURVIDZ_WAN_MAX_FRAME_PIXELS="1000000",
        )
    )
    assert check.reason == (
        "dtype bfloat16; cache mag; threshold 0.1; VAE always tiled; frames x pixels at most 1000000"
    )


def test_a_threshold_that_the_cache_does_not_use_is_a_failure(make_settings: MakeSettings) -> None:
    """The operator would believe that the quality has been set."""
    check = model_checks.check_wan_options(
        make_settings(OURVIDZ_WAN_CACHE="pab", OURVIDZ_WAN_CACHE_THRESHOLD="0.1")
    )
    assert check.status == "failed"
    assert "OURVIDZ_WAN_CACHE" in check.fix


@pytest.mark.parametrize("variable", ["OURVIDZ_SDXL_LORAS", "OURVIDZ_SDXL_JOB_LORAS"])
def test_a_missing_lora_file_is_a_failure(make_settings: MakeSettings, tmp_path: Path, variable: str) -> None:
    """The worker would fail to start."""
    settings = make_settings(**{variable: f"hills={tmp_path / 'gone.safetensors'}"})
    check = model_checks.check_sdxl_options(settings)
    assert check.status == "failed"
    assert "gone.safetensors" in check.reason
    assert variable in check.fix


def test_the_packaged_language_models_are_found(make_settings: MakeSettings) -> None:
    """The chat worker needs both variants."""
    check = model_checks.check_qwen(make_settings())
    assert check.status == "ok"
    assert "tiny-qwen/instruct" in check.reason
    assert "tiny-qwen/base" in check.reason


def test_a_missing_language_model_is_a_failure_only_where_one_is_set(
    make_settings: MakeSettings, production: Variables, tmp_path: Path
) -> None:
    """A production host without a chat worker is valid; a path to nothing is a failure."""
    production["OURVIDZ_SDXL_MODEL"] = str(tmp_path)
    assert model_checks.check_qwen(make_settings(**production)).status == "skipped"
    missing = model_checks.check_qwen(make_settings(**production, OURVIDZ_QWEN_MODEL=tmp_path / "nowhere"))
    assert (missing.status, "nowhere" in missing.reason) == ("failed", True)
    assert "OURVIDZ_QWEN_MODEL" in missing.fix


def test_a_model_server_must_list_its_models(
    make_settings: MakeSettings,
    production: Variables,
    tmp_path: Path,
    model_server: str,
    model_server_key: str,
    unused_port: int,
) -> None:
    """Asked with the worker's key: a wrong key, no server, and only one of two models are failures."""
    production |= {"OURVIDZ_SDXL_MODEL": str(tmp_path), "OURVIDZ_QWEN_INSTRUCT_URL": model_server}
    both = production | {"OURVIDZ_QWEN_BASE_URL": model_server}
    assert model_checks.check_qwen(make_settings(**both, OURVIDZ_QWEN_KEY=model_server_key)).status == "ok"
    no_key = model_checks.check_qwen(make_settings(**both))
    assert (no_key.status, "401" in no_key.reason) == ("failed", True)
    assert "OURVIDZ_QWEN_KEY" in no_key.fix
    away = model_checks.check_qwen(make_settings(OURVIDZ_QWEN_BASE_URL=f"http://127.0.0.1:{unused_port}/v1"))
    assert (away.status, "OURVIDZ_QWEN_BASE_URL" in away.fix) == ("failed", True)
    half = model_checks.check_qwen(make_settings(**production, OURVIDZ_QWEN_KEY=model_server_key))
    assert (half.status, "OURVIDZ_QWEN_BASE_URL" in half.fix) == ("failed", True)


def test_a_password_of_netrc_is_no_key(
    make_settings: MakeSettings,
    model_server: str,
    model_server_key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker would not send it."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {model_server_key}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    both = {"OURVIDZ_QWEN_INSTRUCT_URL": model_server, "OURVIDZ_QWEN_BASE_URL": model_server}
    assert "401" in model_checks.check_qwen(make_settings(**both)).reason
