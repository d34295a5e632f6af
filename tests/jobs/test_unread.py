"""Fields that a job keeps without reading them are bounded; pictures that it does not read are dropped."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.unread import MAX_UNREAD_BYTES, RULE

IMAGE = {"id": "j", "type": "sdxl_image_fast", "prompt": "a lake", "user_id": "u"}
CLIP = {**IMAGE, "type": "video_fast"}
CHAT = {"id": "j", "type": "chat_enhance", "prompt": "a lake"}
PICTURE = "data:image/png;base64," + "A" * (2 << 20)
LARGE = "A" * MAX_UNREAD_BYTES


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"note": LARGE}, "note"),
        ({"note": "data:image/png;base64," + LARGE}, "note"),
        ({"note": [LARGE]}, "note"),
        ({"note": "é" * (MAX_UNREAD_BYTES // 2)}, "note"),
        ({"config": {"note": LARGE}}, "config.note"),
        ({"metadata": {"note": {"x": LARGE}}}, "metadata.note"),
        ({"created_at": LARGE}, "created_at"),
        ({"metadata": {"content_tier": {"x": LARGE}}}, "content_tier"),
        ({"config": {"guidance": LARGE, "note": 1}}, "config.guidance"),
        ({"image": PICTURE}, "image"),
        ({"metadata": {"image": PICTURE}}, "metadata.image"),
        ({f"n{number}": "A" * 1000 for number in range(66)} | {"most": "A" * 2000}, "most"),
    ],
)
def test_large_unknown_fields_are_refused(more: dict[str, Any], field: str) -> None:
    """They would be stored with the job, and the allowance of pictures is for pictures."""
    with pytest.raises(InvalidParameters) as refused:
        parse({**IMAGE, **more}, Defaults())
    assert (refused.value.field, refused.value.rule) == (field, RULE)
    assert "bytes" in str(refused.value.value)


def test_a_large_name_is_refused_and_not_repeated() -> None:
    """Names are stored too; the error goes to logs."""
    with pytest.raises(InvalidParameters) as refused:
        parse({**IMAGE, LARGE: 1}, Defaults())
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "payload",
    [
        {**IMAGE, "config": {"image": PICTURE}},
        {**IMAGE, "config": {"image": PICTURE}, "metadata": {"reference_image_url": PICTURE}},
        {**IMAGE, "config": {"first_frame": PICTURE}},
        {**CLIP, "config": {"first_frame": PICTURE, "last_frame": PICTURE}},
        {**CLIP, "config": {"image": PICTURE, "reference_mode": "none"}},
        {**CHAT, "config": {"image": PICTURE, "job_type": "video_fast"}},
    ],
)
def test_pictures_may_be_large_where_references_are_read(payload: dict[str, Any]) -> None:
    """Also for a job that does not read them there: it keeps none of it."""
    job = parse(payload, Defaults())
    assert len(str(job.extras)) < 1000


def test_small_unknown_fields_are_kept() -> None:
    """They are never an error."""
    job = parse({**IMAGE, "note": "A" * 60_000, "config": {"x": [1, None, True]}}, Defaults())
    assert job.extras == {"note": "A" * 60_000, "config": {"x": [1, None, True]}}
