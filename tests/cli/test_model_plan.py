"""`ourvidz models plan`: sizes, states, disk and GPU, before anything is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ourvidz.cli import model_plan, nvidia
from ourvidz.cli.main import cli
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.settings import settings
from tests.hub_server import TinyHub


def run(*arguments: str) -> Result:
    """Run `ourvidz models plan` with the environment as it is now."""
    settings.cache_clear()
    return CliRunner().invoke(cli, ["models", "plan", *arguments], env={"COLUMNS": "200"})


def document(*arguments: str) -> dict[str, Any]:
    """The plan as JSON."""
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.fixture
def host(production: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The models' directory of a production host without checkpoints and without a GPU."""
    for name, value in {**production, "OURVIDZ_MODELS_DIR": str(tmp_path / "models")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nvidia.shutil, "which", lambda _: None)
    monkeypatch.setattr(model_plan, "free_bytes", lambda _: 10**12)
    return tmp_path / "models"


def test_without_a_hub_the_documented_sizes_are_marked_as_such(host: Path) -> None:
    """A repository of one's own has no documented size."""
    planned = document("--offline")
    assert [(part["name"], part["bytes_from"], part["state"]) for part in planned["models"]] == [
        ("sdxl", "documentation", "absent"),
        ("wan", "documentation", "absent"),
        ("qwen instruct", "documentation", "absent"),
        ("qwen base", "documentation", "absent"),
    ]
    assert planned["gpu"] is None
    assert 60e9 < planned["disks"][0]["needed"] < 70e9
    assert "no GPU is seen here: plan for one with --gpu 48GiB" in run("--offline").stdout


def test_the_hub_knows_the_sizes(host: Path, tiny_hub: TinyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the files that would be pulled, with the commit of the branch. Nothing is downloaded or written."""
    commit = tiny_hub.add_folder("meadow/mine", PACKAGED / "tiny-sdxl")
    monkeypatch.setenv("OURVIDZ_HUB_SDXL", "meadow/mine")
    (part,) = document("sdxl")["models"]
    assert (part["bytes_from"], part["commit"], part["licence"]) == ("hub", commit, "the-meadow-licence")
    assert 13_000_000 < part["bytes"] < 14_000_000
    assert (tiny_hub.downloads(), host.exists()) == ([], False)


def test_a_hub_that_cannot_be_reached_is_asked_once(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt may take seconds; the reason is shown."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OURVIDZ_HUB_WAN", "meadow/other")
    first, second, *_ = document()["models"]
    assert "no connection" in first["problem"]
    assert (second["problem"], second["bytes_from"], second["bytes"]) == (None, "nobody", None)
    assert "unknown (nobody)" in run("--offline").stdout


def test_what_is_here_is_measured(host: Path, tiny_hub: TinyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pulled checkpoint and somebody's own: weights from the headers of the files."""
    tiny_hub.add_folder("meadow/mine", PACKAGED / "tiny-sdxl")
    monkeypatch.setenv("OURVIDZ_HUB_SDXL", "meadow/mine")
    monkeypatch.setenv("OURVIDZ_WAN_MODEL", str(PACKAGED / "tiny-wan"))
    settings.cache_clear()
    assert CliRunner().invoke(cli, ["models", "pull", "sdxl"]).exit_code == 0
    planned = document("sdxl", "wan", "--offline", "--gpu", "30GiB")
    assert [part["state"] for part in planned["models"]] == ["complete", "own files"]
    assert planned["disks"][0]["needed"] == 0
    weights = {job["model"]: job["weights_mib"] for job in planned["gpu"]["jobs"]}
    assert weights == {"sdxl": 13, "wan": 14}, "the VAE of Wan is computed in float32"


def test_what_an_interrupted_pull_has_left_counts(host: Path) -> None:
    """It is not downloaded again."""
    (host / "sdxl.partial").mkdir(parents=True)
    (host / "sdxl.partial/weights.part").write_bytes(bytes(5_000_000))
    (part,) = document("sdxl", "--offline")["models"]
    assert (part["state"], part["here"]) == ("partial", 5_000_000)
    assert "6.9 GB (documentation, 5 MB here)" in run("sdxl", "--offline").stdout


def test_a_revision_that_is_set_and_not_pulled_yet_counts(
    host: Path, tiny_hub: TinyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What differs is downloaded beside the old one: an operator asks before whether it has space there."""
    tiny_hub.add_folder("meadow/mine", PACKAGED / "tiny-sdxl")
    monkeypatch.setenv("OURVIDZ_HUB_SDXL", "meadow/mine")
    settings.cache_clear()
    assert CliRunner().invoke(cli, ["models", "pull", "sdxl"]).exit_code == 0
    files = tiny_hub.files("meadow/mine", "main") or {}
    weights = "vae/diffusion_pytorch_model.safetensors"
    changed = files[weights][:-1] + bytes([files[weights][-1] ^ 1])
    tiny_hub.add("meadow/mine", {**files, weights: changed}, branch="v2")
    monkeypatch.setenv("OURVIDZ_HUB_SDXL", "meadow/mine@v2")
    planned = document("sdxl")
    (part,) = planned["models"]
    assert (part["state"], part["bytes_from"], part["revision"]) == ("other revision", "hub", "v2")
    assert "it has meadow/mine@main" in part["problem"]
    assert len(changed) <= planned["disks"][0]["needed"] < 2 * len(changed)
    assert " here)" in run("sdxl").stdout
    monkeypatch.setattr(model_plan, "free_bytes", lambda _: 10**9)
    assert run("sdxl").exit_code == 1
    monkeypatch.setenv("OURVIDZ_HUB_SDXL", "meadow/other")
    assert document("sdxl", "--offline")["models"][0]["bytes_from"] == "nobody"


@pytest.mark.parametrize(
    ("gpu", "fallbacks", "status"),
    [
        ("48GiB", {"sdxl": "none", "wan": "none"}, 0),
        ("24GiB", {"sdxl": "none", "wan": "none"}, 0),
        ("16", {"sdxl": "tiled VAE", "wan": "tiled VAE"}, 0),
        ("12GB", {"sdxl": "smaller batches", "wan": "does not fit"}, 1),
    ],
)
def test_a_card_decides_which_fallbacks_run(
    host: Path, gpu: str, fallbacks: dict[str, str], status: int
) -> None:
    """For the largest job of each model."""
    result = run("sdxl", "wan", "--offline", "--json", "--gpu", gpu)
    jobs = json.loads(result.stdout)["gpu"]["jobs"]
    assert {job["model"]: job["fallback"] for job in jobs} == fallbacks
    assert result.exit_code == status


def test_learned_figures_replace_estimates(host: Path, tmp_path: Path) -> None:
    """Workers of this host have measured their jobs."""
    (tmp_path / "footprints.json").write_text('{"sdxl:20": 2000}')
    job = document("sdxl", "--offline", "--gpu", "48GiB")["gpu"]["jobs"][0]
    assert (job["work_mib"], job["learned"]) == (2200, True)


def test_a_disk_that_is_too_small_fails_the_plan(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a script stops before hours of downloading."""
    monkeypatch.setattr(model_plan, "free_bytes", lambda _: 10**9)
    result = run("--offline")
    assert result.exit_code == 1
    assert "66.2 GB to download, 1.0 GB free: DOES NOT FIT" in result.stdout


def test_the_card_of_this_host_is_used(host: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that `OURVIDZ_GPU` names; the budget of the setting counts."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '0, GPU-aa, Card A, 8192, 570.1'\necho '1, GPU-bb, Card B, 49152, 570.1'\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(nvidia.shutil, "which", lambda _: str(program))
    monkeypatch.setenv("OURVIDZ_GPU", "1")
    monkeypatch.setenv("OURVIDZ_GPU_BUDGET_MIB", "40000")
    gpu = document("sdxl", "qwen", "--offline")["gpu"]
    assert (gpu["name"], gpu["total_mib"], gpu["budget_mib"]) == ("Card B", 49152, 40000)
    assert gpu["together"] == [
        ["sdxl", "qwen_instruct"],
        ["sdxl", "qwen_base"],
        ["qwen_instruct", "qwen_base"],
    ]


def test_a_wrong_size_is_a_usage_error(host: Path) -> None:
    """Not a traceback."""
    for size in ("lots", "0", "48TiB"):
        assert run("--gpu", size).exit_code == 2
