"""Schedulers of SDXL and their timesteps."""

from __future__ import annotations

from inspect import signature
from typing import get_args

import diffusers
import pytest
import torch

from ourvidz.pipelines.sdxl import schedulers
from ourvidz.pipelines.sdxl.schedulers import FEW_STEPS, SCHEDULERS
from ourvidz.settings import SDXLScheduler, Settings

CPU = torch.device("cpu")
ORIGINAL = diffusers.EulerDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
)
"""The checkpoint's own scheduler."""
VELOCITY = diffusers.EulerDiscreteScheduler.from_config(ORIGINAL.config, prediction_type="v_prediction")
"""Of a checkpoint that predicts velocities."""
ZERO_SNR = diffusers.EulerDiscreteScheduler.from_config(
    VELOCITY.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
)
"""Of a checkpoint that was trained down to a signal-to-noise ratio of zero."""


def test_the_settings_accept_exactly_the_known_schedulers() -> None:
    """A name that is accepted at start and unknown in the worker would fail the first job."""
    assert set(get_args(SDXLScheduler)) == set(SCHEDULERS)
    few_steps = get_args(get_args(Settings.model_fields["sdxl_few_steps"].annotation)[0])
    assert set(few_steps) == set(FEW_STEPS)


def test_the_default_is_the_checkpoint_s_own_scheduler() -> None:
    """Its authors selected it."""
    assert schedulers.build_scheduler(None, ORIGINAL) is ORIGINAL


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_checkpoint_s_noise_schedule(name: str) -> None:
    """Another noise schedule than in training gives bad images."""
    scheduler = schedulers.build_scheduler(name, ORIGINAL)
    assert torch.allclose(scheduler.alphas_cumprod, ORIGINAL.alphas_cumprod)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_a_terminal_signal_to_noise_ratio_of_zero(name: str) -> None:
    """Also that of Heun, whose class in diffusers ignores the field of the config."""
    scheduler = schedulers.build_scheduler(name, ZERO_SNR)
    assert float(scheduler.alphas_cumprod[-1]) <= 2**-23
    assert torch.allclose(scheduler.alphas_cumprod, ZERO_SNR.alphas_cumprod, rtol=1e-3, atol=1e-7)
    again = schedulers.evenly_spaced(scheduler)
    assert torch.allclose(again.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)


def test_a_checkpoint_s_own_heun_follows_its_config() -> None:
    """diffusers reads the field from the file, and ignores it."""
    own = diffusers.HeunDiscreteScheduler.from_config(ZERO_SNR.config)
    assert float(own.alphas_cumprod[-1]) > 0.004
    assert float(schedulers.build_scheduler(None, own).alphas_cumprod[-1]) <= 2**-23


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("original", ["VELOCITY", "ZERO_SNR"])
def test_every_scheduler_denoises_velocities(name: str, original: str) -> None:
    """With the exact velocity of a single data point, denoising ends on that point: DDIM at its lowest noise
    level, the others without noise."""
    scheduler = schedulers.build_scheduler(name, globals()[original])
    timesteps = schedulers.set_timesteps(scheduler, 20, CPU)
    point = torch.tensor([0.3, -0.7, 1.1, 0.0]).view(1, 4, 1, 1)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, 4, 1, 1), generator=generator) * scheduler.init_noise_sigma
    for timestep in timesteps:
        signal = scheduler.alphas_cumprod[int(timestep)] ** 0.5
        noise_share = (1 - scheduler.alphas_cumprod[int(timestep)]) ** 0.5
        # For every class the model's input is signal * data + noise_share * noise.
        model_input = scheduler.scale_model_input(latents, timestep)
        noise = (model_input - signal * point) / noise_share
        velocity = signal * noise - noise_share * point
        options = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        latents = scheduler.step(velocity, timestep, latents, **options).prev_sample
    assert torch.allclose(latents, point, atol=0.07 if name == "ddim" else 0.02)


@pytest.mark.parametrize("method", FEW_STEPS)
def test_few_step_checkpoints_start_at_the_last_timestep(method: str) -> None:
    """They were trained there; leading spacing never reaches it."""
    scheduler = schedulers.build_scheduler(None, ORIGINAL, few_steps=method)
    assert schedulers.set_timesteps(scheduler, 4, CPU)[0] == 999


@pytest.mark.parametrize("steps", [1, 4, 25, 100])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_text_to_image_runs_the_requested_number_of_steps(name: str, steps: int) -> None:
    """Second-order schedulers call the UNet twice per step, except in the last one."""
    scheduler = schedulers.build_scheduler(name, ORIGINAL)
    timesteps = schedulers.set_timesteps(scheduler, steps, CPU)
    assert len(timesteps) == (2 * steps - 1 if scheduler.order == 2 else steps)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.0, 5e-324, 0.001, 0.05, 0.15, 0.61, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_image_to_image_runs_its_steps_and_starts_at_its_strength(
    name: str, strength: float, steps: int
) -> None:
    """With few steps a truncated schedule would start a whole step too low: the strength has no effect."""
    scheduler = schedulers.evenly_spaced(schedulers.build_scheduler(name, ORIGINAL))
    timesteps = schedulers.set_img2img_timesteps(scheduler, steps, strength, CPU)
    assert len(timesteps) == (2 * steps - 1 if scheduler.order == 2 else steps)
    assert timesteps.min() >= 0
    assert list(timesteps) == sorted(timesteps, reverse=True)
    if strength * 1000 >= steps:
        # Timesteps and numbers of steps are integers: accurate to a fifth.
        assert float(timesteps[0]) == pytest.approx(1000 * strength, rel=0.2, abs=2)


@pytest.mark.parametrize("class_name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
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
def test_the_checkpoint_s_sigma_spacing_does_not_lower_the_strength(
    class_name: str, shape: dict[str, object]
) -> None:
    """The starting noise level depends on the strength alone."""
    shaped = getattr(diffusers, class_name).from_config(ORIGINAL.config, **shape)
    scheduler = schedulers.evenly_spaced(shaped)
    timesteps = schedulers.set_img2img_timesteps(scheduler, 3, 0.15, CPU)
    assert float(timesteps[0]) == pytest.approx(149)
    clean = torch.zeros(1, 4, 2, 2)
    noisy = scheduler.add_noise(clean, torch.ones_like(clean), timesteps[:1])
    expected = ORIGINAL.add_noise(clean, torch.ones_like(clean), torch.tensor([149]))
    # Euler's latents are not scaled by the square root of alpha_cumprod.
    scale = 1.0 if class_name.startswith("Euler") else float(ORIGINAL.alphas_cumprod[149].sqrt())
    assert float(noisy.mean()) == pytest.approx(float(expected.mean()) * scale, rel=0.01)


def test_no_timestep_is_below_zero() -> None:
    """Diffusers adds up 61 steps of 1000 / 61 to a little less than 1000 and appends a timestep of -1."""
    scheduler = schedulers.evenly_spaced(ORIGINAL)
    timesteps = schedulers.set_img2img_timesteps(scheduler, 10, 10 / 61, CPU)
    assert (len(timesteps), int(timesteps.min()) >= 0) == (10, True)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.0001, 0.001, 0.05])
def test_an_exact_copy_starts_at_most_at_the_lowest_noise_level(name: str, strength: float) -> None:
    """Whatever scheduler is selected: noise falls with the strength, down to none, and no step adds any."""
    selected = schedulers.build_scheduler(name, ORIGINAL)
    scheduler, timesteps = schedulers.exact_copy_schedule(selected, 8, strength, CPU)
    assert len(timesteps) == 8
    assert type(scheduler) is diffusers.EulerDiscreteScheduler
    sigmas = scheduler.sigmas.tolist()
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0
    lowest = float(((1 - ORIGINAL.alphas_cumprod[0]) / ORIGINAL.alphas_cumprod[0]).sqrt())
    clean = torch.zeros(1, 4, 2, 2)
    noisy = scheduler.add_noise(clean, torch.ones_like(clean), timesteps[:1])
    assert float(noisy.mean()) == pytest.approx(lowest * strength / 0.05)
