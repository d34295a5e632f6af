"""The upload of images on several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import Cancelled
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store
from ourvidz.workflows.assets import UPLOAD_THREADS, AssetUploader
from ourvidz.workflows.run import FenceLost, LeasedRun
from ourvidz.workflows.signing import AssetSigner
from tests.factories import RecordingRun, image_job

GRADIENT = Image.linear_gradient("L").convert("RGB")
JOB = image_job(num_images=6, width=256, height=256, seed=40)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "assets")


def uploader_of(store: Store, run: Any) -> AssetUploader:
    """An uploader of the job without a certificate."""
    return AssetUploader(JOB, run, store, AssetSigner(None, "trainedAlgorithmicMedia", job_id=JOB.id))


def upload_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("upload-job-1")]


def test_an_image_is_stored_before_the_others_are_uploaded(store: LocalStore) -> None:
    """The first of a batch can be read while the last is still being decoded."""
    stored = threading.Event()
    run = RecordingRun(before_put=lambda key: stored.set() if key.endswith("0.thumb.webp") else None)
    with uploader_of(store, run) as uploader:
        uploader.upload(0, GRADIENT)
        assert stored.wait(30)
        assert store.exists("workspace-temp/user-1/job-1/0.png")


def test_the_assets_are_in_the_order_of_their_seeds(store: LocalStore) -> None:
    """Whichever was stored first; each has the metadata of the whole result."""
    others_stored = threading.Event()

    def delay_the_first(key: str) -> None:
        assert not key.endswith("/0.png") or others_stored.wait(30)
        if key.endswith("/2.thumb.webp"):
            others_stored.set()

    result = GeneratedImages(
        images=[GRADIENT] * 3, seeds=[40, 41, 42], seconds=1.0, batch_size=2, asset_metadata={"steps": 2}
    )
    run = RecordingRun(before_put=delay_the_first)
    with uploader_of(store, run) as uploader:
        uploader.upload(0, GRADIENT)
        assets = uploader.finish(result)
    metadata = [asset.metadata for asset in assets]
    assert [(each["asset_index"], each["seed"], each["steps"]) for each in metadata] == [
        (0, 40, 2),
        (1, 41, 2),
        (2, 42, 2),
    ]
    assert {each["batch_size"] for each in metadata} == {2}
    assert len(run.puts) == 6
    first, last = (run.puts.index((f"workspace-temp/user-1/job-1/{k}.png", "image/png")) for k in (0, 2))
    assert first > last


def test_the_error_of_one_upload_is_raised_by_the_next(store: LocalStore) -> None:
    """The rest of a cancelled batch is not decoded in vain."""

    def cancel(_: str) -> None:
        raise Cancelled("enough")

    with uploader_of(store, RecordingRun(before_put=cancel)) as uploader:
        uploader.upload(0, GRADIENT)
        wait(uploader._uploads.values(), timeout=30)
        with pytest.raises(Cancelled):
            uploader.upload(1, GRADIENT)


def test_nothing_is_stored_once_the_attempt_is_over(store: LocalStore) -> None:
    """Another attempt may write the same files by then."""
    began, go = threading.Event(), threading.Event()

    def block(_: str) -> None:
        began.set()
        assert go.wait(30)

    run = RecordingRun(before_put=block)
    with uploader_of(store, run) as uploader:
        for index in range(6):
            uploader.upload(index, GRADIENT)
        assert began.wait(30)
        # The last upload waits for a thread, so leaving the context cancels it.
        uploader._uploads[5].add_done_callback(lambda _: go.set())
    assert upload_threads() == []
    assert len(run.puts) == 2 * UPLOAD_THREADS
    assert uploader._uploads[5].cancelled()


def test_every_thread_checks_the_fence(
    store: LocalStore, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that has lost its job must not overwrite its successor's files."""
    monkeypatch.setattr("ourvidz.workflows.run.REPORT_INTERVAL_S", 0.0)
    ledger = make_ledger()
    ledger.register(JOB, priority=6)
    claim = ledger.claim(JOB.id, 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    result = GeneratedImages(images=[GRADIENT] * 6, seeds=JOB.seeds, seconds=1.0)
    with LeasedRun(claim, ledger, lease_s=10.0, limit_s=60.0, previews=True) as run:
        with uploader_of(store, run) as uploader:
            assert len(uploader.finish(result)) == 6
        store.delete_folder("workspace-temp/user-1/job-1")
        assert ledger.release(claim, code="WORKER_LOST", due_in_s=0)
        with uploader_of(store, run) as uploader, pytest.raises(FenceLost):
            uploader.finish(result)
    assert not [file for file in store.root.rglob("*.*") if file.is_file()]
