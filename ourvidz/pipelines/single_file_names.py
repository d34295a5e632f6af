"""Names of the weights in a single file of SDXL: which component each belongs to.

The release prefixes each component (`model.diffusion_model.`, …); other programs leave the prefixes out or
add one of their own. A component is recognised by the names of some of its weights, whatever precedes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ourvidz.hub.weight_headers import is_training_average

Component = Literal["unet", "vae", "text_encoder", "text_encoder_2"]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The prefix of a component in the release, names that identify it, and its modules."""

    prefix: str
    marks: tuple[str, ...]
    modules: frozenset[str]


_LAYOUTS: dict[Component, _Layout] = {
    "unet": _Layout(
        "model.diffusion_model.",
        ("input_blocks.0.0.weight", "time_embed.0.weight"),
        frozenset({"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}),
    ),
    "vae": _Layout(
        "first_stage_model.",
        ("decoder.conv_in.weight", "decoder.up.0.block.0.norm1.weight"),
        frozenset({"encoder", "decoder", "quant_conv", "post_quant_conv"}),
    ),
    "text_encoder": _Layout(
        "conditioner.embedders.0.transformer.",
        ("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"),
        frozenset({"text_model"}),
    ),
    "text_encoder_2": _Layout(
        "conditioner.embedders.1.model.",
        ("token_embedding.weight", "transformer.resblocks.0.ln_1.weight"),
        frozenset({"token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"}),
    ),
}
COMPONENTS: tuple[Component, ...] = tuple(_LAYOUTS)
_CONTROLNET = "control_model."

Names = Mapping[str, str]
"""The name in a file, by the name in the release."""


def components(names: Iterable[str]) -> dict[Component, Names]:
    """The weights of each component that is there, among these names of a file. Averages of the training
    (EMA) are left out."""
    own = [name for name in names if not name.startswith(_CONTROLNET) and not is_training_average(name)]
    present = set(own)
    found: dict[Component, Names] = {}
    for component, layout in _LAYOUTS.items():
        prefix = _prefix(layout, own, present)
        if prefix is not None:
            found[component] = {
                layout.prefix + rest: prefix + rest
                for rest in (name.removeprefix(prefix) for name in own if name.startswith(prefix))
                if rest.partition(".")[0] in layout.modules
            }
    return found


def _prefix(layout: _Layout, names: Iterable[str], present: set[str]) -> str | None:
    """What is before the names of a component; the release's prefix if that one fits."""
    first = layout.marks[0]
    fitting = [
        prefix
        for prefix in (name.removesuffix(first) for name in names if name.endswith(first))
        if (not prefix or prefix.endswith(".")) and all(prefix + mark in present for mark in layout.marks)
    ]
    return layout.prefix if layout.prefix in fitting else min(fitting, key=len, default=None)
