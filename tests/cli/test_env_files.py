"""Files with settings that other users of the host can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ourvidz.cli.checks import Check
from ourvidz.cli.env_files import check_env_files
from ourvidz.settings import Settings


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
    assert (warned.status, warned.fix) == ("warning", f"chmod o= {file}")
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
