"""Step caches: denoising steps that reuse what the transformer said a step before. Faster, and not the same.

Each lives in hooks on the transformer. They are put on for one job and taken off after it, however it ends:
nothing of a job can reach the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import diffusers
import torch

from ourvidz.pipelines.wan.calibration import Magnitudes

CacheName = Literal["first_block", "mag", "taylorseer", "pab", "faster"]
CACHES: tuple[CacheName, ...] = get_args(CacheName)

THRESHOLDS: dict[str, float] = {"first_block": 0.05, "mag": 0.06}
"""How much may change without being computed, for the caches that measure it."""
JOINED = ("pab", "faster")
"""These remember by module and not by prompt: both prompts have to go through in one batch."""
LATE = (-1, 900)
"""The timesteps (1000 pure noise, 0 the clip) in which attention may be reused: before, it still decides
what is where."""
LEAST_BLOCKS = 2


class StepCache:
    """One kind of step cache. `name` None caches nothing; `magnitudes` are for `mag` alone."""

    def __init__(
        self,
        name: CacheName | None = None,
        *,
        threshold: float | None = None,
        magnitudes: Magnitudes | None = None,
    ) -> None:
        self.name = name
        self._threshold = threshold
        self._magnitudes = magnitudes
        self._timestep = 0.0

    @property
    def joined(self) -> bool:
        """Whether the transformer is to be asked for both prompts in one batch, the negative one first."""
        return self.name in JOINED

    def at(self, timestep: float) -> None:
        """The next passes are at this timestep."""
        self._timestep = timestep

    @contextmanager
    def on(self, transformer: Any, levels: list[float], *, guided: bool) -> Iterator[None]:
        """Cache on this transformer for one walk down these noise levels; `guided` if it is asked twice a
        step. A transformer that the cache does not fit is left as it is."""
        if self.name is None or not self._fits(transformer):
            yield
            return
        transformer.enable_cache(self._config(levels, guided=guided))
        try:
            yield
        finally:
            transformer.disable_cache()

    def _fits(self, transformer: Any) -> bool:
        """The blocks of VACE are fed between the others: what is reused would have them in it already."""
        fed = hasattr(transformer, "vace_blocks")
        return len(transformer.blocks) >= LEAST_BLOCKS and (not fed or self.name == "taylorseer")

    def _config(self, levels: list[float], *, guided: bool) -> Any:
        threshold = self._threshold if self._threshold is not None else THRESHOLDS.get(self.name or "")
        steps = len(levels) - 1
        if self.name == "first_block":
            return diffusers.FirstBlockCacheConfig(threshold=threshold)
        if self.name == "mag":
            assert self._magnitudes is not None
            return diffusers.MagCacheConfig(
                threshold=threshold,
                num_inference_steps=steps,
                mag_ratios=self._magnitudes.ratios(levels[:-1]),
            )
        if self.name == "taylorseer":
            # Without the lite mode, and without names of modules, it finds none of Wan's and does nothing.
            # The first steps decide what is where, and the noise levels of the last ones lie far apart.
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
                spatial_attention_timestep_skip_range=LATE,
                cross_attention_timestep_skip_range=LATE,
                current_timestep_callback=lambda: self._timestep,
            )
        return diffusers.FasterCacheConfig(
            spatial_attention_timestep_skip_range=LATE,
            unconditional_batch_timestep_skip_range=LATE,
            unconditional_batch_skip_range=2,
            attention_weight_callback=lambda _: 0.3,
            is_guidance_distilled=not guided,
            current_timestep_callback=lambda: self._timestep,
        )
