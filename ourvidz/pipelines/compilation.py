"""Compiles the repeated blocks of a denoiser with torch.compile."""

from __future__ import annotations

from typing import Any

import torch

RECOMPILE_LIMIT = 64
"""How many graphs one block may have. torch's own limit, 8, is reached by the sizes, numbers of images and
lengths of prompts of a few jobs."""
BLOCK_KINDS = 16
"""Graphs of all blocks with the same code are counted together too: so many times the limit."""


def compile_blocks(model: Any) -> None:
    """Compile the repeated blocks of a UNet or transformer of diffusers on their first use, and again for
    shapes that no graph fits. A block with too many graphs runs without compiling from then on; with
    `fullgraph` it would fail the job.

    Compiling a whole model takes minutes and is hardly faster at run time. `compile_repeated_blocks` of
    diffusers would also compile the hooks of step caches, which are installed and removed with every job.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT * BLOCK_KINDS
    for block in model.modules():
        if type(block).__name__ in model._repeated_blocks:
            block.forward = torch.compile(block.forward)
