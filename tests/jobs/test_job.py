"""Jobs: their seeds, their fingerprints, and their stored form."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import BaseJob, ImageJob, load_job


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [(7, [7, 8, 9]), (2147483647, [2147483647, 0, 1]), (2147483645, [2147483645, 2147483646, 2147483647])],
)
def test_the_seed_of_every_image_is_in_the_allowed_range(image: Any, seed: int, seeds: list[int]) -> None:
    """After the largest seed they continue at 0, so each image can be requested alone."""
    job = image(config={"seed": seed, "num_images": 3})
    assert isinstance(job, ImageJob)
    assert job.seeds == seeds
    for each in job.seeds:
        assert image(config={"seed": each}).seed == each


def test_the_fingerprint_ignores_seeds_and_carried_fields(body: Any, image: Any) -> None:
    """A repeated submission is recognised as the same job."""
    first = image(video_id="a", quality="high", metadata={"contentType": "sfw"})
    other = parse(body(video_id="b", quality="low"), Defaults(draw_seed=lambda: 1))
    assert first.fingerprint() == other.fingerprint()
    assert image(config={"seed": 4711}).fingerprint() == first.fingerprint()
    assert image(prompt="another").fingerprint() != first.fingerprint()


def test_a_repeat_has_no_seed_or_the_same(image: Any) -> None:
    """Callers repeat the request itself, or add the seed from its answer."""
    drawn, given = image(), image(config={"seed": 7})
    assert image().is_repeat_of(drawn.fingerprint(), drawn.callback_metadata())
    assert image(config={"seed": drawn.seed}).is_repeat_of(drawn.fingerprint(), drawn.callback_metadata())
    assert image().is_repeat_of(given.fingerprint(), given.callback_metadata())
    assert not image(config={"seed": 8}).is_repeat_of(given.fingerprint(), given.callback_metadata())
    assert not image(prompt="another").is_repeat_of(given.fingerprint(), given.callback_metadata())


def test_a_repeat_may_meet_other_defaults(image: Any, body: Any) -> None:
    """The release or the settings may have changed between two submissions of one request."""
    first = image(config={"steps": 20})
    defaults = Defaults(sdxl_size=(64, 64), negative_prompt="fog", draw_seed=lambda: 1)
    later = parse(body(config={"steps": 20}), defaults)
    assert later.fingerprint() != first.fingerprint()
    assert later.is_repeat_of(first.fingerprint(), first.callback_metadata(), first.request())
    for other in (body(config={"steps": 21}), body(config={"steps": 20, "width": 64, "height": 64})):
        job = parse(other, defaults)
        assert not job.is_repeat_of(first.fingerprint(), first.callback_metadata(), first.request())


def test_a_default_that_is_spelled_out_is_the_same_request(image: Any, video: Any, chat: Any) -> None:
    """Some callers fill in the defaults of the documentation."""
    for make, fields in (
        (image, {"config": {"steps": 15, "guidance_scale": 6, "num_images": 1}, "bucket": "workspace-temp"}),
        (image, {"compel_enabled": False, "metadata": {"denoise_strength": 0.15, "exact_copy_mode": False}}),
        (video, {"config": {"fps": 16, "frames": 83, "reference_mode": "none", "sample_solver": "unipc"}}),
        (chat, {"temperature": 0.7, "stream": False, "max_tokens": 512, "sfw_mode": False}),
    ):
        prompt = {"prompt": "hello"} if make is chat else {}
        brief, full = make(**prompt), make(**prompt, **fields)
        assert full.is_repeat_of("", brief.callback_metadata(), brief.request()), fields
        assert brief.is_repeat_of("", full.callback_metadata(), full.request()), fields


def test_a_flag_that_changes_what_runs_distinguishes_requests(video: Any) -> None:
    """With `sfw_mode` an enhanced prompt is moderated; a prompt that is used as it is, is not."""
    for kind, same in (("video7b_fast_enhanced", False), ("video_fast", True)):
        plain, strict = video(kind=kind), video(kind=kind, metadata={"sfw_mode": True})
        for first, again in ((plain, strict), (strict, plain)):
            assert again.is_repeat_of("", first.callback_metadata(), first.request()) is same
        explicit = video(kind=kind, sfw_mode=False)
        assert explicit.is_repeat_of("", plain.callback_metadata(), plain.request())
        assert strict.is_repeat_of("", strict.callback_metadata(), strict.request())


def test_a_request_that_a_release_without_flags_recorded_is_recognised(video: Any) -> None:
    """The same request, repeated during an upgrade."""
    job = video(kind="video7b_fast_enhanced", sfw_mode=True)
    recorded = " ".join(entry for entry in job.request().split() if not entry.startswith("flag."))
    assert recorded != job.request()
    assert job.is_repeat_of("", job.callback_metadata(), recorded)


def test_the_settings_of_an_exact_copy_are_not_sent_by_the_caller(image: Any) -> None:
    """They follow from the mode: steps that a caller sends with it are not used."""
    copy = {
        "prompt": "",
        "metadata": {"reference_image_url": "https://example.com/a.png", "exact_copy_mode": True},
    }
    first, again = image(**copy), image(**copy, config={"steps": 30, "guidance_scale": 9})
    assert again.is_repeat_of("", first.callback_metadata(), first.request())


FIRST_RELEASE: dict[str, dict[str, Any]] = {
    "2fe6b835666891e846892059ac6663a9a1d11bf772fdaeabdc91dff9740cf83e": {"type": "sdxl_image_fast"},
    "530e3a0d39ce165422cd27bb885370bad83e29812f3820c756f557dda1aea5d2": {
        "type": "sdxl_image_fast",
        "config": {"seed": 7, "num_images": 3, "steps": 20, "resolution": "512x512"},
        "metadata": {"reference_image_url": "https://example.com/a.png", "exact_copy_mode": True},
    },
    "a865386a7494034baf4678c057b3310c74da16f7e5fa2cb515120b51b5e881f2": {
        "type": "sdxl_image_fast",
        "prompt": "",
        "metadata": {"reference_image_url": "https://example.com/a.png", "exact_copy_mode": True},
    },
    "0803c4b530a0a027cdd911d2c3d4a6aa23c4f71b6ca8dee309293915606f03d8": {"type": "video_fast"},
    "b1c8cb3bbb601a22239d92d9c4dde1fc99f4e8d14e7cf649368f74b0ee7091cc": {
        "type": "video7b_fast_enhanced",
        "config": {"frames": 5, "reference_strength": 0.5, "first_frame": "https://example.com/a.png"},
    },
    "d695a453026ae71e96422b5de72dc2edcd5847b253246367d8a69283edbc4edc": {
        "type": "admin_utilities",
        "id": "a1",
        "user_id": "",
    },
}
"""Fingerprints that the first release recorded, and the payloads."""


@pytest.mark.parametrize("fingerprint", FIRST_RELEASE)
def test_the_fingerprint_is_that_of_the_first_release(body: Any, fingerprint: str) -> None:
    """Its records have no other, and its shims, beside newer ones, compare it."""
    job = parse(body() | FIRST_RELEASE[fingerprint], Defaults(draw_seed=lambda: 4711))
    assert job.fingerprint() == fingerprint
    assert job.is_repeat_of(fingerprint, job.callback_metadata(), None)


def test_a_job_of_every_kind_can_be_stored_and_read(image: Any, video: Any, chat: Any) -> None:
    """The ledger stores jobs as JSON."""
    jobs: list[BaseJob] = [image(), video(), chat(prompt="hello")]
    for job in jobs:
        assert load_job(job.model_dump_json()) == job.model_copy(update={"defaulted": frozenset()})
