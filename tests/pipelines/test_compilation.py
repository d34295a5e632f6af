"""The limits of compiled blocks."""

from __future__ import annotations

import torch

from ourvidz.pipelines.compilation import compile_blocks


class Model(torch.nn.Module):
    """A model without blocks."""

    _repeated_blocks = ("Block",)


def test_a_block_may_have_64_graphs() -> None:
    """Numbers of images, sizes, lengths of prompts and widths of blocks reach torch's own limit, eight."""
    compile_blocks(Model())
    assert torch._dynamo.config.recompile_limit == 64
    assert torch._dynamo.config.accumulated_recompile_limit >= 64 * 16
