from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.job import VideoJob
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

MakeJob = Callable[..., VideoJob]


@pytest.mark.parametrize(
    ("mode", "strength", "planned"),
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
def test_a_clip_is_planned_by_mode_and_strength(mode: str, strength: float, planned: ReferencePlan) -> None:
    """These are the contract's numbers: who holds which frame how long, and where SDEdit starts."""
    found = plan_references(video_job(reference_mode=mode, denoise_strength=strength, steps=25))
    assert (found.backend, found.steps, found.held_frames, found.held_steps) == (
        planned.backend,
        planned.steps,
        planned.held_frames,
        planned.held_steps,
    )
    assert found.start == pytest.approx(planned.start)


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
@pytest.mark.parametrize(
    ("strength", "steps"), [(0.0, 1), (0.02, 1), (0.15, 3), (0.29, 7), (0.5, 12), (1.0, 25)]
)
def test_one_frame_is_sdedit_at_its_strength(mode: str, strength: float, steps: int) -> None:
    """Holding the only frame would return the reference itself, whatever the prompt says."""
    found = plan_references(video_job(frames=1, reference_mode=mode, denoise_strength=strength, steps=25))
    assert (found.backend, found.steps, found.held_frames) == ("sdedit", steps, ())
    assert found.start == pytest.approx(max(strength, 0.001))


@pytest.mark.parametrize(
    ("frames", "held"),
    [(5, (0, -1)), (81, (0, -1)), (84, (0, -1)), (83, (0, -2, -1)), (82, (0, -2, -1)), (2, (0, -1))],
)
def test_a_transition_whose_last_frames_are_cut_off_still_ends_on_its_picture(
    frames: int, held: tuple[int, ...]
) -> None:
    """The first frames of a latent frame are not yet its picture, and the usual 83 frames leave two of four.
    Two or three frames have no latent frame between the ends."""
    assert plan_references(video_job(reference_mode="both", frames=frames)).held_frames == held


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
def test_the_surplus_is_cut_where_no_reference_is(mode: str, strength: float, kept: list[int]) -> None:
    """A clip that is to end on a picture must not lose it; at full strength it is the prompt's own clip."""
    job = video_job(reference_mode=mode, denoise_strength=strength, frames=6)
    assert cut_surplus_frames(job, plan_references(job), torch.arange(9)).tolist() == kept
    one = video_job(reference_mode=mode, denoise_strength=strength, frames=1)
    assert cut_surplus_frames(one, plan_references(one), torch.arange(1)).tolist() == [0]


def test_shares_of_steps_are_not_lost_to_rounding() -> None:
    """100 x 0.29 is 28.999999999999996 to a computer and 29 to a caller."""
    assert partial_steps(100, 0.29) == 29
    assert partial_steps(50, 0.58) == 29
    assert partial_steps(3, 0.1) == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 50])
def test_more_strength_never_holds_longer(steps: int) -> None:
    """More of it must never bring the clip closer to the reference."""
    held = [held_steps(steps, tenth / 100) for tenth in range(101)]
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
def test_a_mode_without_its_reference_is_refused(mode: str, given: tuple[str, ...], missing: str) -> None:
    """Ignoring it would deliver a clip that only looks like an answer."""
    pictures = ReferenceImages(**{name: Image.new("RGB", (8, 8)) for name in given})
    with pytest.raises(InvalidParameters, match=missing) as refused:
        check_references(video_job(reference_mode=mode), pictures)
    assert refused.value.field == "reference_mode"


Model = Callable[[torch.Tensor, float, int], torch.Tensor]
"""The velocity that is said of latents at a noise level, in a step."""


def grey(latents: torch.Tensor, level: float, step: int) -> torch.Tensor:
    """A model that sees a clip of zeros in everything."""
    return latents / level


def walk(
    name: SolverName, planned: ReferencePlan, known: torch.Tensor, noise: torch.Tensor, model: Model = grey
) -> torch.Tensor:
    levels = flow_sigmas(planned.steps, shift=5.0, start=planned.start)
    walking, steering = (
        build_solver(name, {}, levels, torch.device("cpu")),
        ReferenceGuidance(planned, known, noise),
    )
    latents = steering.initial_latents(levels[0])
    for step, timestep in enumerate(walking.timesteps):
        velocity = steering.fix_velocity(model(latents, levels[step], step), step=step)
        latents = walking.step(velocity, timestep, latents, return_dict=False)[0]
        latents = steering.fix_latents(latents, step=step, sigma=levels[step + 1])
    return latents


@pytest.fixture
def known() -> torch.Tensor:
    return torch.full((1, 2, 4, 2, 2), 3.0)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(1, 2, 4, 2, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
@pytest.mark.parametrize("held", [(0,), (-1,), (0, -1)])
def test_held_frames_end_exactly_on_what_is_known(
    name: SolverName, held: tuple[int, ...], known: torch.Tensor, noise: torch.Tensor
) -> None:
    """And the frames between belong to the model, untouched by the solver's memory of the others."""
    latents = walk(name, ReferencePlan("latent_replacement", 1.0, 6, held, 6), known, noise)
    at = [index % 4 for index in held]
    free = [index for index in range(4) if index not in at]
    assert torch.equal(latents[:, :, at], known[:, :, at])
    assert torch.allclose(latents[:, :, free], torch.zeros(1), atol=1e-4)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_a_frame_that_is_let_go_goes_on_from_where_it_was_held(
    name: SolverName, known: torch.Tensor, noise: torch.Tensor
) -> None:
    """Nothing that was said of it while it was held may come back from the solver's memory.

    This model sees grey as long as the frame is held, and from then on what is really there.
    """

    def model(latents: torch.Tensor, level: float, step: int) -> torch.Tensor:
        if step < 6:
            return grey(latents, level, step)
        return noise - (latents - level * noise) / (1 - level)

    freed = walk(name, ReferencePlan("latent_replacement", 1.0, 8, (0,), 6), known, noise, model)[:, :, 0]
    assert torch.allclose(freed, torch.tensor(3.0), atol=1e-4)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_a_frame_that_is_let_go_is_the_model_s(
    name: SolverName, known: torch.Tensor, noise: torch.Tensor
) -> None:
    """Otherwise a strength above 0.5 would change nothing."""
    freed = walk(name, ReferencePlan("latent_replacement", 1.0, 8, (0,), 7), known, noise)[:, :, 0]
    never = walk(name, ReferencePlan("latent_replacement", 1.0, 8, (0,), 0), known, noise)[:, :, 0]
    assert torch.allclose(never, torch.zeros(1), atol=1e-4)
    assert freed.abs().max() < 0.1


def test_sdedit_begins_on_the_way_from_noise_to_picture(known: torch.Tensor, noise: torch.Tensor) -> None:
    """`(1 - level) * picture + level * noise`: the model was trained on exactly these mixtures."""
    steering = ReferenceGuidance(ReferencePlan("sdedit", 0.8, 4, (0,), 4), known, noise)
    assert torch.allclose(steering.initial_latents(0.8), 0.2 * known + 0.8 * noise)


def test_without_references_nothing_is_touched(known: torch.Tensor, noise: torch.Tensor) -> None:
    """The same stairs serve plain jobs."""
    steering = ReferenceGuidance(ReferencePlan(None, 1.0, 4), torch.zeros_like(known), noise)
    assert torch.equal(steering.initial_latents(1.0), noise)
    assert torch.equal(steering.fix_velocity(known.clone(), step=0), known)
    assert torch.equal(steering.fix_latents(known.clone(), step=0, sigma=0.5), known)


@pytest.mark.parametrize("mode", ["single", "start", "end", "both"])
@pytest.mark.parametrize("frames", [1, 9])
def test_vace_does_the_same_to_the_latents_and_is_heard_less_the_more_may_change(
    mode: str, frames: int
) -> None:
    """The contract's numbers hold whatever the method is called."""
    heard = []
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
        heard.append(sum(vace.control_scale_at(step) for step in range(vace.steps)) / vace.steps)
    assert heard == sorted(heard, reverse=True)
    assert (heard[0], heard[10]) == (1, 0)


def test_without_references_vace_hears_that_all_is_to_be_made() -> None:
    """That is how it was trained on text alone; only a source makes it the method of a reference."""
    plain, sourced = (
        plan_references(video_job(steps=4), "vace", has_source=given) for given in (False, True)
    )
    assert [plain.control_scale_at(step) for step in range(4)] == [1.0] * 4
    assert (plain.reference_backend, sourced.reference_backend) == (None, "vace")
