"""Plans the memory of a GPU before models are loaded: which fit, which fit together, with which fallback.

The figures of `JOBS` are estimates for the released checkpoints in half precision. They were not measured on
a GPU; what was learned from jobs is used where there is some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from ourvidz.vram.footprints import kind_of

OVERHEAD_MIB = 2048
"""Memory of a device that is not given out where no budget is set: contexts, fragmentation."""

Fallback = Literal["none", "tiled VAE", "smaller batches", "does not fit"]


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """The working memory (MiB) of one kind of job beside the weights: as it runs first, with a tiled VAE, and
    the least that it can do with. `learned` says that the first was measured."""

    label: str
    kind: str
    whole_mib: int
    tiled_mib: int
    least_mib: int
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """A model on the GPU: its weights, and the jobs that it runs. `text_encoder_mib`: those of its weights
    that may leave while the others work, where the model is moved in parts."""

    name: str
    weights_mib: int
    jobs: tuple[JobEstimate, ...]
    text_encoder_mib: int = 0


WEIGHTS_MIB: Mapping[str, int] = {
    "sdxl": 6620,
    "ip-adapter": 1880,
    "wan": 14030,
    "vace": 4110,
    "qwen_instruct": 14530,
    "qwen_base": 14530,
}
"""Weights of the default checkpoints as they are loaded: a test counts them on the meta device. Of VACE its
transformer: the rest it shares."""

TEXT_ENCODER_MIB = 10836
"""The part of Wan's weights that is its text encoder."""

_SDXL_PIXELS, _WAN_PIXELS, _TOKENS = 1024 * 1024, 480 * 832, 4096
_TEXT_JOBS = (
    JobEstimate("8 texts of 4,096 tokens", kind_of("chat", pixels=_TOKENS, count=1), 3900, 3900, 600),
)
JOBS: Mapping[str, tuple[JobEstimate, ...]] = {
    "sdxl": (
        JobEstimate("1 image of 1024x1024", kind_of("sdxl", pixels=_SDXL_PIXELS, count=1), 4600, 1800, 1800),
        JobEstimate("6 images of 1024x1024", kind_of("sdxl", pixels=_SDXL_PIXELS, count=6), 9600, 6800, 1800),
    ),
    "wan": (
        JobEstimate("81 frames of 480x832", kind_of("wan", pixels=_WAN_PIXELS, count=81), 13600, 6000, 6000),
    ),
    "qwen_instruct": _TEXT_JOBS,
    "qwen_base": _TEXT_JOBS,
}
"""The jobs of each model."""


def with_learned(jobs: Iterable[JobEstimate], learned: Mapping[str, int]) -> tuple[JobEstimate, ...]:
    """The estimates with what was measured (MiB by kind of job) in place of guesses."""
    return tuple(
        replace(
            job,
            whole_mib=learned[job.kind],
            tiled_mib=min(job.tiled_mib, learned[job.kind]),
            least_mib=min(job.least_mib, learned[job.kind]),
            learned=True,
        )
        if job.kind in learned
        else job
        for job in jobs
    )


def fallback(demand: Demand, job: JobEstimate, budget_mib: int) -> Fallback:
    """The fallback with which a job runs when its model has the GPU for itself."""
    if demand.text_encoder_mib > budget_mib:
        return "does not fit"
    available = budget_mib - (demand.weights_mib - demand.text_encoder_mib)
    if job.whole_mib <= available:
        return "none"
    if job.tiled_mib <= available:
        return "tiled VAE"
    return "smaller batches" if job.least_mib <= available else "does not fit"


def fitting_together(demands: Sequence[Demand], budget_mib: int) -> list[tuple[str, ...]]:
    """The largest sets of models that stay on the GPU together while any of them runs its first job, with the
    fallback that it would need alone; largest first. Models of different sets take turns."""
    sets: list[tuple[str, ...]] = []
    for count in range(len(demands), 0, -1):
        for chosen in combinations(demands, count):
            names = tuple(demand.name for demand in chosen)
            fits = _stay_together(chosen, budget_mib) if count > 1 else _runs_alone(chosen[0], budget_mib)
            if fits and not any(set(names) <= set(other) for other in sets):
                sets.append(names)
    return sets


def _stay_together(demands: Sequence[Demand], budget_mib: int) -> bool:
    weights_mib = sum(demand.weights_mib for demand in demands)
    return weights_mib + max(_work_mib(demand, budget_mib) for demand in demands) <= budget_mib


def _runs_alone(demand: Demand, budget_mib: int) -> bool:
    return fallback(demand, demand.jobs[0], budget_mib) != "does not fit"


def _work_mib(demand: Demand, budget_mib: int) -> int:
    """The working memory of a model's first job when it has the GPU for itself."""
    job = demand.jobs[0]
    by_fallback = {"none": job.whole_mib, "tiled VAE": job.tiled_mib}
    return by_fallback.get(fallback(demand, job, budget_mib), job.least_mib)
