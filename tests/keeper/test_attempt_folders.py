"""The duty that removes the files of attempts that died."""

from __future__ import annotations

import pytest

from ourvidz.errors import StorageError
from ourvidz.keeper.duties import remove_attempt_folders
from ourvidz.testing import Eager
from tests.factories import image_job

FOLDER = "workspace-temp/user-1/a/.attempts/7.t"


class Lease:
    """A duty lease that nobody takes over."""

    def renew(self) -> None:
        """Do nothing."""


def test_the_files_of_an_attempt_that_died_are_removed(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else knows of them. A storage that fails keeps them on the list."""
    app = ourvidz_eager.control
    app.ledger.register(image_job("a"), priority=6)
    claim = app.ledger.claim("a", 1, worker_id="w", lease_s=10, token="t")
    assert claim is not None
    app.ledger.step(claim, folders=[FOLDER])
    app.store.put(f"{FOLDER}/0.png", b"half", content_type="image/png")
    app.ledger.rescue(claim)
    with monkeypatch.context() as patch:

        def fail(folder: str) -> None:
            raise StorageError("the storage is away")

        patch.setattr(app.store, "delete_folder", fail)
        remove_attempt_folders(Lease())  # type: ignore[arg-type]
    assert app.store.exists(f"{FOLDER}/0.png")
    remove_attempt_folders(Lease())  # type: ignore[arg-type]
    assert not app.store.exists(f"{FOLDER}/0.png")
    assert app.ledger.dead_attempt_folders() == []
