"""The tasks of `wan_generate.py` on small checkpoints of every Wan model, with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ourvidz.cli.wan import command as wan_command
from ourvidz.cli.wan.command import command
from ourvidz.cli.wan.tasks import TASKS
from ourvidz.media.video import encode_mp4, probe, read_frames
from ourvidz.settings import settings
from training.untrained.wan_image_models import build_image_to_video, build_vace

PROMPT = "--prompt=a hill in the rain"
QUICK = (PROMPT, "--sample_steps=1", "--base_seed=7", "--size=64*48", "--json")
ENDS = ("--first_frame=hill.png", "--last_frame=pond.png")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, untrained_wan: Path) -> Path:
    """One checkpoint of every model. Those of the 14B tasks have 40 layers, and are small otherwise."""
    root = tmp_path_factory.mktemp("checkpoints")
    build_vace(root / "vace", text_to_video=untrained_wan)
    build_vace(root / "vace14", text_to_video=untrained_wan, layers=40)
    build_image_to_video(root / "i2v", layers=40)
    build_image_to_video(root / "flf2v", images=2, layers=40)
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> Iterator[Path]:
    """A working directory with images and a video of four frames."""
    Image.new("RGB", (80, 48), "green").save(tmp_path / "hill.png")
    Image.new("RGB", (80, 48), "navy").save(tmp_path / "pond.png")
    clip = [Image.new("RGB", (64, 48), (60 * at, 90, 30)) for at in range(4)]
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(clip, fps=8))
    half = np.zeros((48, 64), np.uint8)
    half[:, :32] = 255
    (tmp_path / "mask.mp4").write_bytes(encode_mp4([Image.fromarray(half).convert("RGB")] * 4, fps=8))
    for built in checkpoints.iterdir():
        (tmp_path / built.name).symlink_to(built)
    for name, task in TASKS.items():
        # The VAE would take a minute on a CPU for the sizes of the release.
        monkeypatch.setitem(TASKS, name, replace(task, sizes=(*task.sizes, "64*48")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path / "state"))
    # The variables that the command sets would outlive the test.
    monkeypatch.setattr(wan_command, "set_environment", lambda **_: None)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), prog_name="wan_generate.py")


def generate(*arguments: str) -> dict[str, Any]:
    """The JSON result of a successful call."""
    result = call(*QUICK, *arguments)
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


@pytest.mark.parametrize(
    ("backend", "mode", "arguments"),
    [
        ("image_to_video", "start", ("--task=i2v-14B", "--ckpt_dir=i2v", "--image=hill.png")),
        ("image_to_video", "both", ("--task=flf2v-14B", "--ckpt_dir=flf2v", *ENDS)),
        (None, "none", ("--task=vace-1.3B", "--ckpt_dir=vace")),
        ("vace", "both", ("--task=vace-1.3B", "--ckpt_dir=vace", *ENDS)),
        ("vace", "none", ("--task=vace-1.3B", "--ckpt_dir=vace", "--src_video=clip.mp4")),
        (
            "vace",
            "none",
            ("--task=vace-14B", "--ckpt_dir=vace14", "--src_ref_images=hill.png, pond.png"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_task_runs_on_its_checkpoint(
    folder: Path, backend: str | None, mode: str, arguments: tuple[str, ...]
) -> None:
    """Every task of the release writes a video, and the result names the reference backend and mode."""
    summary = generate("--frame_num=5", *arguments)
    assert (summary["reference_backend"], summary["reference_mode"]) == (backend, mode)
    assert summary["size_capped"] is False
    video = probe((folder / summary["file"]).read_bytes())
    assert (video.frames, video.width, video.height) == (5, 64, 48)


def test_a_mask_changes_the_clip(folder: Path) -> None:
    """Without a mask the whole source is replaced; the black areas of a mask are kept."""
    arguments = ("--task=vace-1.3B", "--ckpt_dir=vace", "--frame_num=1", "--src_video=clip.mp4")
    whole = generate(*arguments, "--save_file=whole.png")
    masked = generate(*arguments, "--src_mask=mask.mp4", "--save_file=masked.png")
    assert whole["frames"] == masked["frames"] == 1
    assert (folder / "whole.png").read_bytes() != (folder / "masked.png").read_bytes()


def test_image_to_video_has_forty_steps_by_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the release; the other tasks have fifty."""
    steps: list[int] = []

    def record_steps(request: Any, *_: Any) -> None:
        steps.append(request.job.steps)
        raise SystemExit(0)

    monkeypatch.setattr(wan_command, "_generate", record_steps)
    call(PROMPT, "--task=i2v-14B", "--ckpt_dir=i2v", "--image=hill.png")
    call(PROMPT, "--task=flf2v-14B", "--ckpt_dir=flf2v", *ENDS)
    call(PROMPT, "--task=vace-14B", "--ckpt_dir=vace14")
    assert steps == [40, 50, 50]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("i2v is for image-to-video", ("--task=t2v-14B", "--ckpt_dir=i2v")),
        ("flf2v is for first-and-last-frame", ("--task=i2v-14B", "--ckpt_dir=flf2v", "--image=hill.png")),
        ("vace is for VACE", ("--task=t2v-1.3B", "--ckpt_dir=vace")),
        ("smaller than 14B", ("--task=vace-1.3B", "--ckpt_dir=vace14")),
        ("40 layers", ("--task=vace-14B", "--ckpt_dir=vace")),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    folder: Path, message: str, arguments: tuple[str, ...]
) -> None:
    """The message has its model or its number of layers; nothing is loaded."""
    result = call(PROMPT, *arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert message in result.stderr


def test_the_vace_checkpoint_of_the_settings_is_used_for_its_task_and_for_references(
    folder: Path, untrained_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References are followed as by a worker with the same settings."""
    monkeypatch.setenv("OURVIDZ_WAN_MODEL", str(untrained_wan))
    monkeypatch.setenv("OURVIDZ_WAN_VACE_MODEL", str(folder / "vace"))
    settings.cache_clear()
    picture = ("--frame_num=1", "--save_file=one.png")
    assert generate("--task=vace-1.3B", *picture)["reference_backend"] is None
    assert generate("--first_frame=hill.png", *picture)["reference_backend"] == "vace"
    own = generate("--first_frame=hill.png", f"--ckpt_dir={untrained_wan}", *picture)
    assert own["reference_backend"] == "sdedit"


def test_the_frames_of_a_source_are_read_in_order_up_to_the_limit(folder: Path) -> None:
    """No more frames are read than the clip will have."""
    frames = read_frames(folder / "clip.mp4", limit=3)
    assert [frame.size for frame in frames] == [(64, 48)] * 3
    reds = [frame.getpixel((30, 20))[0] for frame in frames]
    assert reds == sorted(reds)
    assert reds[2] - reds[0] > 80
