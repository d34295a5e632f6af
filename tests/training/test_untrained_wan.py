from __future__ import annotations

import hashlib
from pathlib import Path

from training.untrained.wan import build


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_build_writes_the_same_files(tmp_path: Path) -> None:
    """A seed must mean the same clip on two machines that each built their own."""
    build(tmp_path / "one")
    build(tmp_path / "other")
    assert digests(tmp_path / "one") == digests(tmp_path / "other")
    assert (tmp_path / "one" / "model_index.json").is_file()


def test_building_leaves_the_random_numbers_of_others_alone(tmp_path: Path) -> None:
    """A worker that builds its checkpoint must not change what its next job draws."""
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(tmp_path / "built")
    assert torch.equal(torch.rand(3), expected)
