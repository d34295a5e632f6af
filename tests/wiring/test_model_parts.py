"""Wan in parts on one emulated card: what moves, what waits, and that nothing moves where all fits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from ourvidz import memory
from ourvidz.errors import Cancelled, OutOfMemory
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.records.devices import Part
from ourvidz.settings import Settings, load_settings
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec
from ourvidz.vram.footprints import kind_of
from ourvidz.vram.reservation import POLL_S
from ourvidz.wiring import control, models
from ourvidz.wiring.model_parts import Whole
from ourvidz.wiring.models import WarmModels
from ourvidz.wiring.shared_device import SharedDevice
from tests.factories import image_job, video_job
from tests.pipelines.helpers import no_progress

pytestmark = pytest.mark.model

CARD = "card:48GiB,scale=0.001"
SIZES = {"text_encoder": 11.0, "transformer": 19.0, "vae": 1.0}
"""GiB of the released checkpoint, a thousand times as many MiB on the card."""
SMALL, LARGE = 24_000, 47_000
"""Budgets: each part and memory to work in, but no two of the large ones; all parts."""
WAIT_S = 20.0

Make = Callable[..., WarmModels]


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done with the parts of Wan, whose sizes are those of the released checkpoint."""
    made: list[str] = []
    for action in ("load", "sleep", "unload"):
        move = getattr(WanPipeline, f"{action}_part")

        def noted(self: WanPipeline, part: Any, action: str = action, move: Any = move) -> None:
            was_held, was_awake = self.components.holds(part), part in self.components._awake
            move(self, part)
            if (self.components.holds(part), part in self.components._awake) != (was_held, was_awake):
                made.append(f"{action} {part}")

        monkeypatch.setattr(WanPipeline, f"{action}_part", noted)
    monkeypatch.setattr(WanPipeline, "part_mib", lambda _, part: SIZES[part])
    return made


@pytest.fixture
def wan(
    tmp_path: Path, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch, moves: list[str]
) -> Iterator[Make]:
    """Returns a factory of Wan workers on a card with this budget."""
    del moves
    with ExitStack() as cleanup:

        def make(budget_mib: int, **more: Any) -> WarmModels:
            settings = load_settings(
                _env_file=None,
                OURVIDZ_STATE_DIR=tmp_path,
                OURVIDZ_EMULATED_GPU=CARD,
                OURVIDZ_GPU_BUDGET_MIB=budget_mib,
                OURVIDZ_GPU_TURN_S=1,
                **more,
            )
            app = control.build(settings, ledger=make_ledger())
            monkeypatch.setattr(control, "current", lambda: app)
            made = models.build(settings, "wan")
            assert made.device_share is not None
            cleanup.callback(made.device_share.close)
            return made

        yield make


@pytest.fixture
def small_card(wan: Make) -> Make:
    """The same with a small budget and jobs that are known to need little memory beside the weights."""

    def make(**more: Any) -> WarmModels:
        made = wan(SMALL, **more)
        share: Any = made.device_share
        job = video_job(frames=5)
        share._footprints.learn(kind_of("wan", pixels=job.width * job.height, count=job.frames), 1_000)
        return made

    return make


class OneColour:
    """A model of another family, without weights."""

    load_s: float | None = 0.001

    def load(self) -> None:
        """Nothing."""

    sleep = unload = load

    def info(self) -> dict[str, Any]:
        """No size: that of the files counts."""
        return {"memory_mib": 0}


def neighbour(gib: int) -> SharedDevice:
    """The worker of another family on the same card, with a model of this size."""
    app = control.current()
    settings: Settings = app.settings
    spec = EmulatedSpec.parse(CARD)
    device = EmulatedDevice(spec, settings.state_dir / "emulated-gpus", worker_id="neighbour")
    return SharedDevice(settings, "sdxl", app.ledger, device, {"sdxl": Whole(OneColour(), gib)})


def clip(
    made: WarmModels, *, waiting: Callable[[], None] = lambda: None, on_step: Any = no_progress, seed: int = 3
) -> bytes:
    """The pixels of one clip."""
    job = video_job(frames=5, steps=2, seed=seed)
    assert made.device_share is not None
    with made.device_share.hold("wan", job, waiting):
        result = made.videos().generate(job, on_step=on_step)
    return b"".join(frame.tobytes() for frame in result.frames)


def states() -> dict[str, str]:
    """The state of each part that the ledger knows, by its name."""
    (report,) = memory.devices()
    return {report.name(each.id): each.state for each in report.memory.residents}


def test_a_card_that_holds_all_parts_moves_nothing(wan: Make, moves: list[str]) -> None:
    """Each part is loaded once, when the worker starts."""
    made = wan(LARGE)
    made.warm()
    assert moves == ["load text_encoder", "load transformer", "load vae"]
    clip(made)
    clip(made, seed=4)
    assert len(moves) == 3
    assert states() == dict.fromkeys(("wan.text_encoder", "wan.transformer", "wan.vae"), "resident")


def test_a_card_that_holds_one_part_at_a_time_runs_clips(small_card: Make, moves: list[str]) -> None:
    """The text encoder sleeps while the transformer works. It is left asleep by the next clip, whose prompt
    is in the cache: that clip moves nothing."""
    made, whole = small_card(), WanPipeline(find_wan(None), cap=64)
    made.warm()
    job = video_job(frames=5, steps=2, seed=3)
    expected = b"".join(frame.tobytes() for frame in whole.generate(job, on_step=no_progress).frames)
    moves.clear()
    assert clip(made) == expected
    asleep = {"wan.text_encoder": "asleep", "wan.transformer": "resident", "wan.vae": "resident"}
    assert states() == asleep
    assert moves == ["sleep text_encoder", "load transformer"]
    assert clip(made) == expected
    assert len(moves) == 2
    assert states() == asleep


def test_without_memory_of_the_host_parts_are_read_again(small_card: Make, moves: list[str]) -> None:
    """A part that may not sleep is freed, and comes from disk the next time."""
    made = small_card(OURVIDZ_HOST_BUDGET_MIB=0, OURVIDZ_EMBEDDING_CACHE_MIB=0)
    first = clip(made)
    assert clip(made) == first
    assert moves.count("unload text_encoder") == 2
    assert not [move for move in moves if move.startswith("sleep")]


def test_an_idle_part_leaves_while_another_one_works(wan: Make) -> None:
    """Another family waits for memory: the text encoder's is enough, and the clip goes on."""
    made = wan(LARGE)
    made.warm()
    with closing(neighbour(8)) as sdxl:
        seen: list[dict[str, str]] = []

        def use_the_card() -> None:
            with sdxl.hold("sdxl", image_job(), lambda: None):
                seen.append(states())

        other = threading.Thread(target=use_the_card)

        def on_step(done: int, total: int) -> None:
            if done == total - 1:
                other.start()
                other.join(WAIT_S)
                assert seen, "it was not granted while the clip runs"

        clip(made, on_step=on_step)
    assert seen[0]["wan.text_encoder"] == "asleep"
    assert seen[0]["wan.transformer"] == "resident"
    assert not made.device_share or not made.device_share.must_yield()


ANOTHER = "another host 1 1"


@pytest.fixture
def lost_card(small_card: Make, monkeypatch: pytest.MonkeyPatch) -> WarmModels:
    """A Wan worker whose clips find, once their prompt is encoded, that another owner has got the memory in
    which the transformer would work."""
    made = small_card()
    encode = WanPipeline.encode

    def encode_and_lose_the_card(self: WanPipeline, job: Any) -> Any:
        embeds = encode(self, job)
        app = control.current()
        (device,) = app.ledger.devices()
        answer, _ = app.ledger.reserve_memory(
            device,
            ANOTHER,
            [Part(id="another", mib=6_000)],
            family="chat",
            budget_mib=LARGE,
            lease_s=60,
            turn_s=60,
        )
        assert answer == "granted"
        return embeds

    monkeypatch.setattr(WanPipeline, "encode", encode_and_lose_the_card)
    return made


def test_a_wait_between_two_stages_is_no_time_of_the_gpu(lost_card: WarmModels) -> None:
    """Nor of the generation. Its end is reported once: what follows is work."""
    waits: list[None] = []
    ends: list[int] = []

    def waiting() -> None:
        waits.append(None)
        if len(waits) == 6:
            (device,) = control.current().ledger.devices()
            control.current().ledger.release_memory(device, ANOTHER)

    job, began = video_job(frames=5, steps=2), time.monotonic()
    assert lost_card.device_share is not None
    with lost_card.device_share.hold("wan", job, waiting, lambda: ends.append(len(waits))):
        result = lost_card.videos().generate(job, on_step=no_progress)
    worked_s = time.monotonic() - began - 5 * POLL_S
    assert ends == [len(waits)]
    assert sum(lost_card.take_gpu_seconds().values()) < worked_s
    assert result.seconds < worked_s


def test_a_clip_that_waits_between_two_stages_can_be_cancelled(lost_card: WarmModels) -> None:
    """Nothing stays reserved for it, and its wait is over."""

    def cancelled() -> None:
        raise Cancelled("the job was cancelled")

    with pytest.raises(Cancelled):
        clip(lost_card, waiting=cancelled)
    (report,) = memory.devices()
    assert not report.memory.waits
    assert not any(each.busy for each in report.memory.residents if each.model == "wan")


def test_a_stage_that_the_card_cannot_hold_fails_the_job_at_once(wan: Make, moves: list[str]) -> None:
    """Nothing is brought for it."""
    made = wan(SMALL)
    job = video_job(frames=5)
    share: Any = made.device_share
    kind = kind_of("wan", pixels=job.width * job.height, count=job.frames)
    share._footprints.learn(f"{kind}/transformer", 9_000)
    with pytest.raises(OutOfMemory, match="MiB of device memory"), share.hold("wan", job, lambda: None):
        raise AssertionError
    assert not moves
