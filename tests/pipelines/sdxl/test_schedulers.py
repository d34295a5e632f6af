from __future__ import annotations

from typing import get_args

import diffusers
import pytest
import torch

from ourvidz.pipelines.sdxl import schedulers
from ourvidz.pipelines.sdxl.schedulers import FEW_STEPS, SCHEDULERS
from ourvidz.settings import SDXLScheduler, Settings

CPU = torch.device("cpu")
OWN = diffusers.EulerDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
)


def test_the_settings_name_every_scheduler_and_no_other() -> None:
    """A name that is accepted at start and unknown in the worker would fail the first job."""
    assert set(get_args(SDXLScheduler)) == set(SCHEDULERS)
    few_steps = get_args(get_args(Settings.model_fields["sdxl_few_steps"].annotation)[0])
    assert set(few_steps) == set(FEW_STEPS)


def test_without_a_choice_the_checkpoint_s_own_scheduler_runs() -> None:
    """Its authors know best."""
    assert schedulers.build_scheduler(None, OWN) is OWN


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_noise_levels_of_the_checkpoint(name: str) -> None:
    """Other levels than those it was trained on give mud."""
    made = schedulers.build_scheduler(name, OWN)
    assert torch.allclose(made.alphas_cumprod, OWN.alphas_cumprod)


@pytest.mark.parametrize("kind", FEW_STEPS)
def test_few_step_checkpoints_begin_in_pure_noise(kind: str) -> None:
    """They were trained at the last timestep, which leading spacing never reaches."""
    made = schedulers.build_scheduler(None, OWN, few_steps=kind)
    assert schedulers.set_timesteps(made, 4, CPU)[0] == 999


@pytest.mark.parametrize("steps", [1, 4, 25, 100])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_way_from_noise_has_as_many_steps_as_asked(name: str, steps: int) -> None:
    """A caller's number of steps is what is run."""
    made = schedulers.build_scheduler(name, OWN)
    timesteps = schedulers.set_timesteps(made, steps, CPU)
    assert len(timesteps) == (2 * steps - 1 if made.order == 2 else steps)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("denoise", [0.0, 5e-324, 0.001, 0.05, 0.15, 0.61, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_way_from_a_picture_has_its_steps_and_begins_at_its_strength(
    name: str, denoise: float, steps: int
) -> None:
    """With few steps a shortened schedule would begin a whole step too low: strength without effect."""
    made = schedulers.evenly_spaced(schedulers.build_scheduler(name, OWN))
    timesteps = schedulers.set_img2img_timesteps(made, steps, denoise, CPU)
    assert len(timesteps) == (2 * steps - 1 if made.order == 2 else steps)
    assert timesteps.min() >= 0
    assert list(timesteps) == sorted(timesteps, reverse=True)
    if denoise * 1000 >= steps:
        # Whole timesteps and whole numbers of steps: within a fifth of it.
        assert float(timesteps[0]) == pytest.approx(1000 * denoise, rel=0.2, abs=2)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize(
    "shape",
    [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
        {"interpolation_type": "log_linear"},
    ],
    ids=lambda shape: next(iter(shape)),
)
def test_a_checkpoint_s_own_shape_does_not_lower_the_strength(kind: str, shape: dict[str, object]) -> None:
    """Levels and timesteps are the strength's own, whatever the levels between noise and picture are."""
    shaped = getattr(diffusers, kind).from_config(OWN.config, **shape)
    made = schedulers.evenly_spaced(shaped)
    timesteps = schedulers.set_img2img_timesteps(made, 3, 0.15, CPU)
    assert float(timesteps[0]) == pytest.approx(149)
    clean = torch.zeros(1, 4, 2, 2)
    noisy = made.add_noise(clean, torch.ones_like(clean), timesteps[:1])
    expected = OWN.add_noise(clean, torch.ones_like(clean), torch.tensor([149]))
    # Euler's latents are not scaled down by what remains of the picture.
    scale = 1.0 if kind.startswith("Euler") else float(OWN.alphas_cumprod[149].sqrt())
    assert float(noisy.mean()) == pytest.approx(float(expected.mean()) * scale, rel=0.01)


def test_a_schedule_that_would_go_a_step_too_far_is_not_used() -> None:
    """61 steps of 1000 / 61 add up to a little less than 1000, and diffusers then takes one more, at -1."""
    made = schedulers.evenly_spaced(OWN)
    timesteps = schedulers.set_img2img_timesteps(made, 10, 10 / 61, CPU)
    assert (len(timesteps), int(timesteps.min()) >= 0) == (10, True)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("denoise", [0.0001, 0.001, 0.05])
def test_a_copy_begins_at_the_lowest_noise_level_at_most(name: str, denoise: float) -> None:
    """Whatever was chosen for pictures: less strength is a closer copy, down to none, and no step draws
    noise."""
    made, timesteps = schedulers.exact_copy_schedule(schedulers.build_scheduler(name, OWN), 8, denoise, CPU)
    assert len(timesteps) == 8
    assert type(made) is diffusers.EulerDiscreteScheduler
    noise = made.sigmas.tolist()
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] == 0
    lowest = float(((1 - OWN.alphas_cumprod[0]) / OWN.alphas_cumprod[0]).sqrt())
    clean = torch.zeros(1, 4, 2, 2)
    noisy = made.add_noise(clean, torch.ones_like(clean), timesteps[:1])
    assert float(noisy.mean()) == pytest.approx(lowest * denoise / 0.05)
