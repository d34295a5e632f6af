"""A venv for each peer: their requirements exclude each other.

python -m benchmarks.peers.environments [NAME ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.table import PEERS
from ourvidz.cli.console import print_note

SYSTEMS = Path(__file__).parent / "systems"


def folder_of(name: str) -> Path:
    """The venv of a peer: in `$BENCH_VENVS`, by default `~/.cache/ourvidz/benchmarks`."""
    base = os.environ.get("BENCH_VENVS") or Path("~/.cache/ourvidz/benchmarks").expanduser()
    return Path(base) / name


def python_of(name: str) -> Path:
    """The interpreter of a peer's venv. Makes the venv, and installs the peer, on first use."""
    folder = folder_of(name)
    installed = folder / "installed.txt"
    wanted = "\n".join(PEERS[name].requirements)
    if not installed.is_file() or installed.read_text() != wanted:
        print_note(f"installing {name} into {folder}")
        venv.create(folder, with_pip=True, clear=True)
        pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet")
        subprocess.run([*pip, *PEERS[name].requirements], check=True, stderr=subprocess.DEVNULL)
        installed.write_text(wanted)
    return folder / "bin" / "python"


def main() -> None:
    """Install the peers that are named, or all of them."""
    for name in sys.argv[1:] or PEERS:
        print(python_of(name))


if __name__ == "__main__":
    main()
