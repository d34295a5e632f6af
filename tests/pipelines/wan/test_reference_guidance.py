"""How reference images condition a clip: plans by mode and strength, and their effect on the latents."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from ourvidz.errors import InvalidParameters
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.wan.reference_guidance import (
    ReferenceGuidance,
    ReferencePlan,
    check_references,
    cut_surplus_frames,
    held_steps,
    partial_steps,
    plan_references,
)
from ourvidz.pipelines.wan.solvers import SolverName, build_solver, flow_sigmas
from tests.factories import video_job


@pytest.mark.parametrize(
    ("mode", "strength", "expected"),
    [
        ("none", 0.15, ReferencePlan(None, 1.0, 25)),
        ("start", 0.15, ReferencePlan("latent_replacement", 1.0, 25, (0,), 25)),
        ("end", 0.5, ReferencePlan("latent_replacement", 1.0, 25, (-1,), 25)),
        ("both", 0.6, ReferencePlan("latent_replacement", 1.0, 25, (0, -1), 20)),
        ("start", 0.75, ReferencePlan("latent_replacement", 1.0, 25, (0,), 13)),
        ("both", 1.0, ReferencePlan("latent_replacement", 1.0, 25, (0, -1), 0)),
        ("single", 0.0, ReferencePlan("sdedit", 0.7, 17, (0,), 17)),
        ("single", 0.5, ReferencePlan("sdedit", 0.85, 21, (0,), 21)),
        ("single", 1.0, ReferencePlan("sdedit", 1.0, 25, (0,), 0)),
    ],
)
def test_the_plan_follows_from_mode_and_strength(mode: str, strength: float, expected: ReferencePlan) -> None:
    """These are the contract's numbers: which frames are fixed for how many steps, and where SDEdit
    starts."""
    plan = plan_references(video_job(reference_mode=mode, denoise_strength=strength, steps=25))
    assert (plan.backend, plan.steps, plan.held_frames, plan.held_steps) == (
        expected.backend,
        expected.steps,
        expected.held_frames,
        expected.held_steps,
    )
    assert plan.start == pytest.approx(expected.start)


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
@pytest.mark.parametrize(
    ("strength", "steps"), [(0.0, 1), (0.02, 1), (0.15, 3), (0.29, 7), (0.5, 12), (1.0, 25)]
)
def test_a_single_frame_uses_sdedit(mode: str, strength: float, steps: int) -> None:
    """Fixing the only frame would return the reference itself, whatever the prompt."""
    job = video_job(frames=1, reference_mode=mode, denoise_strength=strength, steps=25)
    plan = plan_references(job)
    assert (plan.backend, plan.steps, plan.held_frames) == ("sdedit", steps, ())
    assert plan.start == pytest.approx(max(strength, 0.001))


@pytest.mark.parametrize(
    ("frames", "held_frames"),
    [(5, (0, -1)), (81, (0, -1)), (84, (0, -1)), (83, (0, -2, -1)), (82, (0, -2, -1)), (2, (0, -1))],
)
def test_if_frames_are_cut_off_at_the_end_two_latent_frames_are_fixed_there(
    frames: int, held_frames: tuple[int, ...]
) -> None:
    """The first frames of a latent frame do not show the reference yet, and the usual 83 frames keep two of
    four. Clips of two or three frames have no latent frame to spare."""
    assert plan_references(video_job(reference_mode="both", frames=frames)).held_frames == held_frames


@pytest.mark.parametrize(
    ("mode", "strength", "kept"),
    [
        ("none", 0.15, [0, 1, 2, 3, 4, 5]),
        ("start", 0.15, [0, 1, 2, 3, 4, 5]),
        ("both", 0.15, [0, 1, 2, 3, 4, 5]),
        ("end", 0.15, [3, 4, 5, 6, 7, 8]),
        ("end", 1.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_surplus_frames_are_cut_off_where_no_reference_is(
    mode: str, strength: float, kept: list[int]
) -> None:
    """The frame with the end reference must be delivered; at full strength no frame has one."""
    job = video_job(reference_mode=mode, denoise_strength=strength, frames=6)
    assert cut_surplus_frames(job, plan_references(job), torch.arange(9)).tolist() == kept
    single = video_job(reference_mode=mode, denoise_strength=strength, frames=1)
    assert cut_surplus_frames(single, plan_references(single), torch.arange(1)).tolist() == [0]


def test_partial_steps_are_not_reduced_by_rounding_errors() -> None:
    """100 x 0.29 is 28.999999999999996 in floating point."""
    assert partial_steps(100, 0.29) == 29
    assert partial_steps(50, 0.58) == 29
    assert partial_steps(3, 0.1) == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 50])
def test_frames_are_never_fixed_longer_at_a_higher_strength(steps: int) -> None:
    """More strength must not bring the clip nearer to the reference."""
    held = [held_steps(steps, percent / 100) for percent in range(101)]
    assert held == sorted(held, reverse=True)
    assert held[:51] == [steps] * 51
    assert held[100] == 0


@pytest.mark.parametrize(
    ("mode", "given", "missing"),
    [
        ("single", ("start", "end"), "single"),
        ("start", ("single",), "start"),
        ("both", ("start",), "end"),
        ("both", ("end",), "start"),
    ],
)
def test_a_missing_reference_is_refused(mode: str, given: tuple[str, ...], missing: str) -> None:
    """Ignoring it would deliver a clip that only looks like a result."""
    references = ReferenceImages(**{name: Image.new("RGB", (8, 8)) for name in given})
    with pytest.raises(InvalidParameters, match=missing) as refused:
        check_references(video_job(reference_mode=mode), references)
    assert refused.value.field == "reference_mode"


PredictVelocity = Callable[[torch.Tensor, float, int], torch.Tensor]
"""The velocity for latents at a noise level in a step."""


def towards_zeros(latents: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
    """The velocity of a model that predicts a clip of zeros."""
    return latents / sigma


def denoise(
    name: SolverName,
    plan: ReferencePlan,
    known: torch.Tensor,
    noise: torch.Tensor,
    predict_velocity: PredictVelocity = towards_zeros,
) -> torch.Tensor:
    """The denoising loop of the pipeline, with another model."""
    sigmas = flow_sigmas(plan.steps, shift=5.0, start=plan.start)
    scheduler = build_solver(name, {}, sigmas, torch.device("cpu"))
    guidance = ReferenceGuidance(plan, known, noise)
    latents = guidance.initial_latents(sigmas[0])
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = guidance.fix_velocity(predict_velocity(latents, sigmas[step], step), step=step)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        latents = guidance.fix_latents(latents, step=step, sigma=sigmas[step + 1])
    return latents


@pytest.fixture
def known() -> torch.Tensor:
    return torch.full((1, 2, 4, 2, 2), 3.0)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(1, 2, 4, 2, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
@pytest.mark.parametrize("held", [(0,), (-1,), (0, -1)])
def test_fixed_frames_end_exactly_at_the_known_latents(
    name: SolverName, held: tuple[int, ...], known: torch.Tensor, noise: torch.Tensor
) -> None:
    """The other frames are the model's: the solver's history does not mix the frames."""
    latents = denoise(name, ReferencePlan("latent_replacement", 1.0, 6, held, 6), known, noise)
    fixed = [frame % 4 for frame in held]
    free = [frame for frame in range(4) if frame not in fixed]
    assert torch.equal(latents[:, :, fixed], known[:, :, fixed])
    assert torch.allclose(latents[:, :, free], torch.zeros(1), atol=1e-4)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_a_released_frame_continues_from_where_it_was_fixed(
    name: SolverName, known: torch.Tensor, noise: torch.Tensor
) -> None:
    """The solver's history must not contain the model's earlier predictions for it. This model predicts zeros
    while the frame is fixed, and the clip that is in the latents afterwards."""

    def predict_velocity(latents: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
        if step < 6:
            return towards_zeros(latents, sigma, step)
        return noise - (latents - sigma * noise) / (1 - sigma)

    plan = ReferencePlan("latent_replacement", 1.0, 8, (0,), 6)
    released = denoise(name, plan, known, noise, predict_velocity)[:, :, 0]
    assert torch.allclose(released, torch.tensor(3.0), atol=1e-4)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_the_model_changes_a_released_frame(
    name: SolverName, known: torch.Tensor, noise: torch.Tensor
) -> None:
    """Otherwise a strength above 0.5 would have no effect."""
    released, free = (
        denoise(name, ReferencePlan("latent_replacement", 1.0, 8, (0,), steps), known, noise)[:, :, 0]
        for steps in (7, 0)
    )
    assert torch.allclose(free, torch.zeros(1), atol=1e-4)
    assert released.abs().max() < 0.1


def test_sdedit_starts_from_a_mixture_of_reference_and_noise(
    known: torch.Tensor, noise: torch.Tensor
) -> None:
    """`(1 - sigma) * reference + sigma * noise`, as in training."""
    guidance = ReferenceGuidance(ReferencePlan("sdedit", 0.8, 4, (0,), 4), known, noise)
    assert torch.allclose(guidance.initial_latents(0.8), 0.2 * known + 0.8 * noise)


def test_without_references_latents_and_velocities_are_unchanged(
    known: torch.Tensor, noise: torch.Tensor
) -> None:
    """Jobs without references run the same stages."""
    guidance = ReferenceGuidance(ReferencePlan(None, 1.0, 4), torch.zeros_like(known), noise)
    assert torch.equal(guidance.initial_latents(1.0), noise)
    assert torch.equal(guidance.fix_velocity(known.clone(), step=0), known)
    assert torch.equal(guidance.fix_latents(known.clone(), step=0, sigma=0.5), known)


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
@pytest.mark.parametrize("frames", [1, 9])
def test_with_vace_the_latents_are_treated_the_same_and_its_weight_falls_with_the_strength(
    mode: str, frames: int
) -> None:
    """The contract's numbers do not depend on the model."""
    weights = []
    for tenth in range(11):
        job = video_job(reference_mode=mode, frames=frames, denoise_strength=tenth / 10, steps=25)
        plain, vace = plan_references(job), plan_references(job, "vace")
        assert (vace.start, vace.steps, vace.held_frames, vace.held_steps) == (
            plain.start,
            plain.steps,
            plain.held_frames,
            plain.held_steps,
        )
        assert (vace.reference_backend, plain.model, vace.model) == ("vace", "t2v", "vace")
        weights.append(sum(vace.control_scale_at(step) for step in range(vace.steps)) / vace.steps)
    assert weights == sorted(weights, reverse=True)
    assert (weights[0], weights[10]) == (1, 0)


def test_without_references_vace_s_blocks_have_full_weight() -> None:
    """Their input says that everything is to be generated, as in training. Only a source video counts as a
    reference."""
    plain, with_source = (
        plan_references(video_job(steps=4), "vace", has_source=has_source) for has_source in (False, True)
    )
    assert [plain.control_scale_at(step) for step in range(4)] == [1.0] * 4
    assert (plain.reference_backend, with_source.reference_backend) == (None, "vace")
