"""The control plane: references and defaults, as the settings shape them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from ourvidz.errors import ReferenceForbidden, ReferenceFrameError
from ourvidz.settings import load_settings
from ourvidz.wiring import control


def test_references_are_read_from_the_same_storage(tmp_path: Path) -> None:
    """A result can be the next job's reference, within the limits an operator has set."""
    variables = {"OURVIDZ_STATE_DIR": tmp_path, "OURVIDZ_REFERENCE_LIMIT_PIXELS": 4096}
    built = control.build(load_settings(_env_file=None, **variables))
    for name, side in (("small", 64), ("large", 65)):
        file = io.BytesIO()
        Image.new("RGB", (side, side), "teal").save(file, "PNG")
        built.store.put(f"workspace-temp/user-1/job/{name}.png", file.getvalue(), content_type="image/png")
    found = built.references.resolve("workspace-temp/user-1/job/small.png", user_id="user-1")
    assert found.image.getpixel((9, 9)) == (0, 128, 128)
    with pytest.raises(ReferenceFrameError):
        built.references.resolve("workspace-temp/user-1/job/large.png", user_id="user-1")
    with pytest.raises(ReferenceForbidden):
        built.references.resolve("workspace-temp/user-1/job/small.png", user_id="user-2")


def test_the_largest_clip_is_the_most_frames_at_the_native_size(tmp_path: Path) -> None:
    """Everything that the contract allows is accepted; an operator can set another limit. For the tiny
    checkpoint, which scales requests down, there is only a configured limit."""

    def limit(**variables: str) -> int | None:
        settings = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **variables)
        return control.defaults(settings).wan_frame_pixels

    assert limit() is None
    assert limit(OURVIDZ_WAN_MAX_FRAME_PIXELS="5") == 5
    assert limit(OURVIDZ_WAN_MODEL="/w") == 161 * 480 * 832
    assert limit(OURVIDZ_WAN_MODEL="/w", OURVIDZ_WAN_MAX_FRAME_PIXELS="5000000") == 5_000_000
