"""The state directory: one holder, private secrets, bounded logs."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ourvidz.cli.state import ROTATE_BYTES, StateDir
from ourvidz.errors import Conflict, SettingsError

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from ourvidz.cli.state import StateDir\n"
    "with StateDir(Path(sys.argv[1])).held():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_in_use_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    """Two stacks on one directory would write over each other's jobs."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Conflict, match=rf"pid {holder.pid}\)"), StateDir(tmp_path).held():
        pass
    holder.kill()
    holder.communicate()
    with StateDir(tmp_path).held():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n", "a killed holder holds nothing"


def test_the_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    """The next start must be able to read what this one wrote, and nobody else."""
    state = StateDir(tmp_path / "state")
    first = state.secrets()
    assert state.secrets() == first
    assert mode(state.root / "secrets.json") == 0o600
    assert mode(state.root) == 0o700
    kind, _, key = first.webhook_secret.partition("_")
    assert kind == "whsec"
    assert len(base64.b64decode(key)) == 32
    assert StateDir(tmp_path / "other").secrets().redis_password != first.redis_password


def test_damaged_secrets_are_one_clear_line(tmp_path: Path) -> None:
    """Half a file, from a full disk perhaps, must say what to do."""
    (tmp_path / "secrets.json").write_text('{"redis_password": "x"')
    with pytest.raises(SettingsError, match="is damaged; remove it"):
        StateDir(tmp_path).secrets()


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """A typo in --state-dir is no traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="--state-dir"), StateDir(tmp_path / "file" / "state").held():
        pass


def test_a_long_log_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    """Logs must not fill the disk, and a short one goes on where it was."""
    state = StateDir(tmp_path)
    path = state.log("sdxl")
    path.write_bytes(b"short")
    assert state.log("sdxl").read_bytes() == b"short"
    with path.open("wb") as log:
        log.truncate(ROTATE_BYTES + 1)
    assert not state.log("sdxl").exists()
    assert (tmp_path / "logs" / "sdxl.log.1").exists()


def test_a_stack_that_is_gone_is_not_announced_any_more(tmp_path: Path) -> None:
    """`ourvidz jobs` must not look for a shim where there is none."""
    state = StateDir(tmp_path)
    state.announce({"shim": "http://127.0.0.1:1"})
    assert mode(tmp_path / "ready.json") == 0o600, "it holds the server's password"
    assert state.announced() == {"shim": "http://127.0.0.1:1"}
    with state.held():
        assert state.announced() is None
    state.withdraw()
