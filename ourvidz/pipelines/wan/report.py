"""What a finished Wan job tells of itself."""

from __future__ import annotations

from typing import Any

from ourvidz.pipelines.base import GeneratedVideo
from ourvidz.pipelines.oom_fallbacks import OomFallback
from ourvidz.pipelines.sizes import RESIZE_POLICY
from ourvidz.pipelines.wan.frames import frames_to_generate
from ourvidz.pipelines.wan.work import Work


def report(work: Work, rung: OomFallback, *, seconds: float, size_capped: bool) -> GeneratedVideo:
    """What was made, and what the callback is told about it."""
    job, backend = work.job, work.plan.reference_backend
    return GeneratedVideo(
        frames=work.frames,
        fps=job.fps,
        seed=job.seed,
        frames_generated=frames_to_generate(job.frames),
        seconds=seconds,
        negative_prompt_used=bool(job.negative_prompt) and job.guidance_scale > 1,
        metadata={
            "batch_size": 1,
            "size_capped": size_capped,
            "final_prompt_type": "string",
            "compel_success": False,
            **({} if rung.name == "whole" else {"memory_rung": rung.name}),
            **({} if backend is None else {"reference_backend": backend}),
        },
        asset_metadata={
            "steps": job.steps,
            "effective_steps": work.plan.steps,
            "guidance_scale": job.guidance_scale,
            "batch_size": 1,
            **({} if backend is None else _about_references(work)),
        },
    )


def _about_references(work: Work) -> dict[str, Any]:
    """What an asset says about how its references were used."""
    job = work.job
    return {
        "denoise_strength": job.denoise_strength,
        "pipeline": "img2img" if job.frames == 1 else "image_to_video",
        "resize_policy": RESIZE_POLICY,
        "negative_prompt_used": bool(job.negative_prompt) and job.guidance_scale > 1,
    }
