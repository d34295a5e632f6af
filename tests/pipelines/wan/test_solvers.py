from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from ourvidz.pipelines.wan.solvers import SolverName, build_solver, flow_sigmas

SOLVERS: tuple[SolverName, ...] = ("unipc", "dpm++")


@pytest.mark.parametrize("steps", [1, 2, 25, 100])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0, 30.0])
def test_from_pure_noise_the_levels_are_those_of_diffusers(steps: int, shift: float) -> None:
    """Production weights must be walked the way their authors walk them."""
    theirs = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    theirs.set_timesteps(steps)
    ours = torch.tensor(flow_sigmas(steps, shift=shift))
    assert torch.allclose(ours, theirs.sigmas, atol=1e-6)


@pytest.mark.parametrize("start", [0.001, 0.15, 0.745, 0.9, 1.0])
@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0, 30.0])
def test_the_levels_begin_where_they_are_told_and_fall_to_zero(start: float, shift: float) -> None:
    """A strength is a noise level, whatever the shift makes of the steps in between."""
    levels = flow_sigmas(9, shift=shift, start=start)
    assert levels[0] == pytest.approx(start, abs=2e-6)
    assert levels[-1] == 0.0
    assert all(before > after for before, after in itertools.pairwise(levels))
    assert len(levels) == 10


def test_a_larger_shift_spends_more_steps_where_there_is_noise() -> None:
    """That is what callers set it for."""
    middles = [flow_sigmas(10, shift=shift)[5] for shift in (1.0, 3.0, 5.0, 8.0)]
    assert middles == sorted(middles)
    assert middles[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("start", [0.15, 0.745, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_solver_ends_on_the_clip_that_the_velocity_points_to(
    name: SolverName, start: float, steps: int
) -> None:
    """With a model that is always right, every solver must arrive exactly, from wherever it starts."""
    drawn = torch.Generator().manual_seed(1)
    clip, noise = (torch.randn(1, 2, 3, 4, 4, generator=drawn) for _ in range(2))
    levels = flow_sigmas(steps, shift=5.0, start=start)
    walking = build_solver(name, {}, levels, torch.device("cpu"))
    latents = (1 - levels[0]) * clip + levels[0] * noise
    for timestep in walking.timesteps:
        latents = walking.step(noise - clip, timestep, latents, return_dict=False)[0]
    assert torch.allclose(latents, clip, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_walks_exactly_the_levels_it_was_given(name: SolverName) -> None:
    """Both would otherwise shift the levels once more, or choose their own."""
    levels = flow_sigmas(4, shift=5.0, start=0.8)
    walking = build_solver(name, {"flow_shift": 3.0}, levels, torch.device("cpu"))
    assert walking.sigmas.tolist() == pytest.approx(levels)
    assert walking.timesteps.tolist() == [int(level * 1000) for level in levels[:-1]]


@pytest.mark.parametrize("name", SOLVERS)
def test_the_checkpoint_cannot_make_it_another_kind_of_solver(name: SolverName) -> None:
    """A scheduler config may come from other samplers, whose settings mean nothing here."""
    config = {"use_karras_sigmas": True, "prediction_type": "epsilon", "solver_type": "heun", "shift": 3.0}
    walking = build_solver(name, config, flow_sigmas(3, shift=5.0), torch.device("cpu"))
    assert walking.config.prediction_type == "flow_prediction"
    assert walking.config.use_karras_sigmas is False
