from __future__ import annotations

from ourvidz.storage.keys import asset_key, segments, thumbnail_key


def test_keys_follow_the_contract() -> None:
    """Callers build the same paths on their side."""
    assert asset_key("workspace-temp", "USER", "JOB", 0, "png") == "workspace-temp/USER/JOB/0.png"
    assert asset_key("video_fast", "USER", "JOB", 2, "mp4") == "video_fast/USER/JOB/2.mp4"
    assert thumbnail_key("workspace-temp", "USER", "JOB", 1) == "workspace-temp/USER/JOB/1.thumb.webp"


def test_a_key_of_ours_is_well_formed() -> None:
    """What a job is given at the door always makes a key that every store takes."""
    assert segments(thumbnail_key("b", "user.1:x", "job_2", 5)) == ["b", "user.1:x", "job_2", "5.thumb.webp"]
