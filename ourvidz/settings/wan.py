"""Settings of Wan."""

from __future__ import annotations

from typing import Literal

from ourvidz.settings.kinds import LocalPath, Topic, env


class WanSettings(Topic):
    """The Wan checkpoints and their pipeline options."""

    wan_model: LocalPath | None = env("OURVIDZ_WAN_MODEL")
    wan_vace_model: LocalPath | None = env("OURVIDZ_WAN_VACE_MODEL")
    """VACE checkpoint for jobs with references."""
    wan_max_frame_pixels: int | None = env("OURVIDZ_WAN_MAX_FRAME_PIXELS", ge=1)
    """Maximum of frames x width x height of a clip; by default 161 frames at the native size."""
    wan_negative_prompt: str | None = env("OURVIDZ_WAN_NEGATIVE_PROMPT")
    """Negative prompt of jobs that send none."""
    wan_dtype: Literal["bfloat16", "float32"] | None = env("OURVIDZ_WAN_DTYPE")
    wan_attention: Literal["flash", "efficient", "cudnn", "math"] | None = env("OURVIDZ_WAN_ATTENTION")
    wan_compile: bool = env("OURVIDZ_WAN_COMPILE", False)
    wan_few_steps: bool = env("OURVIDZ_WAN_FEW_STEPS", False)
    """Whether the checkpoint is distilled: its guidance is built in and the job's scale is ignored."""
    wan_cache: Literal["first_block", "mag", "taylorseer", "pab", "faster"] | None = env("OURVIDZ_WAN_CACHE")
    wan_cache_threshold: float | None = env("OURVIDZ_WAN_CACHE_THRESHOLD", gt=0)
    """Largest change for which a step reuses the previous output; used by two of the caches only."""
    wan_vae_tiling: Literal["auto", "always"] = env("OURVIDZ_WAN_VAE_TILING", "auto")
    wan_group_offload: bool = env("OURVIDZ_WAN_GROUP_OFFLOAD", False)
