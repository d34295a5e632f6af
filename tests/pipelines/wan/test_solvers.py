"""Sigmas and solvers of Wan's flow matching."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from ourvidz.pipelines.wan.solvers import SolverName, build_solver, flow_sigmas

SOLVERS: tuple[SolverName, ...] = ("unipc", "dpm++")
CPU = torch.device("cpu")


@pytest.mark.parametrize("steps", [1, 2, 25, 100])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0, 30.0])
def test_from_pure_noise_the_sigmas_are_those_of_diffusers(steps: int, shift: float) -> None:
    """Full-size checkpoints expect these."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    assert torch.allclose(torch.tensor(flow_sigmas(steps, shift=shift)), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("start", [0.001, 0.15, 0.745, 0.9, 1.0])
@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0, 30.0])
def test_sigmas_fall_from_the_start_to_zero(start: float, shift: float) -> None:
    """The starting noise level is the strength, whatever the shift."""
    sigmas = flow_sigmas(9, shift=shift, start=start)
    assert sigmas[0] == pytest.approx(start, abs=2e-6)
    assert sigmas[-1] == 0.0
    assert all(current > following for current, following in itertools.pairwise(sigmas))
    assert len(sigmas) == 10


def test_a_larger_shift_puts_more_steps_at_high_noise_levels() -> None:
    """That is its purpose."""
    middles = [flow_sigmas(10, shift=shift)[5] for shift in (1.0, 3.0, 5.0, 8.0)]
    assert middles == sorted(middles)
    assert middles[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("start", [0.15, 0.745, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_with_the_exact_velocity_a_solver_reaches_the_clip(
    name: SolverName, start: float, steps: int
) -> None:
    """From every noise level."""
    generator = torch.Generator().manual_seed(1)
    clip, noise = (torch.randn(1, 2, 3, 4, 4, generator=generator) for _ in range(2))
    sigmas = flow_sigmas(steps, shift=5.0, start=start)
    scheduler = build_solver(name, {}, sigmas, CPU)
    latents = (1 - sigmas[0]) * clip + sigmas[0] * noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - clip, timestep, latents, return_dict=False)[0]
    assert torch.allclose(latents, clip, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_uses_exactly_the_given_sigmas(name: SolverName) -> None:
    """It neither shifts them again nor computes its own."""
    sigmas = flow_sigmas(4, shift=5.0, start=0.8)
    scheduler = build_solver(name, {"flow_shift": 3.0}, sigmas, CPU)
    assert scheduler.sigmas.tolist() == pytest.approx(sigmas)
    assert scheduler.timesteps.tolist() == [int(sigma * 1000) for sigma in sigmas[:-1]]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_checkpoint_s_scheduler_config_cannot_change_the_solver(name: SolverName) -> None:
    """It may belong to another scheduler, whose options have no meaning here."""
    config = {"use_karras_sigmas": True, "prediction_type": "epsilon", "solver_type": "heun", "shift": 3.0}
    scheduler = build_solver(name, config, flow_sigmas(3, shift=5.0), CPU)
    assert scheduler.config.prediction_type == "flow_prediction"
    assert scheduler.config.use_karras_sigmas is False
