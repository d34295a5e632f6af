"""`wan_generate.py`: the options of the Wan release, exit statuses, output files and the JSON result."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import ourvidz
from ourvidz.cli.wan import command as wan_command
from ourvidz.cli.wan import generate, request
from ourvidz.cli.wan.command import command, exit_status
from ourvidz.errors import (
    InternalError,
    InvalidParameters,
    ModelLoadError,
    OurvidzError,
    OutOfMemory,
    PolicyViolation,
    SettingsError,
    StorageError,
)
from ourvidz.media.video import probe
from ourvidz.safety.gate import Gate, Terms
from ourvidz.settings import environment, settings

ROOT = Path(ourvidz.__file__).parents[1]
PROMPT = "--prompt=a hill in the rain"
QUICK = (PROMPT, "--sample_steps=1", "--base_seed=7", "--json")

IMAGE = "--image=hill.png"
ENDS = ("--first_frame=hill.png", "--last_frame=hill.png")

BAD: list[tuple[int, str, tuple[str, ...]]] = [
    (2, "--prompt is missing", ()),
    (2, "--prompt is missing", ("--prompt=  ",)),
    (2, "10000 characters", ("--prompt=" + "x" * 10_001,)),
    (2, "UTF-8", ("--prompt=a hill \udcff",)),
    (2, "UTF-8", ("--prompt=a hill \0",)),
    (2, "no such option", (PROMPT, "--no_such_flag")),
    (2, "unexpected extra argument", (PROMPT, "stray")),
    (2, "t2v-2B", (PROMPT, "--task=t2v-2B")),
    (2, "i2v-14B needs --image, and no other", (PROMPT, "--task=i2v-14B")),
    (2, "needs --image, and no other", (PROMPT, "--task=i2v-14B", "--first_frame=hill.png")),
    (2, "needs --first_frame and --last_frame", (PROMPT, "--task=flf2v-14B")),
    (2, "needs --first_frame and --last_frame", (PROMPT, "--task=flf2v-14B", "--first_frame=hill.png")),
    (2, "1280*720", (PROMPT, "--task=vace-14B", "--size=624*624")),
    (2, "goes with --src_video", (PROMPT, "--task=vace-1.3B", "--src_mask=hill.png")),
    (2, "goes without --image", (PROMPT, "--task=vace-1.3B", "--src_video=hill.png", "--image=hill.png")),
    (2, "broken.png", (PROMPT, "--task=vace-1.3B", "--src_ref_images=hill.png,broken.png")),
    (2, "missing.png cannot be read", (PROMPT, "--task=vace-1.3B", "--src_ref_images=missing.png")),
    (2, "--src_video", (PROMPT, "--task=vace-1.3B", "--src_video=missing.mp4")),
    (2, "broken.png: the video file", (PROMPT, "--task=vace-1.3B", "--src_video=broken.png")),
    (2, "480*832, 832*480, 624*624", (PROMPT, "--size=1280*720")),
    (2, "--size", (PROMPT, "--size=480x832")),
    (2, "1280*720", (PROMPT, "--task=t2v-14B", "--size=624*624")),
    (2, "--size", (PROMPT, "--ckpt_dir=small", "--size=64*64")),
    (2, "--frame_num", (PROMPT, "--frame_num=0")),
    (2, "--frame_num", (PROMPT, "--frame_num=many")),
    (2, "4n+1", (PROMPT, "--frame_num=83", "--strict_frames")),
    (2, "of at most 64296960", (PROMPT, "--ckpt_dir=empty", "--frame_num=165")),
    (
        2,
        "of at most 148377600",
        (PROMPT, "--task=t2v-14B", "--ckpt_dir=empty", "--size=1280*720", "--frame_num=165"),
    ),
    (2, "1 for t2i-14B", (PROMPT, "--task=t2i-14B", "--frame_num=81")),
    (2, "an .mp4 file for 81 frames", (PROMPT, "--save_file=a.png")),
    (2, "ends in .mp4", (PROMPT, "--save_file=a.avi")),
    (2, "folder that exists", (PROMPT, "--save_file=nowhere/a.mp4")),
    (2, "nothing can be written in /proc", (PROMPT, "--save_file=/proc/a.mp4")),
    (2, "--base_seed", (PROMPT, "--base_seed=-2")),
    (2, "--base_seed", (PROMPT, "--base_seed=2147483648")),
    (2, "--sample_steps", (PROMPT, "--sample_steps=0")),
    (2, "euler", (PROMPT, "--sample_solver=euler")),
    (2, "--sample_shift", (PROMPT, "--sample_shift=0")),
    (2, "--sample_shift", (PROMPT, "--sample_shift=30.5")),
    (2, "--sample_shift", (PROMPT, "--sample_shift=nan")),
    (2, "--sample_guide_scale", (PROMPT, "--sample_guide_scale=-1")),
    (2, "--offload_model", (PROMPT, "--offload_model=perhaps")),
    (2, "--image", (PROMPT, "--image=missing.png")),
    (2, "broken.png", (PROMPT, "--first_frame=broken.png")),
    (2, "--image goes without", (PROMPT, "--image=hill.png", "--last_frame=hill.png")),
    (2, "several GPUs", (PROMPT, "--t5_fsdp")),
    (2, "several GPUs", (PROMPT, "--dit_fsdp")),
    (2, "one GPU", (PROMPT, "--ulysses_size=2")),
    (2, "one GPU", (PROMPT, "--ring_size=4")),
    (2, "vace tasks", (PROMPT, "--src_video=hill.png")),
    (2, "vace tasks", (PROMPT, "--src_ref_images=hill.png,hill.png")),
    (2, "language model", (PROMPT, "--use_prompt_extend")),
    (2, "--prompt_extend_method", (PROMPT, "--prompt_extend_method=guessing")),
    (3, "no checkpoint folder", (PROMPT, "--ckpt_dir=nowhere")),
    (3, "diffusers layout", (PROMPT, "--ckpt_dir=empty")),
    (3, "layout of the Wan release and lacks config.json, models_t5", (PROMPT, "--ckpt_dir=release")),
    (3, "lacks vae/config.json, vae/diffusion_pytorch_model.safetensors", (PROMPT, "--ckpt_dir=lacking")),
    (3, "cannot be read", (PROMPT, "--ckpt_dir=torn")),
    (3, "give --ckpt_dir", (PROMPT, "--task=t2v-14B")),
    (3, "for image-to-video with 14B weights: give --ckpt_dir", (PROMPT, "--task=i2v-14B", IMAGE)),
    (3, "for first-and-last-frame", (PROMPT, "--task=flf2v-14B", *ENDS)),
    (3, "for VACE: give --ckpt_dir, or set OURVIDZ_WAN_VACE_MODEL", (PROMPT, "--task=vace-1.3B")),
    (3, "large is for text-to-video", (PROMPT, "--task=i2v-14B", IMAGE, "--ckpt_dir=large")),
    (3, "small is for text-to-video", (PROMPT, "--task=vace-1.3B", "--ckpt_dir=small")),
    (3, "40 layers", (PROMPT, "--task=t2i-14B", "--ckpt_dir=small")),
    (3, "smaller than 14B", (PROMPT, "--ckpt_dir=large")),
]
"""Exit status, a part of the message, the options. All of these calls end before torch is loaded."""

GOOD: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"frames": 5, "frames_generated": 5, "fps": 16, "width": 64, "height": 64}, ("--frame_num=5",)),
    ({"frames": 6, "frames_generated": 9}, ("--frame_num=6",)),
    ({"frames": 5}, ("--frame_num=5", "--strict_frames")),
    ({"frames": 1, "frames_generated": 1}, ("--frame_num=1", "--save_file=one.png")),
    ({"frames": 1}, ("--frame_num=1", "--save_file=one.mp4")),
    ({"file": "one.PNG"}, ("--frame_num=1", "--save_file", "one.PNG", "--offload_model", "True")),
    ({"width": 32, "height": 64, "size_capped": True}, ("--frame_num=1", "--size=480*832")),
    ({"width": 64, "height": 64, "size_capped": True}, ("--frame_num=1", "--size=624*624")),
    ({"solver": "dpm++", "shift": 3.0}, ("--frame_num=1", "--sample_solver=dpm++", "--sample_shift=3")),
    ({"guidance_scale": 1.0}, ("--frame_num=1", "--sample_guide_scale=1", "--offload_model=False")),
    ({"reference_mode": "single", "reference_backend": "sdedit"}, ("--frame_num=5", "--image=hill.png")),
    (
        {"reference_mode": "start", "reference_backend": "latent_replacement"},
        ("--frame_num=5", "--first_frame=hill.png", "--t5_cpu"),
    ),
    ({"reference_mode": "end"}, ("--frame_num=5", "--last_frame=hill.png")),
    (
        {"reference_mode": "both"},
        ("--frame_num=5", "--first_frame=hill.png", "--last_frame=hill.png", "--ulysses_size=1"),
    ),
]
"""A part of the JSON result, the options."""


def checkpoint(folder: Path, config: str) -> None:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer/config.json").write_text(config)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a reference image, and checkpoints that have only their configs."""
    Image.new("RGB", (80, 48), "green").save(tmp_path / "hill.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (tmp_path / "empty").mkdir()
    (tmp_path / "release").mkdir()
    (tmp_path / "release/Wan2.1_VAE.pth").touch()
    checkpoint(tmp_path / "small", '{"num_layers": 30}')
    checkpoint(tmp_path / "large", '{"num_layers": 40}')
    checkpoint(tmp_path / "torn", '{"num_la')
    promised = '{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}'
    checkpoint(tmp_path / "lacking", '{"num_layers": 30}')
    (tmp_path / "lacking/model_index.json").write_text(promised)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path / "state"))
    # The variables that the command sets would outlive the test.
    monkeypatch.setattr(wan_command, "set_environment", lambda **_: None)
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), prog_name="wan_generate.py")


@pytest.mark.parametrize(("status", "message", "arguments"), BAD, ids=lambda value: str(value)[:60])
def test_a_wrong_call_ends_with_its_status_and_message(
    folder: Path, status: int, message: str, arguments: tuple[str, ...]
) -> None:
    """Scripts branch on the status; standard output is empty."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    assert message.lower() in " ".join(result.stderr.split()).lower()


def test_no_wrong_call_loads_torch(folder: Path) -> None:
    """A wrong option must not cost the seconds that the libraries take to load."""
    calls = [list(arguments) for _, _, arguments in BAD]
    script = (
        "import json, sys; from click.testing import CliRunner; from ourvidz.cli.wan.command import command\n"
        "codes = [CliRunner().invoke(command, c).exit_code for c in json.load(sys.stdin)]\n"
        "print(json.dumps([codes, 'torch' in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(calls), capture_output=True, text=True, timeout=120,
        env=environment(PYTHONPATH=str(ROOT)), cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [[status for status, _, _ in BAD], False]


@pytest.mark.parametrize(("expected", "arguments"), GOOD, ids=lambda value: str(value)[:70])
def test_the_result_describes_the_file(
    folder: Path, expected: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    """The JSON result has the actual size, frames and parameters of the file."""
    result = call(*QUICK, *arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert {name: summary[name] for name in expected} == expected
    assert (summary["seed"], summary["steps"]) == (7, 1)
    data = (folder / summary["file"]).read_bytes()
    assert len(data) == summary["file_size_bytes"]
    size = (summary["width"], summary["height"])
    if summary["file"].lower().endswith(".mp4"):
        video = probe(data)
        assert (video.frames, video.width, video.height) == (summary["frames"], *size)
    else:
        assert Image.open(folder / summary["file"]).size == size


def test_deviations_from_the_options_are_notes_on_standard_error(folder: Path) -> None:
    """Standard output holds only the file name."""
    result = call(PROMPT, "--sample_steps=1", "--frame_num=3", "--size=480*832", "--base_seed=3")
    assert result.stdout == "t2v-1.3B_480x832_3.mp4\n"
    assert "3 is not 4n+1: 5 frames were made, 2 cut off" in result.stderr
    assert "rendered 32*64" in result.stderr


def test_a_default_file_name_never_overwrites_a_file(folder: Path) -> None:
    """The default name has the seed and the size, which two prompts can share."""
    small = ("--sample_steps=1", "--frame_num=1", "--base_seed=3")
    names = [call(f"--prompt={prompt}", *small).stdout.strip() for prompt in ("a hill", "a pond", "a hill")]
    assert names == ["t2v-1.3B_64x64_3.mp4", "t2v-1.3B_64x64_3-2.mp4", "t2v-1.3B_64x64_3-3.mp4"]
    first, other, again = ((folder / name).read_bytes() for name in names)
    assert first == again != other


def test_a_limit_that_is_set_holds_for_the_tiny_checkpoint_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a setting the tiny checkpoint has no limit; a setting must still apply."""
    monkeypatch.setenv("OURVIDZ_WAN_MAX_FRAME_PIXELS", str(4 * 64 * 64))
    settings.cache_clear()
    result = call(PROMPT, "--frame_num=5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "of at most 16384, here 4 frames" in result.stderr


def test_the_result_has_the_effective_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few-step checkpoint runs without guidance; with a reference image only a share of the steps runs."""
    monkeypatch.setenv("OURVIDZ_WAN_FEW_STEPS", "true")
    settings.cache_clear()
    summary = json.loads(
        call(PROMPT, "--json", "--frame_num=1", "--sample_steps=8", IMAGE, "--sample_guide_scale=6").stdout
    )
    assert (summary["steps"], summary["effective_steps"], summary["guidance_scale"]) == (8, 1, 1.0)


def test_a_seed_reproduces_its_clip_and_minus_one_draws_a_new_seed(folder: Path) -> None:
    """The result has the drawn seed, so that the clip can be generated again."""
    for name, seed in (("a", "-1"), ("b", "-1")):
        summary = json.loads(
            call(*QUICK, "--frame_num=1", f"--save_file={name}.png", f"--base_seed={seed}").stdout
        )
        again = call(*QUICK, "--frame_num=1", f"--save_file={name}2.png", f"--base_seed={summary['seed']}")
        assert again.exit_code == 0
    a, a2, b = ((folder / f"{name}.png").read_bytes() for name in ("a", "a2", "b"))
    assert a == a2 != b


def test_a_reference_changes_a_text_to_video_clip(folder: Path) -> None:
    """The script of the release accepts these options for t2v and ignores them."""
    for name, extra in (("plain", ()), ("started", ("--first_frame=hill.png",))):
        assert call(*QUICK, "--frame_num=5", f"--save_file={name}.mp4", *extra).exit_code == 0
    assert (folder / "plain.mp4").read_bytes() != (folder / "started.mp4").read_bytes()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidParameters("x"), 2),
        (PolicyViolation("x"), 2),
        (SettingsError("x"), 2),
        (ModelLoadError("x"), 3),
        (OutOfMemory("x"), 4),
        (StorageError("x"), 1),
        (InternalError("x"), 1),
    ],
)
def test_every_class_of_error_has_its_status(error: OurvidzError, status: int) -> None:
    """The class decides: caller, settings, checkpoint, memory, anything else."""
    assert exit_status(error) == status


def test_out_of_memory_is_exit_status_four(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model loads, and while it generates."""

    def raise_memory_error(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(generate.WanPipeline, "_read_pipeline", raise_memory_error)
    assert call(*QUICK, "--frame_num=1").exit_code == 4
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(wan_command, "set_environment", lambda **_: None)
    monkeypatch.setattr(generate.WanPipeline, "denoise", raise_memory_error)
    result = call(*QUICK, "--frame_num=1")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "Not enough memory" in result.stderr


def test_the_safety_gate_refuses_before_the_model_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every path to a pipeline passes the gate."""
    monkeypatch.setattr(wan_command, "_generate", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(request, "Gate", lambda _: Gate(Terms(minor={"quokka"}, sexual={"marmalade"})))
    result = call("--prompt=a quokka with marmalade", "--save_file=no.mp4")
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (folder / "no.mp4").exists()


def test_the_script_writes_a_clip(folder: Path) -> None:
    """`python wan_generate.py` in a process of its own, as in the release."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "wan_generate.py"), *QUICK, "--frame_num=17", "--save_file=clip.mp4"],
        capture_output=True, text=True, timeout=150, cwd=folder, env=environment(PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["frames"] == probe((folder / "clip.mp4").read_bytes()).frames == 17


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_script_with_128_plus_its_number(folder: Path, signum: signal.Signals) -> None:
    """Scripts can tell an interruption from a failure; no temporary folder remains."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "wan_generate.py"), PROMPT, "--sample_steps=100000", "--frame_num=1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), TMPDIR=str(folder)),
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        assert "100000 steps" in run.stderr.readline()
        run.send_signal(signum)
        assert (run.wait(60), run.stdout.read()) == (128 + signum, "")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(("ourvidz-wan-", "t2v-"))]
