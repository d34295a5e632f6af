"""`wan_generate.py` on checkpoints of Wan's other models: small ones with random weights."""

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
from training.untrained.wan_pictures import build_image_to_video, build_vace

PROMPT = "--prompt=a hill in the rain"
QUICK = (PROMPT, "--sample_steps=1", "--base_seed=7", "--size=64*48", "--json")
ENDS = ("--first_frame=hill.png", "--last_frame=pond.png")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, untrained_wan: Path) -> Path:
    """One checkpoint of every kind. What makes them 14B here is the number of their layers alone."""
    root = tmp_path_factory.mktemp("checkpoints")
    build_vace(root / "vace", beside=untrained_wan)
    build_vace(root / "vace14", beside=untrained_wan, layers=40)
    build_image_to_video(root / "i2v", layers=40)
    build_image_to_video(root / "flf2v", pictures=2, layers=40)
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> Iterator[Path]:
    """A working directory with pictures and a clip of four frames."""
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
        # Their own sizes would take the VAE a minute on a CPU.
        monkeypatch.setitem(TASKS, name, replace(task, sizes=(*task.sizes, "64*48")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path / "state"))
    # Such settings of its own would outlive the test.
    monkeypatch.setattr(wan_command, "adopt", lambda **_: None)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), prog_name="wan_generate.py")


def made(*arguments: str) -> dict[str, Any]:
    result = call(*QUICK, *arguments)
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


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
    """Every task of the release makes a clip that a player can play, and says how it followed pictures."""
    told = made("--frame_num=5", *arguments)
    assert (told["reference_backend"], told["reference_mode"], told["size_capped"]) == (backend, mode, False)
    found = probe((folder / told["file"]).read_bytes())
    assert (found.frames, found.width, found.height) == (5, 64, 48)


def test_what_the_mask_is_black_on_is_told_apart(folder: Path) -> None:
    """Without a mask all of a source is made anew; the model must hear the difference."""
    arguments = ("--task=vace-1.3B", "--ckpt_dir=vace", "--frame_num=1", "--src_video=clip.mp4")
    whole = made(*arguments, "--save_file=whole.png")
    masked = made(*arguments, "--src_mask=mask.mp4", "--save_file=masked.png")
    assert whole["frames"] == masked["frames"] == 1
    assert (folder / "whole.png").read_bytes() != (folder / "masked.png").read_bytes()


def test_image_to_video_takes_forty_steps_unless_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the release; the others take fifty."""
    asked: list[int] = []

    def note(request: Any, *_: Any) -> None:
        asked.append(request.job.steps)
        raise SystemExit(0)

    monkeypatch.setattr(wan_command, "_generate", note)
    call(PROMPT, "--task=i2v-14B", "--ckpt_dir=i2v", "--image=hill.png")
    call(PROMPT, "--task=flf2v-14B", "--ckpt_dir=flf2v", *ENDS)
    call(PROMPT, "--task=vace-14B", "--ckpt_dir=vace14")
    assert asked == [40, 50, 50]


@pytest.mark.parametrize(
    ("told", "arguments"),
    [
        ("i2v is for image-to-video", ("--task=t2v-14B", "--ckpt_dir=i2v")),
        ("flf2v is for first-and-last-frame", ("--task=i2v-14B", "--ckpt_dir=flf2v", "--image=hill.png")),
        ("vace is for VACE", ("--task=t2v-1.3B", "--ckpt_dir=vace")),
        ("smaller than 14B", ("--task=vace-1.3B", "--ckpt_dir=vace14")),
        ("40 layers", ("--task=vace-14B", "--ckpt_dir=vace")),
    ],
)
def test_the_checkpoint_of_another_task_is_named(folder: Path, told: str, arguments: tuple[str, ...]) -> None:
    """Before anything is loaded."""
    result = call(PROMPT, *arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert told in result.stderr


def test_the_settings_name_vace_for_its_task_and_beside_text_to_video(
    folder: Path, untrained_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line follows references as the worker does that has the same settings."""
    monkeypatch.setenv("OURVIDZ_WAN_MODEL", str(untrained_wan))
    monkeypatch.setenv("OURVIDZ_WAN_VACE_MODEL", str(folder / "vace"))
    settings.cache_clear()
    picture = ("--frame_num=1", "--save_file=one.png")
    assert made("--task=vace-1.3B", *picture)["reference_backend"] is None
    assert made("--first_frame=hill.png", *picture)["reference_backend"] == "vace"
    own = made("--first_frame=hill.png", f"--ckpt_dir={untrained_wan}", *picture)
    assert own["reference_backend"] == "sdedit"


def test_the_frames_of_a_source_are_those_of_its_file(folder: Path) -> None:
    """In their order, and no more of them than are to be made."""
    frames = read_frames(folder / "clip.mp4", limit=3)
    assert [frame.size for frame in frames] == [(64, 48)] * 3
    reds = [frame.getpixel((30, 20))[0] for frame in frames]
    assert reds == sorted(reds)
    assert reds[2] - reds[0] > 80
