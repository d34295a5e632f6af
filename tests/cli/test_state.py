"""The state directory: its lock, its secrets, its logs, and the stored ready line."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ourvidz.cli.state import MAX_LOG_BYTES, StateDir
from ourvidz.errors import Conflict, SettingsError

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from ourvidz.cli.state import StateDir\n"
    "with StateDir(Path(sys.argv[1])).lock():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_locked_directory_is_refused_with_the_holders_process_id(tmp_path: Path) -> None:
    """Two stacks in one directory would write the same files."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Conflict, match=rf"pid {holder.pid}\)"), StateDir(tmp_path).lock():
        pass
    holder.kill()
    holder.communicate()
    with StateDir(tmp_path).lock():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n", "the lock of a killed process is free"


def test_whatever_was_readable_for_others_is_private_once_the_directory_is_locked(tmp_path: Path) -> None:
    """A directory that somebody made with the usual umask, with files of an earlier release."""
    root = tmp_path / "state"
    (root / "redis" / "appendonlydir").mkdir(parents=True, mode=0o755)
    files = [root / "secrets.json", root / "redis" / "appendonlydir" / "1.aof", root / "inbox.sqlite3"]
    for file in files:
        file.write_text("{}")
        file.chmod(0o644)
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    (root / "logs").mkdir()
    (root / "logs" / "link").symlink_to(outside)
    program = root / "a-program-of-the-operator"
    program.write_text("")
    program.chmod(0o755)
    root.chmod(0o755)
    with StateDir(root).lock():
        assert [mode(path) for path in (root, root / "redis", root / "redis" / "appendonlydir")] == [
            0o700
        ] * 3
        assert [mode(path) for path in files] == [0o600] * 3
        assert mode(StateDir(root).log("web")) == 0o600
    assert (mode(outside), mode(program)) == (0o644, 0o755)


def test_a_directory_that_all_users_share_is_refused_unchanged(tmp_path: Path) -> None:
    """Such as /tmp: others need it."""
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(0o1777)
    with pytest.raises(SettingsError, match="other users"), StateDir(root).lock():
        pass
    assert stat.S_IMODE(root.stat().st_mode) == 0o1777


def test_a_directory_whose_mode_cannot_be_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without modes, or a directory of another user."""
    root = tmp_path / "state"
    root.mkdir(mode=0o755)

    def refuse(_path: Path, _mode: int) -> None:
        raise PermissionError("not the owner")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(SettingsError, match="other users can read"), StateDir(root).lock():
        pass


def test_the_secrets_are_generated_once_and_private(tmp_path: Path) -> None:
    """The next start must read the same secrets, and no other user may."""
    state = StateDir(tmp_path / "state")
    first = state.secrets()
    assert state.secrets() == first
    assert mode(state.root / "secrets.json") == 0o600
    assert mode(state.root) == 0o700
    kind, _, key = first.webhook_secret.partition("_")
    assert kind == "whsec"
    assert len(base64.b64decode(key)) == 32
    assert StateDir(tmp_path / "other").secrets().redis_password != first.redis_password


def test_damaged_secrets_raise_an_error_with_a_fix(tmp_path: Path) -> None:
    """A full disk can leave half a file."""
    (tmp_path / "secrets.json").write_text('{"redis_password": "x"')
    with pytest.raises(SettingsError, match="is damaged; remove it"):
        StateDir(tmp_path).secrets()


def test_a_directory_that_cannot_be_created_is_a_settings_error(tmp_path: Path) -> None:
    """A wrong --state-dir is one line, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="--state-dir"), StateDir(tmp_path / "file" / "state").lock():
        pass


def test_a_long_log_is_rotated_at_the_next_start(tmp_path: Path) -> None:
    """Logs must not fill the disk; a short log is appended to."""
    state = StateDir(tmp_path)
    path = state.log("sdxl")
    path.write_bytes(b"short")
    assert state.log("sdxl").read_bytes() == b"short"
    with path.open("wb") as log:
        log.truncate(MAX_LOG_BYTES + 1)
    assert state.log("sdxl").stat().st_size == 0
    assert (tmp_path / "logs" / "sdxl.log.1").exists()


def test_the_ready_line_of_an_earlier_stack_is_removed(tmp_path: Path) -> None:
    """`ourvidz jobs` must not call a shim that no longer runs."""
    state = StateDir(tmp_path)
    state.write_ready({"shim": "http://127.0.0.1:1"})
    assert mode(tmp_path / "ready.json") == 0o600, "it holds the server's password"
    assert state.read_ready() == {"shim": "http://127.0.0.1:1"}
    with state.lock():
        assert state.read_ready() is None
    state.remove_ready()
