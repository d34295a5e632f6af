"""`ourvidz doctor`: what is wrong, why, and what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ourvidz.cli import doctor
from ourvidz.cli.main import cli
from ourvidz.settings import load_settings
from training.untrained.wan_pictures import build_vace


def chosen(tmp_path: Path, **values: Any) -> Any:
    return load_settings(OURVIDZ_STATE_DIR=tmp_path, _env_file=None, **values)


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_laptop_with_nothing_set_has_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded default must pass, or nobody trusts the failures."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0, result.stdout
    assert list(checks) == [
        "python",
        "settings",
        "torch",
        "gpu",
        "checkpoints",
        "sdxl",
        "wan checkpoint",
        "wan",
        "qwen",
        "moderation",
        "broker",
        "storage",
        "signing",
        "callbacks",
    ]
    assert "CUDA" in checks["torch"]["reason"] or "CPU" in checks["torch"]["reason"]


def test_a_wrong_setting_is_named_and_the_rest_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong variable must not look like eight broken things."""
    monkeypatch.setenv("OURVIDZ_LEASE_S", "-1")
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    checks = doctor.examine()
    failed = [check for check in checks if check.status == "failed"]
    assert [check.name for check in failed] == ["settings"]
    assert "OURVIDZ_LEASE_S" in failed[0].reason
    assert failed[0].fix


def test_the_wan_checkpoint_is_looked_at_where_there_is_to_be_one(tmp_path: Path) -> None:
    """Production may do without a Wan worker; a path that leads nowhere is a failure with its fix."""
    production = {
        "OURVIDZ_PROFILE": "production",
        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
        "SUPABASE_URL": "http://127.0.0.1:1",
        "OURVIDZ_SDXL_MODEL": tmp_path,
    }
    none = doctor.check_wan(chosen(tmp_path, **production))
    wrong = doctor.check_wan(chosen(tmp_path, **production, OURVIDZ_WAN_MODEL=tmp_path / "nowhere"))
    assert (none.status, wrong.status) == ("skipped", "failed")
    assert "nowhere" in wrong.reason
    assert "OURVIDZ_WAN_MODEL" in wrong.fix
    assert doctor.check_wan(chosen(tmp_path)).status == "ok"


def test_vace_is_looked_at_beside_the_wan_checkpoint(tmp_path: Path, untrained_wan: Path) -> None:
    """Both must be there, and an operator sees both."""
    build_vace(tmp_path / "vace", beside=untrained_wan)
    given = {"OURVIDZ_WAN_MODEL": untrained_wan, "OURVIDZ_WAN_VACE_MODEL": tmp_path / "vace"}
    both = doctor.check_wan(chosen(tmp_path, **given))
    assert both.status == "ok"
    assert all(str(folder) in both.reason for folder in given.values())
    wrong = doctor.check_wan(chosen(tmp_path, **given | {"OURVIDZ_WAN_VACE_MODEL": untrained_wan}))
    assert (wrong.status, "OURVIDZ_WAN_VACE_MODEL" in wrong.fix) == ("failed", True)


def test_how_sdxl_was_told_to_run_is_shown(tmp_path: Path) -> None:
    """What is set somewhere in an environment is seen in one place."""
    assert doctor.check_sdxl(chosen(tmp_path)).reason == "as its checkpoint and the device say"
    (tmp_path / "hills.safetensors").touch()
    check = doctor.check_sdxl(
        chosen(
            tmp_path,
            OURVIDZ_SDXL_SCHEDULER="ddim",
            OURVIDZ_SDXL_COMPILE="true",
            OURVIDZ_SDXL_LORAS=f"hills={tmp_path / 'hills.safetensors'}@0.8",
            OURVIDZ_SDXL_JOB_LORAS=f"ink={tmp_path / 'hills.safetensors'}",
        )
    )
    assert check.status == "ok"
    assert check.reason == "scheduler ddim; compiled; LoRAs hills; LoRAs by name ink"


def test_how_wan_runs_is_told(tmp_path: Path) -> None:
    """An operator sees at a glance which switches are on."""
    plain = doctor.check_wan_options(chosen(tmp_path))
    assert (plain.status, plain.reason) == ("ok", "as its checkpoint and the device say")
    check = doctor.check_wan_options(
        chosen(
            tmp_path,
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


def test_a_threshold_that_nothing_reads_is_a_failure(tmp_path: Path) -> None:
    """It would look as if quality had been set."""
    check = doctor.check_wan_options(
        chosen(tmp_path, OURVIDZ_WAN_CACHE="pab", OURVIDZ_WAN_CACHE_THRESHOLD="0.1")
    )
    assert check.status == "failed"
    assert "OURVIDZ_WAN_CACHE" in check.fix


@pytest.mark.parametrize("variable", ["OURVIDZ_SDXL_LORAS", "OURVIDZ_SDXL_JOB_LORAS"])
def test_a_lora_that_is_not_there_is_a_failure(tmp_path: Path, variable: str) -> None:
    """Before a worker fails to start for it."""
    check = doctor.check_sdxl(chosen(tmp_path, **{variable: f"hills={tmp_path / 'gone.safetensors'}"}))
    assert check.status == "failed"
    assert "gone.safetensors" in check.reason
    assert variable in check.fix


def test_the_certificate_is_tried(tmp_path: Path, make_chain: Any) -> None:
    """Before a worker refuses to start for it; without one there is nothing to try."""
    assert doctor.check_signing(chosen(tmp_path)).status == "skipped"
    check = doctor.check_signing(chosen(tmp_path, **make_chain().variables(tmp_path)))
    assert (check.status, check.reason.partition(", ")[2]) == ("ok", "es256, no timestamps")
    wrong = doctor.check_signing(chosen(tmp_path, **make_chain(days=9).variables(tmp_path)))
    assert wrong.status == "failed"
    assert "OURVIDZ_C2PA_CERTIFICATE" in wrong.reason


def test_the_name_of_an_extra_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A fix without the words in brackets would install the wrong thing."""
    doctor._show([doctor.Check("broker", "failed", "none", "get ourvidz[embedded]")])
    assert "ourvidz[embedded]" in capsys.readouterr().out.replace("\n", "")


def test_a_broker_that_throws_jobs_away_is_a_failure(tmp_path: Path, start_redis: Any) -> None:
    """The default policy of many hosted servers loses queued jobs under memory pressure."""
    server = start_redis("--maxmemory-policy", "allkeys-lru")
    check = doctor.check_broker(chosen(tmp_path, OURVIDZ_REDIS_URL=server.url))
    assert check.status == "failed"
    assert "allkeys-lru" in check.reason
    assert "noeviction" in check.fix


def test_a_broker_that_evicts_nothing_is_fine(tmp_path: Path, redis_url: str) -> None:
    """The other side of the same check."""
    assert doctor.check_broker(chosen(tmp_path, OURVIDZ_REDIS_URL=redis_url)).status == "ok"


def test_a_broker_that_is_away_is_a_failure_with_a_fix(tmp_path: Path) -> None:
    """The reason names what happened, the fix which variable to look at."""
    check = doctor.check_broker(chosen(tmp_path, OURVIDZ_REDIS_URL=f"redis://127.0.0.1:{dead_port()}/0"))
    assert check.status == "failed"
    assert "OURVIDZ_REDIS_URL" in check.fix


def test_storage_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    """Found at the desk, not by the first customer's picture."""
    (tmp_path / "file").touch()
    check = doctor.check_storage(chosen(tmp_path, OURVIDZ_STORAGE_DIR=tmp_path / "file" / "assets"))
    assert check.status == "failed"
    assert "OURVIDZ_STORAGE_DIR" in check.fix


def test_a_receiver_that_is_away_is_a_failure(tmp_path: Path) -> None:
    """A callback nobody hears is a job nobody sees."""
    check = doctor.check_callbacks(chosen(tmp_path, SUPABASE_URL=f"http://127.0.0.1:{dead_port()}"))
    assert check.status == "failed"
    assert "/functions/v1/job-callback" in check.reason


def test_production_needs_a_gpu_that_is_big_enough_and_a_laptop_needs_none() -> None:
    """SDXL takes 10 GiB; the tiny profile runs on the CPU."""
    small = {"gpus": [{"name": "small", "free": 4 << 30, "total": 8 << 30}]}
    large = {"gpus": [{"name": "large", "free": 40 << 30, "total": 48 << 30}]}
    none: dict[str, Any] = {"gpus": []}
    judged = [doctor.judge_gpus(found, production=True).status for found in (none, small, large)]
    assert judged == ["failed", "failed", "ok"]
    assert doctor.judge_gpus(none, production=False).status == "skipped"
    refused = doctor.judge_gpus(none, production=False, grouped=True)
    assert (refused.status, "OURVIDZ_WAN_GROUP_OFFLOAD" in refused.fix) == ("failed", True)
    assert doctor.judge_gpus(large, production=False, grouped=True).status == "ok"
