"""Releases of this project as folders of source code that one virtual environment can run."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PREVIOUS = "315f8d91eecf5eff1cf98cb7b02f1e765b13df94"
"""The release that upgrades start from: record version 1, documents of version 1, a beat process."""
NEEDED = ("ourvidz", "benchmarks", "Procfile", ":(exclude)ourvidz/checkpoints")
"""What of a release is unpacked. Its models are null models, so no checkpoint is needed."""


class HistoryMissing(Exception):
    """The earlier release cannot be had from this checkout; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Release:
    """One release: its name in reports, and the folder with its source code."""

    name: str
    root: Path

    def processes(self) -> list[str]:
        """The names in its `Procfile`, in order."""
        lines = (self.root / "Procfile").read_text().splitlines()
        return [line.partition(":")[0] for line in lines if ":" in line]


CURRENT = Release("new", ROOT)


def unpack(commit: str, folder: Path) -> Release:
    """Unpack the source code of a commit into `folder`. Raises `HistoryMissing`."""
    if shutil.which("git") is None:
        raise HistoryMissing("git is not installed")
    command = ("git", "-C", str(ROOT), "archive", "--format=tar", commit, "--", *NEEDED)
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode != 0:
        reason = archive.stderr.decode(errors="replace").strip().splitlines()
        raise HistoryMissing(f"commit {commit[:12]} is not in this checkout: {' '.join(reason[:1])}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return Release("old", folder)
