"""Checks by their headers what the weight files of a component folder hold, as single files are checked.

Libraries initialise weights that they do not find at random: a file of the wrong kind generates noise.
Imports no torch and reads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import Header, read_header
from ourvidz.pipelines.weight_kinds import WeightKind, kind_of, require_kind

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"
"""Names of weight files, without what follows the first dot."""


def require_weights(folder: Path, stem: str, *expected: WeightKind, wanted: str) -> None:
    """Raise `ModelLoadError` unless the weight files named `stem` in a folder are there, complete, and of one
    of the expected kinds. The message names the file, what it is and what is `wanted` ("a VAE")."""
    groups = list(_groups(folder, stem))
    if not groups:
        pickles = sorted(folder.glob("*.bin"))
        if pickles:
            read_header(pickles[0])
        raise ModelLoadError(f"{folder} lacks {stem}.safetensors, {wanted}.")
    for files in groups:
        headers = {file: read_header(file) for file in files}
        # A shard alone may lack what identifies the whole.
        whole = Header({name: info for one in headers.values() for name, info in one.tensors.items()}, {})
        kind = kind_of(whole)
        named = next((file for file, header in headers.items() if kind_of(header) == kind), files[0])
        require_kind(named, whole, *expected, wanted=wanted)


def _groups(folder: Path, stem: str) -> Iterator[list[Path]]:
    """The files of each set of weights: the shards that an index lists, or one file. Variants, such as
    `fp16`, are sets of their own."""
    for index in sorted(folder.glob(f"{stem}*.index*.json")):
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            shards = [folder / name for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{index} cannot be read ({type(error).__name__}).") from None
        if not shards:
            raise ModelLoadError(f"{index} lists no weights.")
        if all(shard.suffix == ".safetensors" for shard in shards):
            yield shards
    singles = {*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}.*.safetensors")}
    yield from ([file] for file in sorted(singles) if "-of-" not in file.name)
