"""SDXL payloads: strength, seeds, negative prompts and exact copies."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import InvalidPrompt
from ourvidz.jobs.dialects import Defaults, parse

URL = "https://assets.example.com/a.png"


@pytest.mark.parametrize(
    ("places", "denoise"),
    [
        ({"metadata": {"denoise_strength": 0.3}, "config": {"denoise_strength": 0.4}}, 0.3),
        ({"config": {"denoise_strength": 0.4}, "denoise_strength": 0.5}, 0.4),
        ({"denoise_strength": "0.5", "metadata": {"reference_strength": 0.9}}, 0.5),
        ({"metadata": {"reference_strength": 0.9}}, 0.1),
        ({"config": {"reference_strength": 0.7}}, 0.3),
        ({"reference_strength": 1}, 0.0),
        ({"metadata": {"denoise_strength": 0}}, 0.0),
        ({}, 0.15),
    ],
)
def test_the_strength_is_read_from_its_paths_in_order(
    image: Any, places: dict[str, Any], denoise: float
) -> None:
    """`reference_strength` is the older complement, and read only if there is no `denoise_strength`."""
    assert image(**places).denoise_strength == denoise


def test_a_drawn_seed_is_marked(image: Any) -> None:
    """A repeated request draws another seed, and must still count as the same job."""
    drawn, given = image(), image(metadata={"seed": "4711"})
    assert (drawn.seed, drawn.seed_drawn) == (4711, True)
    assert (given.seed, given.seed_drawn) == (4711, False)


def test_seeds_are_drawn_from_the_whole_range() -> None:
    """Two jobs without a seed should not share one."""
    seeds = {Defaults().draw_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed <= 2147483647 for seed in seeds)


def test_a_drawn_seed_has_room_for_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of its images count up without wrapping to 0."""
    monkeypatch.setattr("ourvidz.jobs.defaults.secrets.randbelow", lambda limit: limit - 1)
    assert 2147483640 <= Defaults().draw_seed() <= 2147483647 - 5


def test_a_negative_prompt_from_the_settings_is_for_sdxl_jobs_without_one(
    body: Any,
) -> None:
    """It replaces no negative prompt of the caller, and is no part of an exact copy."""
    configured = Defaults(negative_prompt="configured")
    assert getattr(parse(body(), configured), "negative_prompt", "") == "configured"
    assert getattr(parse(body(negative_prompt="own"), configured), "negative_prompt", "") == "own"
    assert getattr(parse(body("video_fast"), configured), "negative_prompt", "") is None
    copy = body(prompt="", metadata={"exact_copy_mode": True, "reference_image_url": URL})
    assert getattr(parse(copy, configured), "negative_prompt", "") is None


@pytest.mark.parametrize(
    ("denoise", "kept", "steps", "effective"),
    [(0, 0.0, 6, 0), (0.01, 0.01, 7, 7), (0.025, 0.025, 8, 8), (0.05, 0.05, 10, 10), (1, 0.05, 10, 10)],
)
def test_an_exact_copy_has_few_steps_and_a_small_strength(
    image: Any, denoise: float, kept: float, steps: int, effective: int
) -> None:
    """Steps, guidance and negative prompt of the payload are ignored."""
    job = image(
        prompt=" ",
        negative_prompt="fog",
        config={"steps": 50, "guidance_scale": 9},
        metadata={"exact_copy_mode": True, "reference_image_url": URL, "denoise_strength": denoise},
    )
    assert (job.mode, job.prompt, job.guidance_scale, job.negative_prompt) == ("exact_copy", "", 1.0, None)
    assert (job.denoise_strength, job.steps, job.effective_steps) == (kept, steps, effective)


def test_exact_copy_mode_with_a_prompt_is_a_modification(image: Any) -> None:
    """Its values are used as given, without clamping."""
    job = image(
        config={"steps": 30},
        metadata={"exact_copy_mode": True, "reference_image_url": URL, "denoise_strength": 0.4},
    )
    assert (job.mode, job.denoise_strength, job.steps, job.effective_steps) == ("modify", 0.4, 30, 12)


def test_exact_copy_mode_without_a_reference_needs_a_prompt(body: Any, refusal: Any) -> None:
    """There is nothing to copy."""
    assert isinstance(refusal(body(prompt="", metadata={"exact_copy_mode": True})), InvalidPrompt)


@pytest.mark.parametrize(
    "config",
    [
        {"task": 1, "sample_solver": "euler", "frames": 5, "fps": 60},
        {"reference_mode": "nonsense"},
    ],
)
def test_fields_of_another_family_are_ignored(image: Any, config: dict[str, Any]) -> None:
    """Older callers send Wan fields with SDXL jobs."""
    assert image(config=config).extras == {"config": config}
