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


def test_a_job_of_every_kind_can_be_stored_and_read(image: Any, video: Any, chat: Any) -> None:
    """The ledger stores jobs as JSON."""
    jobs: list[BaseJob] = [image(), video(), chat(prompt="hello")]
    for job in jobs:
        assert load_job(job.model_dump_json()) == job
