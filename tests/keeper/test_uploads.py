"""The duty that removes uploaded references whose time is over."""

from __future__ import annotations

import io

from PIL import Image

from ourvidz import uploads
from ourvidz.keeper.duties import duties, remove_uploads
from ourvidz.testing import Eager
from tests.keeper.test_attempt_folders import Lease


def test_expired_references_are_removed(ourvidz_eager: Eager) -> None:
    """By the ledger's time, whatever the clocks of the hosts are."""
    app = ourvidz_eager.control
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    now = app.ledger.now()
    old, new = (
        uploads.store_upload(
            app.store, file.getvalue(), user_id="ada", now=at, ttl_s=3600, max_bytes=1 << 20, max_pixels=100
        )
        for at in (now - 4000, now)
    )
    remove_uploads(Lease())  # type: ignore[arg-type]
    assert (app.store.exists(old.path), app.store.exists(new.path)) == (False, True)


def test_every_keeper_has_the_duty(ourvidz_eager: Eager) -> None:
    """Files of strangers must not stay for ever."""
    assert remove_uploads in {duty.run for duty in duties()}
