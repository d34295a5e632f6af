"""Real pipelines of several workers on one emulated card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch

from ourvidz import memory
from ourvidz.errors import ModelLoadError, OutOfMemory
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.texts.residency import ResidentTextModels
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.settings import Settings, load_settings
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec, open_device
from ourvidz.vram.footprints import kind_of
from ourvidz.wiring import control, models
from ourvidz.wiring.model_parts import Whole
from ourvidz.wiring.models import WarmModels
from ourvidz.wiring.shared_device import SharedDevice
from tests.factories import chat_job, image_job, video_job
from tests.pipelines.helpers import no_progress

pytestmark = pytest.mark.model

CARD = "card:48GiB,scale=0.001"
"""On this scale the tiny SDXL checkpoint takes 25 GB, Wan 17 and each Qwen 6."""


WAN = {"wan.text_encoder", "wan.transformer", "wan.vae"}


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
    """The state of each model or part that holds memory, by its name."""
    device = open_device(settings, "reader")
    assert device is not None
    residents = control.current().ledger.device_memory(device.id).residents
    return {each.name: each.state for each in residents}


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
    """SDXL is pinned, and its weights and Wan's fit, but not with the memory that a picture needs: a part of
    Wan sleeps meanwhile, and wakes for the next clip."""
    sdxl, wan = build("sdxl"), build("wan")
    sdxl.warm()
    first_picture, first_clip = picture(sdxl), clip(wan)
    assert state(settings) == {"sdxl": "resident"} | dict.fromkeys(WAN, "resident")
    assert sdxl.memory()["vram_used"] == pytest.approx(42_000, rel=0.1)
    assert picture(sdxl) == first_picture
    assert state(settings)["sdxl"] == "resident"
    assert "asleep" in state(settings).values()
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
    others = {"sdxl": "resident", "qwen_instruct": "resident", "qwen_base": "resident"}
    assert state(settings) == others | dict.fromkeys(WAN - {"wan.vae"}, "resident")
    control.current().ledger.pin_part("qwen_instruct", True)
    control.current().ledger.pin_part("qwen_base", True)
    assert share.bring("wan", force=True)
    states = state(settings)
    assert {states.pop(part) for part in WAN} == {"resident"}
    assert "asleep" in states.values()
    assert share.free("wan")
    assert not share.free("wan")
    assert not WAN & state(settings).keys()
    assert not share.bring("unknown", force=True)


def test_without_a_gpu_no_device_is_shared(tmp_path: Path) -> None:
    """Nothing is reserved then."""
    settings = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path)
    assert models.build(settings, "sdxl").device_share is None


class FullOnce:
    """A pipeline for which the device is full at the first load, as another program has taken its memory."""

    load_s: float | None = None

    def __init__(self) -> None:
        self.loads = 0

    def load(self) -> None:
        self.loads += 1
        if self.loads == 1:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except torch.OutOfMemoryError as error:
                raise ModelLoadError("the model could not be loaded") from error

    def sleep(self) -> None:
        """Nothing."""

    def unload(self) -> None:
        """Nothing."""

    def info(self) -> dict[str, Any]:
        return {"memory_mib": 0}


class PeakDevice(EmulatedDevice):
    """A card on which each job tries to take all memory before it takes less."""

    def peak_mib(self) -> int | None:
        return self.total_mib()


@pytest.fixture
def share(settings: Settings, build: Callable[[str], WarmModels]) -> Iterator[SharedDevice]:
    """The device of a worker with such a pipeline on such a card."""
    del build  # sets the ledger
    device = PeakDevice(EmulatedSpec.parse(CARD), settings.state_dir / "cards")
    ledger = control.current().ledger
    made = SharedDevice(settings, "sdxl", ledger, device, {"sdxl": Whole(FullOnce(), 20)})
    yield made
    made.close()


def test_a_device_that_is_full_while_a_model_loads_is_tried_again(share: SharedDevice) -> None:
    """The pipelines wrap the error; it is no broken checkpoint."""
    with share.hold("sdxl", image_job(), patient):
        """Loaded at the second try."""


def test_a_job_that_succeeded_is_not_refused_later(share: SharedDevice) -> None:
    """It first tried to take the whole card, and then less."""
    for _ in range(2):
        with share.hold("sdxl", image_job(), patient):
            """A job that succeeds."""


def test_nothing_is_learned_from_a_job_during_which_a_part_has_left(share: SharedDevice) -> None:
    """Its peak is lower by the size of that part."""
    job = image_job(width=64, height=64)
    kind = kind_of("sdxl", pixels=64 * 64, count=1)
    with share.hold("sdxl", job, patient):
        share._residency._mover.moves += 1
    assert share._footprints.learned_mib(kind) is None
    with share.hold("sdxl", job, patient):
        """Nothing moves."""
    assert share._footprints.learned_mib(kind) is not None


def test_a_model_that_nearly_fills_the_device_is_used(
    settings: Settings, build: Callable[[str], Any]
) -> None:
    """What its jobs need beside it is not known yet: no job is refused for a guess."""
    del build
    device = EmulatedDevice(EmulatedSpec.parse(CARD), settings.state_dir / "cards")
    pipeline = FullOnce()
    made = SharedDevice(settings, "sdxl", control.current().ledger, device, {"sdxl": Whole(pipeline, 45)})
    with closing(made), made.hold("sdxl", image_job(), patient):
        assert pipeline.loads


def test_weights_that_are_moved_in_groups_are_not_reserved(
    settings: Settings, build: Callable[[str], WarmModels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group offloading is for devices that cannot hold the model."""
    whole = build("wan").device_share
    monkeypatch.setattr(WanOptions, "check", lambda *_: None)  # refuses group offloading on a CPU
    grouped_settings = settings.model_copy(update={"wan_group_offload": True})
    models_ = models.build(grouped_settings, "wan")
    grouped = models_.device_share
    assert whole is not None
    assert grouped is not None
    with closing(grouped):
        assert set(grouped._parts["wan"]) < set(whole._parts["wan"])
        first = clip(models_)
        assert grouped._residency.evict(grouped._parts["wan"]["vae"].id)
        assert clip(models_) == first


def test_loading_by_force_ends_when_another_program_keeps_the_device(
    settings: Settings, share: SharedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker runs its jobs again."""
    monkeypatch.setattr("ourvidz.wiring.shared_device.FORCE_LIMIT_S", 0.5)
    stranger = EmulatedDevice(EmulatedSpec.parse(CARD), settings.state_dir / "cards", worker_id="stranger")
    stranger.allocate("something", 40_000)
    assert not share.bring("sdxl", force=True)


# -- several workers of one family
def sdxl_worker(settings: Settings, gpu: str, pipeline: FullOnce, mib: int) -> SharedDevice:
    """An SDXL worker on the card, with a model of this size (GB); `gpu` makes its worker id its own."""
    worker_settings = settings.model_copy(update={"gpu": gpu})
    device = open_device(worker_settings, "sdxl")
    assert device is not None
    ledger = control.current().ledger
    return SharedDevice(worker_settings, "sdxl", ledger, device, {"sdxl": Whole(pipeline, mib)})


@pytest.fixture
def two_workers(settings: Settings, build: Callable[[str], Any]) -> Iterator[Callable[[int], Any]]:
    """Returns a factory of two SDXL workers with models of a size."""
    del build  # sets the ledger
    with ExitStack() as cleanup:

        def make(mib: int) -> tuple[SharedDevice, SharedDevice]:
            first, second = (
                cleanup.enter_context(closing(sdxl_worker(settings, gpu, AtOnce(), mib))) for gpu in "01"
            )
            return first, second

        yield make


class AtOnce(FullOnce):
    """A pipeline that loads at the first try and counts how often it slept."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 1


def test_two_workers_of_one_family_work_at_the_same_time(
    settings: Settings, two_workers: Callable[[int], Any]
) -> None:
    """Where both models fit, each has its own, and its own memory for its job."""
    first, second = two_workers(10)
    with first.hold("sdxl", image_job(), never), second.hold("sdxl", image_job(), never):
        (report,) = memory.devices()
        assert {report.name(each.id) for each in report.memory.residents} == {
            f"{name}@{settings.worker_id('sdxl').partition('@')[2].replace('cpu', place)}"
            for name in ("sdxl", "sdxl.work")
            for place in ("gpu0", "gpu1")
        }
        assert len({each.owner for each in report.memory.residents}) == 2
    assert memory.model_states([report], []) == dict.fromkeys(memory.MODELS, "offline")


def test_two_workers_of_one_family_take_turns_where_one_model_fits(
    settings: Settings, two_workers: Callable[[int], Any]
) -> None:
    """Pinned as they are: neither waits for ever, and the budget holds."""
    first, second = two_workers(30)
    for share in (first, second, first):
        with share.hold("sdxl", image_job(), patient):
            (report,) = memory.devices()
            assert report.memory.held_mib <= 47_000
            assert [each.state for each in report.memory.residents if each.busy and not each.work] == [
                "resident"
            ]


def test_a_model_is_pinned_at_all_its_workers(two_workers: Callable[[int], Any]) -> None:
    """One name pins it; a worker that loads it later pins it too."""
    ledger = control.current().ledger
    first, second = two_workers(10)
    assert first.bring("sdxl", force=False)
    assert ledger.pin_part("sdxl", False) == 1
    assert second.bring("sdxl", force=False)
    (report,) = memory.devices()
    assert [each.pinned for each in report.memory.residents] == [False, False]
    assert ledger.pin_part("sdxl", True) == 2


@pytest.mark.parametrize(("budget_mib", "state"), [(30_200, "asleep"), (30_199, "absent")])
def test_encoded_prompts_count_for_the_memory_of_the_host(
    settings: Settings, build: Callable[[str], Any], budget_mib: int, state: str
) -> None:
    """A model sleeps beside the caches of two workers, or not at all."""
    del build  # sets the ledger
    limited = settings.model_copy(update={"host_budget_mib": budget_mib, "embedding_cache_mib": 100})
    with closing(sdxl_worker(limited, "0", AtOnce(), 30)) as share:
        assert share.bring("sdxl", force=False)
        assert share._residency.evict(share._parts["sdxl"]["sdxl"].id)
        residents = control.current().ledger.device_memory(share._device.id).residents
        assert [each.state for each in residents] == [state] * (state == "asleep")
