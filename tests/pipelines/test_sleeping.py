"""Models that were moved to the host's memory and back generate what they generated before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ourvidz.pipelines import sleeping
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import chat_job, image_job, video_job
from tests.pipelines.helpers import image_levels, no_progress


def sdxl_output(pipeline: SDXLPipeline) -> bytes:
    return bytes(image_levels(pipeline, image_job()).tobytes())


def wan_output(pipeline: WanPipeline) -> bytes:
    clip = pipeline.generate(video_job(frames=5), on_step=no_progress)
    return b"".join(frame.tobytes() for frame in clip.frames)


def qwen_output(pipeline: QwenPipeline) -> bytes:
    decoder = pipeline.new_decoder()
    decoder.add("a", chat_job(max_tokens=8))
    text = ""
    while True:
        for delta in decoder.step():
            text += delta.text
            if delta.finish_reason is not None:
                return text.encode()


@pytest.mark.parametrize(("name", "output"), [("sdxl", sdxl_output), ("wan", wan_output)])
def test_pictures_after_sleep_equal_those_before(
    request: pytest.FixtureRequest, name: str, output: Callable[[object], bytes]
) -> None:
    """Bit for bit. Asleep, a pipeline says that it is not loaded."""
    pipeline = request.getfixturevalue(name)
    before = output(pipeline)
    pipeline.sleep()
    pipeline.sleep()
    assert not pipeline.info()["loaded"]
    pipeline.load()
    assert pipeline.info()["loaded"]
    assert output(pipeline) == before


def test_texts_after_sleep_equal_those_before(qwen: Callable[[str], QwenPipeline]) -> None:
    """The same tokens."""
    pipeline = qwen("instruct")
    before = qwen_output(pipeline)
    pipeline.sleep()
    assert not pipeline.loaded
    assert qwen_output(pipeline) == before


def test_tied_and_shared_weights_stay_shared() -> None:
    """A weight that two modules have in common is moved once, and is one weight afterwards."""
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.weight = first.weight
    first.register_buffer("positions", torch.arange(2))
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    sleeping.move_to_host([first, second, None, "no module"])
    sleeping.move_to_device([first, second], torch.device("cpu"))
    assert second.weight is first.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.state_dict().items())
