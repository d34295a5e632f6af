"""Storage keys have the documented form."""

from __future__ import annotations

from ourvidz.storage.keys import asset_key, split_key, thumbnail_key


def test_keys_follow_the_contract() -> None:
    """Callers derive the same paths themselves."""
    assert asset_key("workspace-temp", "USER", "JOB", 0, "png") == "workspace-temp/USER/JOB/0.png"
    assert asset_key("video_fast", "USER", "JOB", 2, "mp4") == "video_fast/USER/JOB/2.mp4"
    assert thumbnail_key("workspace-temp", "USER", "JOB", 1) == "workspace-temp/USER/JOB/1.thumb.webp"


def test_a_key_built_from_valid_ids_is_valid() -> None:
    """Every id that is accepted at submission can be part of a key."""
    assert split_key(thumbnail_key("b", "user.1:x", "job_2", 5)) == ["b", "user.1:x", "job_2", "5.thumb.webp"]
