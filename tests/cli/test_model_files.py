"""`ourvidz models pull`, `verify` and `rm` with the packaged checkpoints on a hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ourvidz.cli.main import cli
from ourvidz.cli.model_checks import check_sdxl_checkpoint
from ourvidz.hub.manifest import mark_in_use
from ourvidz.hub.staging import pull_lock
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.settings import environment, settings
from tests.hub_server import TinyHub

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
REPOSITORIES = {
    "OURVIDZ_HUB_SDXL": PACKAGED / "tiny-sdxl",
    "OURVIDZ_HUB_WAN": PACKAGED / "tiny-wan",
    "OURVIDZ_HUB_QWEN_INSTRUCT": PACKAGED / "tiny-qwen/instruct",
    "OURVIDZ_HUB_QWEN_BASE": PACKAGED / "tiny-qwen/base",
}


def run(*arguments: str, **options: Any) -> Result:
    """Run `ourvidz models` with the environment as it is now."""
    settings.cache_clear()
    return CliRunner().invoke(cli, ["models", *arguments], **options)


@pytest.fixture
def models_dir(
    tiny_hub: TinyHub, production: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """The models' directory of a production host without settings of checkpoints, beside a hub that has
    those of this package."""
    variables = {**production, "OURVIDZ_MODELS_DIR": str(tmp_path / "models")}
    for number, (variable, folder) in enumerate(REPOSITORIES.items()):
        tiny_hub.add_folder(f"meadow/tiny-{number}", folder)
        variables[variable] = f"meadow/tiny-{number}"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def test_what_was_pulled_is_found_with_the_printed_settings(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty host to checkpoints that load: pull, take over the lines, verify."""
    pulled = run("pull")
    assert pulled.exit_code == 0, pulled.output
    assert pulled.stdout.splitlines() == [
        f"OURVIDZ_SDXL_MODEL={models_dir}/sdxl",
        f"OURVIDZ_WAN_MODEL={models_dir}/wan",
        f"OURVIDZ_QWEN_MODEL={models_dir}/qwen",
    ]
    for line in pulled.stdout.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    rows = json.loads(run("verify", "--json").stdout)
    assert [(row["family"], row["kind"], row["problem"], row["checksums"]) for row in rows] == [
        ("sdxl", "folder", None, True),
        ("wan", "folder", None, True),
        ("qwen", "folder", None, True),
        ("qwen", "folder", None, True),
    ]
    again = run("pull", "--json")
    states = [part["state"] for model in json.loads(again.stdout)["models"] for part in model["parts"]]
    assert (states, {str(model["settings"]) for model in json.loads(again.stdout)["models"]}) == (
        ["present"] * 4,
        {"{}"},
    )


def test_a_setting_that_names_a_folder_decides_where_a_checkpoint_goes(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Settings may come first: then nothing is left to be set."""
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(tmp_path / "disk/sdxl"))
    result = run("pull", "sdxl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "disk/sdxl/model_index.json").is_file()
    assert not models_dir.exists()


def test_verify_finds_a_changed_file_by_the_checksum_of_the_pull(models_dir: Path) -> None:
    """Also of a checkpoint that no setting names yet."""
    run("pull", "sdxl")
    weights = models_dir / "sdxl/vae/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    assert run("verify").exit_code == 0
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert (
        json.loads(result.stdout)[0]["problem"]
        == f"{weights} is not the file that was pulled: it has changed"
    )


def test_the_lines_of_a_pull_name_files_sizes_and_the_licence(models_dir: Path) -> None:
    """Without a terminal a log has few lines: one when a large file begins, and one when it is complete."""
    lines = run("pull", "sdxl").stderr.splitlines()
    assert lines[:2] == [
        "sdxl: unet/diffusion_pytorch_model.safetensors: begins 8.9 MB",
        "sdxl: unet/diffusion_pytorch_model.safetensors: complete, 8.9 MB",
    ]
    assert lines[-1].startswith("sdxl: pulled: meadow/tiny-0@")
    assert "licence the-meadow-licence" in lines[-1]
    assert len(lines) == 5


def test_an_error_is_one_line(models_dir: Path, tiny_hub: TinyHub) -> None:
    """With the exit status of a failure, and without a traceback. What was complete before is named."""
    tiny_hub.gated.add("meadow/tiny-1")
    result = run("pull", "sdxl", "wan")
    assert (result.exit_code, result.stdout) == (1, f"OURVIDZ_SDXL_MODEL={models_dir}/sdxl\n")
    assert result.stderr.splitlines()[-1].startswith("Error: meadow/tiny-1 is gated: accept its terms")


def test_rm_asks_and_deletes_what_was_pulled(models_dir: Path) -> None:
    """A question answered with no deletes nothing."""
    run("pull", "sdxl", "qwen")
    assert run("rm", "sdxl", input="n\n").exit_code == 1
    assert (models_dir / "sdxl").is_dir()
    assert run("rm", "sdxl", input="y\n").exit_code == 0
    removed = json.loads(run("rm", "qwen", "--yes", "--json").stdout)
    assert removed["removed"] == [f"{models_dir}/qwen/instruct", f"{models_dir}/qwen/base"]
    assert [path for path in models_dir.rglob("*") if path.name == "config.json"] == []
    assert run("rm", "sdxl", "--yes").stderr == "nothing of it was pulled\n"
    assert run("rm").exit_code == 2


def test_rm_leaves_files_that_were_not_pulled_and_those_in_use(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody's own checkpoint cannot be pulled again; a worker may load its files again at any time."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model_index.json").write_text("{}")
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(tmp_path / "mine"))
    result = run("rm", "sdxl", "--yes")
    assert (result.exit_code, (tmp_path / "mine/model_index.json").is_file()) == (2, True)
    assert "was not pulled" in result.stderr
    run("pull", "wan")
    mark_in_use(models_dir / "wan")
    result = run("rm", "wan", "--yes")
    assert (result.exit_code, (models_dir / "wan/model_index.json").is_file()) == (1, True)
    assert "is used by a running worker: stop it first" in result.stderr


def test_what_an_interrupted_pull_left_can_be_deleted(models_dir: Path, tiny_hub: TinyHub) -> None:
    """Gigabytes that nobody continues."""
    tiny_hub.refusals = []
    tiny_hub.corrupt["unet/diffusion_pytorch_model.safetensors"] = 2
    assert run("pull", "sdxl").exit_code == 1
    assert (models_dir / "sdxl.partial").is_dir()
    assert run("rm", "sdxl", "--yes").exit_code == 0
    assert not (models_dir / "sdxl.partial").exists()


def test_what_is_left_of_a_killed_replacement_can_be_deleted(models_dir: Path) -> None:
    """It is as large as the checkpoint."""
    run("pull", "sdxl")
    (models_dir / "sdxl").rename(models_dir / "sdxl.replaced")
    removed = json.loads(run("rm", "sdxl", "--yes", "--json").stdout)
    assert removed["removed"] == [f"{models_dir}/sdxl.replaced"]
    assert [path for path in models_dir.iterdir() if path.is_dir()] == []


def test_a_linked_folder_is_listed_once_and_removed(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Checkpoints often lie on a disk of their own."""
    (tmp_path / "disk").mkdir()
    models_dir.symlink_to(tmp_path / "disk")
    run("pull", "sdxl")
    (models_dir / "sdxl").rename(tmp_path / "disk/real")
    (models_dir / "sdxl").symlink_to(tmp_path / "disk/real")
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(models_dir / "sdxl"))
    assert len(json.loads(run("list", "--json").stdout)) == 1
    assert run("rm", "sdxl", "--yes").exit_code == 0
    assert not (tmp_path / "disk/real").exists()


def test_rm_leaves_what_another_process_is_pulling(models_dir: Path) -> None:
    """Deleted under its hands, the other pull would fail in the middle of a file."""
    run("pull", "sdxl")
    with pull_lock(models_dir / "sdxl", None):
        result = run("rm", "sdxl", "--yes")
    assert (result.exit_code, (models_dir / "sdxl").is_dir()) == (1, True)
    assert "another process pulls into" in result.stderr


def test_a_path_with_spaces_is_quoted(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines are read by shells, systemd and `.env` alike."""
    monkeypatch.setenv("OURVIDZ_MODELS_DIR", f"{models_dir} of mine")
    assert run("pull", "sdxl").stdout == f'OURVIDZ_SDXL_MODEL="{models_dir} of mine/sdxl"\n'


def test_doctor_finds_a_pulled_file_that_is_cut(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its size: reading tens of gigabytes is the work of `ourvidz models verify`."""
    run("pull", "sdxl")
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(models_dir / "sdxl"))
    settings.cache_clear()
    assert check_sdxl_checkpoint(settings()).status == "ok"
    (models_dir / "sdxl/unet/config.json").write_text("{}")
    check = check_sdxl_checkpoint(settings())
    assert (check.status, check.fix) == ("failed", "`ourvidz models pull` mends it")
    assert "unet/config.json has 2 bytes instead of" in check.reason


def test_a_control_host_lists_and_plans_and_cannot_pull(
    models_dir: Path,
) -> None:
    """It has no library of the hub: the commands that need none work, the other says how to install it."""
    code = """
import sys
sys.modules.update(huggingface_hub=None, httpx2=None, torch=None)
from click.testing import CliRunner
from ourvidz.cli.main import cli
for command in ("list", "plan sdxl", "rm sdxl --yes", "pull"):
    result = CliRunner().invoke(cli, ["models", *command.split()])
    print(command, result.exit_code, result.stderr)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT))
    )
    assert ran.returncode == 0, ran.stderr
    for line in ("list 0", "plan sdxl 0", "rm sdxl --yes 0", "pull 2 Error: this installation has no"):
        assert line in ran.stdout
    assert "pip install 'ourvidz[worker]'" in ran.stdout
