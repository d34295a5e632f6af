"""Files with settings that other users of the host can read."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ourvidz.cli.checks import Check
from ourvidz.cli.env_files import check_env_files
from ourvidz.settings import Settings

GUIDES = Path(__file__).parents[2] / "docs/how-to"


@pytest.fixture
def check(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Check]:
    """Check an empty working directory `here` and the folder `etc`."""
    for name in ("here", "etc"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda: check_env_files(make_settings(), folder=tmp_path / "etc")


@pytest.mark.parametrize("name", ["here/.env", "here/compose.env", "etc/ourvidz.env", "etc/sdxl-1.env"])
@pytest.mark.parametrize(
    "line",
    [
        "JOB_CALLBACK_SECRET=blue",
        "export OURVIDZ_API_KEYS='ops:blue:jobs'",
        "OURVIDZ_REDIS_URL=redis://:blue@127.0.0.1/0",
        "REDIS_PASSWORD=blue",
    ],
)
def test_secrets_that_every_user_can_read_are_a_warning(
    check: Callable[[], Check], tmp_path: Path, name: str, line: str
) -> None:
    """An editor or `>` makes a file that is readable by all; the secret itself is not printed."""
    assert check().status == "skipped"
    file = tmp_path / name
    file.write_text(f"# settings\nOURVIDZ_GPU=0\n{line}\n")
    file.chmod(0o644)
    warned = check()
    assert (warned.status, f"chmod 640 {file}" in warned.fix) == ("warning", True)
    assert "blue" not in warned.reason
    file.chmod(0o640)
    assert check().status == "ok"


def test_a_file_without_secrets_may_be_readable(check: Callable[[], Check], tmp_path: Path) -> None:
    """An instance's file names its process and GPU only; an example has its secrets empty."""
    (tmp_path / "etc/sdxl-1.env").write_text(
        "PROCESS=sdxl\nOURVIDZ_GPU=1\n#JOB_CALLBACK_SECRET=x\nHF_TOKEN=\n"
    )
    (tmp_path / "etc/sdxl-1.env").chmod(0o644)
    assert check().status == "ok"


@pytest.mark.parametrize("guide", ["one-card.md", "production.md"])
def test_the_guides_make_a_file_that_others_cannot_read_and_keep_one_that_is_there(
    check: Callable[[], Check], tmp_path: Path, guide: str
) -> None:
    """The commands of the guide, also when it is followed a second time: the settings must not be lost."""
    lines = re.findall(r"^(?:touch|chgrp|chmod) .*ourvidz\.env$", (GUIDES / guide).read_text(), re.MULTILINE)
    assert len(lines) == 3
    file = tmp_path / "etc/ourvidz.env"
    script = "\n".join(lines).replace("/etc/ourvidz/", f"{file.parent}/")
    script = "umask 022; set -e\n" + script.replace("chgrp ourvidz", f"chgrp {os.getgid()}")
    for content in ("", "JOB_CALLBACK_SECRET=blue\n"):
        subprocess.run(["sh", "-c", script], check=True)
        assert file.stat().st_mode & 0o777 == 0o640
        assert file.read_text() == content
        file.write_text("JOB_CALLBACK_SECRET=blue\n")
    assert check().status == "ok"


def test_the_file_that_is_named_is_looked_at(
    make_settings: Callable[..., Settings], tmp_path: Path, check: Callable[[], Check]
) -> None:
    """`ourvidz --env-file` names it, wherever it is."""
    assert check().status == "skipped"
    file = tmp_path / "named"
    file.write_text("OURVIDZ_API_KEY=blue\n")
    file.chmod(0o644)
    named = check_env_files(make_settings(OURVIDZ_ENV_FILE=file), folder=tmp_path / "etc")
    assert (named.status, str(file) in named.fix) == ("warning", True)
