"""Step caches: denoising steps that reuse what the transformer computed in an earlier step. They are faster
and change the result.

The caches are diffusers hooks on the transformer, installed for one job and removed after it, so that no
state of a job reaches the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import diffusers
import torch

from ourvidz.pipelines.wan.calibration import MagnitudeCurve

CacheName = Literal["first_block", "mag", "taylorseer", "pab", "faster"]
CACHES: tuple[CacheName, ...] = get_args(CacheName)

DEFAULT_THRESHOLDS: dict[str, float] = {"first_block": 0.05, "mag": 0.06}
"""The change below which a step is skipped, for the caches that measure it."""
JOINT_BATCH_CACHES = ("pab", "faster")
"""These caches store one state per module, not per prompt: both prompts must run in one batch."""
LATE_TIMESTEPS = (-1, 900)
"""Timesteps, of 1000, in which attention may be reused. The earlier ones determine the composition."""
MIN_BLOCKS = 2


class StepCache:
    """One step cache; `name` None is no cache.

    `threshold` overrides `DEFAULT_THRESHOLDS`. `magnitudes` is required by the cache "mag".
    """

    def __init__(
        self,
        name: CacheName | None = None,
        *,
        threshold: float | None = None,
        magnitudes: MagnitudeCurve | None = None,
    ) -> None:
        self.name = name
        self._threshold = threshold
        self._magnitudes = magnitudes
        self._timestep = 0.0

    @property
    def needs_joint_batch(self) -> bool:
        """Whether the transformer must run on both prompts in one batch, the negative one first."""
        return self.name in JOINT_BATCH_CACHES

    def obstacle(self, transformer: Any) -> str | None:
        """Why a job on this transformer cannot be continued in another process; None without a cache."""
        in_use = self.name is not None and self._supports(transformer)
        return f"the step cache {self.name} keeps results of earlier steps" if in_use else None

    def set_timestep(self, timestep: float) -> None:
        """Set the timestep of the next transformer passes."""
        self._timestep = timestep

    @contextmanager
    def enabled(self, transformer: Any, sigmas: list[float], *, guided: bool) -> Iterator[None]:
        """Install the cache on a transformer for one denoising loop over `sigmas`. `guided`: the transformer
        runs on two prompts per step. Does nothing if the cache does not support the transformer."""
        if self.name is None or not self._supports(transformer):
            yield
            return
        transformer.enable_cache(self._config(sigmas, guided=guided))
        try:
            yield
        finally:
            transformer.disable_cache()

    def _supports(self, transformer: Any) -> bool:
        """VACE adds the outputs of its own blocks between the others, so reused residuals would contain them
        already; TaylorSeer does not reuse residuals."""
        is_vace = hasattr(transformer, "vace_blocks")
        return len(transformer.blocks) >= MIN_BLOCKS and (not is_vace or self.name == "taylorseer")

    def _config(self, sigmas: list[float], *, guided: bool) -> Any:
        """The diffusers configuration of this cache for the noise levels of a job."""
        threshold = self._threshold
        if threshold is None:
            threshold = DEFAULT_THRESHOLDS.get(self.name or "")
        steps = len(sigmas) - 1
        if self.name == "first_block":
            return diffusers.FirstBlockCacheConfig(threshold=threshold)
        if self.name == "mag":
            assert self._magnitudes is not None
            return diffusers.MagCacheConfig(
                threshold=threshold,
                num_inference_steps=steps,
                mag_ratios=self._magnitudes.ratios(sigmas[:-1]),
            )
        if self.name == "taylorseer":
            # Without lite mode, and without module names, it matches none of Wan's modules and does nothing.
            # The first steps determine the composition; the sigmas of the last ones are far apart.
            return diffusers.TaylorSeerCacheConfig(
                use_lite_mode=True,
                cache_interval=3,
                disable_cache_before_step=max(3, steps // 5),
                disable_cache_after_step=steps - steps // 5,
                taylor_factors_dtype=torch.float32,
            )
        if self.name == "pab":
            return diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                cross_attention_block_skip_range=4,
                spatial_attention_timestep_skip_range=LATE_TIMESTEPS,
                cross_attention_timestep_skip_range=LATE_TIMESTEPS,
                current_timestep_callback=lambda: self._timestep,
            )
        return diffusers.FasterCacheConfig(
            spatial_attention_timestep_skip_range=LATE_TIMESTEPS,
            unconditional_batch_timestep_skip_range=LATE_TIMESTEPS,
            unconditional_batch_skip_range=2,
            attention_weight_callback=lambda _: 0.3,
            is_guidance_distilled=not guided,
            current_timestep_callback=lambda: self._timestep,
        )
