from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import Cancelled
from ourvidz.jobs.job import ImageJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.workflows.assets import AT_ONCE, AssetUploader
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.signing import Credentials

HILLS = Image.linear_gradient("L").convert("RGB")
JOB = ImageJob(
    id="job-1", type="sdxl_image_fast", user_id="user-1", expected_time=9, prompt="hills", steps=2,
    guidance_scale=7.5, num_images=6, width=256, height=256, seed=40,
)  # fmt: skip


class Run:
    """A run that stores at once, if `before` lets it."""

    def __init__(self, before: Callable[[str], None] = lambda key: None) -> None:
        self.before = before
        self.puts: list[str] = []

    def step(self, done: int, total: int) -> None:
        """Nobody listens."""

    def preview(self, *_: Any) -> None:
        """Nobody looks."""

    def say(self, *_: Any) -> bool:
        return True

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        self.before(key)
        store.put(key, data, content_type=content_type)
        self.puts.append(key)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "assets")


def keeper(store: Store, run: Any) -> AssetUploader:
    return AssetUploader(JOB, run, store, Credentials(None, "trainedAlgorithmicMedia", job_id=JOB.id))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("keep-job-1")]


def test_pictures_are_stored_before_all_are_there(store: LocalStore) -> None:
    """The last of a batch is still being decoded while the first can be read already."""
    there = threading.Event()
    run = Run()
    with keeper(store, run) as keeping:
        run.before = lambda key: there.set() if key.endswith("0.thumb.webp") else None
        keeping.take(0, HILLS)
        assert there.wait(30)
        assert store.exists("workspace-temp/user-1/job-1/0.png")


def test_the_assets_are_in_the_order_of_their_seeds(store: LocalStore) -> None:
    """Whichever was stored first, and whoever handed them on; what is known of all is known of each."""
    others = threading.Event()

    def first_comes_last(key: str) -> None:
        assert not key.endswith("/0.png") or others.wait(30)
        if key.endswith("/2.thumb.webp"):
            others.set()

    pictures = GeneratedImages(
        images=[HILLS] * 3, seeds=[40, 41, 42], seconds=1.0, asset_metadata={"steps": 2}
    )
    run = Run(first_comes_last)
    with keeper(store, run) as keeping:
        keeping.take(0, HILLS)
        assets = keeping.assets(pictures)
    told = [(one.metadata["asset_index"], one.metadata["seed"], one.metadata["steps"]) for one in assets]
    assert told == [(0, 40, 2), (1, 41, 2), (2, 42, 2)]
    assert len(run.puts) == 6
    assert run.puts.index("workspace-temp/user-1/job-1/0.png") > 1


def test_what_one_failed_of_is_heard_with_the_next(store: LocalStore) -> None:
    """The rest of a cancelled batch is not decoded for nobody."""

    def cancelled(_: str) -> None:
        raise Cancelled("enough")

    with keeper(store, Run(cancelled)) as keeping:
        keeping.take(0, HILLS)
        wait(keeping._kept.values(), timeout=30)
        with pytest.raises(Cancelled):
            keeping.take(1, HILLS)


def test_nothing_is_stored_once_the_attempt_is_over(store: LocalStore) -> None:
    """Another attempt may write the same files by then."""
    began, go = threading.Event(), threading.Event()

    def slow(_: str) -> None:
        began.set()
        assert go.wait(30)

    run = Run(slow)
    with keeper(store, run) as keeping:
        for index in range(6):
            keeping.take(index, HILLS)
        assert began.wait(30)
        # The last one waits for a thread, so it is dropped on the way out.
        keeping._kept[5].add_done_callback(lambda _: go.set())
    assert threads() == []
    assert len(run.puts) == 2 * AT_ONCE
    assert keeping._kept[5].cancelled()


def test_every_thread_checks_the_fence(store: LocalStore, make_ledger: Callable[..., Ledger]) -> None:
    """An attempt that was given away must not overwrite what its successor stores."""
    ledger = make_ledger()
    ledger.register(JOB, priority=6)
    claim = ledger.claim(JOB.id, 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    pictures = GeneratedImages(images=[HILLS] * 6, seeds=JOB.seeds, seconds=1.0)
    with LeasedRun(claim, ledger, lease_s=10.0, limit_s=60.0, previews=True) as run:
        with keeper(store, run) as keeping:
            assert len(keeping.assets(pictures)) == 6
        store.delete_folder("workspace-temp/user-1/job-1")
        assert ledger.release(claim, code="WORKER_LOST", due_in_s=0)
        with keeper(store, run) as keeping, pytest.raises(FenceLost):
            keeping.assets(pictures)
    assert not [file for file in store.root.rglob("*.*") if file.is_file()]
