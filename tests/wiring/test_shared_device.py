"""Real pipelines of several workers on one emulated card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import OutOfMemory
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.texts.residency import ResidentTextModels
from ourvidz.settings import Settings, load_settings
from ourvidz.vram.device import open_device
from ourvidz.vram.footprints import kind_of
from ourvidz.wiring import control, models
from ourvidz.wiring.models import WarmModels
from tests.factories import chat_job, image_job, video_job
from tests.pipelines.helpers import no_progress

CARD = "card:48GiB,scale=0.001"
"""On this scale the tiny SDXL checkpoint takes 25 GB, Wan 17 and each Qwen 6."""


def patient() -> None:
    """Wait for others to leave."""


def never() -> None:
    raise AssertionError("nothing has to be waited for")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The tiny profile on an emulated card, where a model that was just brought leaves after a second."""
    return load_settings(
        _env_file=None,
        OURVIDZ_STATE_DIR=tmp_path,
        OURVIDZ_EMULATED_GPU=CARD,
        OURVIDZ_GPU_BUDGET_MIB=47_000,
        OURVIDZ_GPU_TURN_S=1,
    )


@pytest.fixture
def build(
    settings: Settings, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], WarmModels]]:
    """Builds the models of a family as its worker does; all share one ledger and one card."""
    with ExitStack() as cleanup:
        app = control.build(settings, ledger=make_ledger())
        monkeypatch.setattr(control, "current", lambda: app)

        def make(family: str) -> WarmModels:
            made = models.build(settings, family)
            assert made.device_share is not None
            cleanup.callback(made.device_share.close)
            return made

        yield make


def state(settings: Settings) -> dict[str, str]:
    """The state of each model that holds memory."""
    device = open_device(settings, "reader")
    assert device is not None
    residents = control.current().ledger.device_memory(device.id).residents
    return {each.id: each.state for each in residents}


def picture(sdxl: WarmModels) -> bytes:
    """The pixels of one job."""
    job = image_job()
    assert sdxl.device_share is not None
    with sdxl.device_share.hold("sdxl", job, patient):
        result = sdxl.images().generate(job, on_step=no_progress)
    return result.images[0].tobytes()


def clip(wan: WarmModels) -> bytes:
    """The pixels of one clip."""
    job = video_job(frames=5)
    assert wan.device_share is not None
    with wan.device_share.hold("wan", job, patient):
        result = wan.videos().generate(job, on_step=no_progress)
    return b"".join(frame.tobytes() for frame in result.frames)


def test_models_take_turns_on_the_card_and_generate_the_same(
    settings: Settings, build: Callable[[str], WarmModels]
) -> None:
    """SDXL is pinned, and its weights and Wan's fit, but not with the memory that a picture needs: Wan sleeps
    meanwhile, and wakes for its next clip."""
    sdxl, wan = build("sdxl"), build("wan")
    sdxl.warm()
    first_picture, first_clip = picture(sdxl), clip(wan)
    assert state(settings) == {"sdxl": "resident", "wan": "resident"}
    assert sdxl.memory()["vram_used"] == pytest.approx(42_000, rel=0.1)
    assert picture(sdxl) == first_picture
    assert state(settings) == {"sdxl": "resident", "wan": "asleep"}
    assert clip(wan) == first_clip


def test_a_job_that_the_card_cannot_hold_fails_at_once(
    settings: Settings, build: Callable[[str], WarmModels]
) -> None:
    """What was learned of its kind counts; the resident model stays."""
    sdxl = build("sdxl")
    sdxl.warm()
    share: Any = sdxl.device_share
    job = image_job(width=64, height=64)
    share._footprints.learn(kind_of("sdxl", pixels=64 * 64, count=1), 40_000)
    with pytest.raises(OutOfMemory, match="MiB of device memory"), share.hold("sdxl", job, never):
        raise AssertionError
    assert state(settings) == {"sdxl": "resident"}


def test_texts_of_both_models_fit_beside_each_other(
    settings: Settings, build: Callable[[str], WarmModels]
) -> None:
    """What fits is loaded at the start, and nothing is unloaded by the models' own rule."""
    chat = build("chat")
    chat.warm()
    assert state(settings) == {"qwen_instruct": "resident", "qwen_base": "resident"}
    assert isinstance(chat._texts, ResidentTextModels)
    job = chat_job(max_tokens=4)
    assert chat.device_share is not None
    with chat.device_share.hold("qwen_instruct", job, never):
        assert chat.texts("qwen_instruct").info()["loaded"]
    assert not chat.device_share.must_yield()


def test_a_model_is_brought_and_freed_on_request(
    settings: Settings, build: Callable[[str], WarmModels]
) -> None:
    """Bringing takes free memory only; by force others leave, even pinned ones."""
    sdxl, wan, chat = build("sdxl"), build("wan"), build("chat")
    share: Any = wan.device_share
    sdxl.warm()
    chat.warm()
    assert not share.bring("wan", force=False)
    assert state(settings) == {"sdxl": "resident", "qwen_instruct": "resident", "qwen_base": "resident"}
    control.current().ledger.pin_part("qwen_instruct", True)
    control.current().ledger.pin_part("qwen_base", True)
    assert share.bring("wan", force=True)
    states = state(settings)
    assert states.pop("wan") == "resident"
    assert "asleep" in states.values()
    assert share.free("wan")
    assert not share.free("wan")
    assert "wan" not in state(settings)
    assert not share.bring("unknown", force=True)


def test_without_a_gpu_no_device_is_shared(tmp_path: Path) -> None:
    """Nothing is reserved then."""
    settings = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path)
    assert models.build(settings, "sdxl").device_share is None
