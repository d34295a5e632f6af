"""Wan with its parts on the device one at a time: the clips are the same, and no stage needs another part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import sleeping
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.tensor_cache import TensorCache
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.components import PartName
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job
from tests.pipelines.helpers import no_progress
from tests.pipelines.wan.references import landscape_references
from training.untrained.wan_image_models import build_vace

Leave = Callable[[WanPipeline, PartName], None]


class OneAtATime:
    """A device with room for one part; when a stage ends, its part leaves it as `leave` says."""

    def __init__(self, pipeline: WanPipeline, leave: Leave) -> None:
        self.used: list[str] = []
        self._pipeline = pipeline
        self._leave = leave
        self._current: str | None = None

    @contextmanager
    def in_use(self, part: PartName, *, finished: Collection[str] = ()) -> Iterator[None]:
        assert part not in finished
        if part == self._current:
            yield
            return
        assert self._current is None
        self.used.append(part)
        self._pipeline.load_part(part)
        # What was read with it has no room, on the device or elsewhere.
        for other in self._pipeline.parts:
            if other != part and len(self.used) == 1:
                self._pipeline.unload_part(other)
        self._current = part
        try:
            yield
        finally:
            self._current = None
            self._leave(self._pipeline, part)


def unload(pipeline: WanPipeline, part: PartName) -> None:
    """Free a part."""
    pipeline.unload_part(part)


def sleep(pipeline: WanPipeline, part: PartName) -> None:
    """Move a part to the host's memory."""
    pipeline.sleep_part(part)


def clip(pipeline: WanPipeline, references: ReferenceImages | None = None) -> bytes:
    """The pixels of a clip."""
    mode = "none" if references is None else "start"
    job = video_job(frames=5, reference_mode=mode, steps=2)
    frames = pipeline.generate(job, references=references, on_step=no_progress).frames
    return b"".join(frame.tobytes() for frame in frames)


@pytest.fixture(scope="module")
def vace(wan_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A VACE checkpoint that shares weights with the untrained one."""
    folder = tmp_path_factory.mktemp("vace") / "tiny-vace"
    build_vace(folder, text_to_video=wan_checkpoint.path)
    return find_wan(folder)


@pytest.mark.parametrize(("leave", "with_reference"), [(sleep, False), (unload, True)])
def test_clips_are_the_same_with_one_part_on_the_device_at_a_time(
    wan_checkpoint: Checkpoint, vace: Checkpoint, leave: Leave, with_reference: bool
) -> None:
    """Bit for bit, also where parts are read from disk again: a weight that is used while it is away has no
    values. Both transformers are one part, because they share weights."""
    references = landscape_references() if with_reference else None
    whole = WanPipeline(wan_checkpoint, vace=vace, cap=128)
    staged = WanPipeline(wan_checkpoint, vace=vace, cap=128, cache=TensorCache(64))
    memory = OneAtATime(staged, leave)
    staged.share_memory(memory)
    expected = clip(whole, references)
    assert clip(staged, references) == expected
    first, memory.used = memory.used, []
    assert first[-2:] == ["transformer", "vae"]
    assert clip(staged, references) == expected
    # A prompt that was encoded before does not bring the text encoder back.
    assert memory.used == (["vae"] if with_reference else []) + ["transformer", "vae"]


def test_loaded_says_whether_a_part_is_on_the_device(wan_checkpoint: Checkpoint) -> None:
    """A pipeline whose parts are all freed is read anew after `unload` only."""
    pipeline = WanPipeline(wan_checkpoint)
    assert pipeline.part_mib("vae") is None
    expected = pipeline.part_sizes()
    pipeline.load_part("vae")
    size = pipeline.part_mib("vae")
    assert {part: pipeline.part_mib(part) for part in pipeline.parts} == pytest.approx(expected, abs=1)
    pipeline.unload_part("transformer")
    pipeline.unload_part("text_encoder")
    assert pipeline.info()["loaded"]
    pipeline.sleep_part("vae")
    assert not pipeline.info()["loaded"]
    pipeline.unload_part("vae")
    pipeline.unload_part("vae")
    assert (pipeline.info()["loaded"], pipeline.info()["memory_mib"]) == (False, 0)
    assert pipeline.part_mib("vae") == size
    assert pipeline.components.loaded
    pipeline.unload()
    assert not pipeline.components.loaded


def test_a_part_for_which_the_device_was_too_full_is_taken_back(
    wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its weights may be there already."""
    pipeline = WanPipeline(wan_checkpoint)
    pipeline.load_part("vae")
    encoder = pipeline.components.pipe.text_encoder
    taken_back: list[object] = []

    def full(components: list[object], device: torch.device) -> None:
        assert components == [encoder]
        raise torch.OutOfMemoryError(f"{device} out of memory")

    monkeypatch.setattr(sleeping, "move_to_device", full)
    monkeypatch.setattr(sleeping, "move_to_host", taken_back.extend)
    with pytest.raises(torch.OutOfMemoryError):
        pipeline.load_part("text_encoder")
    pipeline.sleep_part("text_encoder")
    assert taken_back == [encoder]


def test_a_part_whose_files_have_changed_is_a_load_error(untrained_wan: Path, tmp_path: Path) -> None:
    """No model is put together from two checkpoints."""
    folder = copytree(untrained_wan, tmp_path / "wan")
    pipeline = WanPipeline(find_wan(folder))
    pipeline.load_part("text_encoder")
    pipeline.unload_part("vae")
    rmtree(folder / "vae")
    with pytest.raises(ModelLoadError, match="has changed since it was loaded"):
        pipeline.load_part("vae")
    pipeline.unload()
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        pipeline.load_part("vae")
