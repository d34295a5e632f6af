"""The `ourvidz` command as a whole."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ourvidz.cli.main import COMMANDS, cli
from ourvidz.cli.stack import PYTHON_M, with_package_path
from ourvidz.cli.state import StateDir
from ourvidz.settings import environment

HEAVY = ("torch", "diffusers", "transformers", "numpy", "celery", "requests", "fastapi")


def test_the_help_names_every_command_and_imports_none() -> None:
    """`ourvidz --help` is fast: it loads no model library, and not even Celery."""
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from ourvidz.cli.main import cli\n"
        "print(CliRunner().invoke(cli, ['--help']).output)\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in output
    for name in COMMANDS:
        assert f"  {name} " in output


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_of_the_table_exists_and_has_a_help(name: str) -> None:
    """The table of commands and the commands must agree."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output


def test_no_command_imports_a_model_library() -> None:
    """Torch takes seconds and half a gigabyte; only the child process of a worker may import it."""
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        "from ourvidz.cli.main import COMMANDS\n"
        "for where, _ in COMMANDS.values(): import_module(where.partition(':')[0])\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


def test_an_invalid_setting_is_one_line_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    monkeypatch.setenv("OURVIDZ_SWEEP_S", "often")
    result = CliRunner().invoke(cli, ["up", "--no-flower"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: OURVIDZ_SWEEP_S")
    assert len(result.stderr.splitlines()) == 1


def test_a_state_directory_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The message of the second `ourvidz up` has the process id of the first."""
    with StateDir(tmp_path).lock():
        result = CliRunner().invoke(cli, ["up", "--no-flower", "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "is in use by another" in result.stderr
    assert "pid" in result.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    """Exit status 2, as for every wrong command line."""
    assert CliRunner().invoke(cli, ["upp"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("jobs", "list"), False),
        (("jobs", "list", "--url", "http://127.0.0.1:9"), False),
        (("memory", "status"), False),
        (("--env-file", ".env", "jobs", "list"), True),
        (("--env-file=.env", "jobs", "list"), True),
    ],
)
def test_no_key_goes_to_where_the_env_file_of_a_directory_says(
    tmp_path: Path, arguments: tuple[str, ...], asked: bool
) -> None:
    """A directory of somebody else's would get the key of whoever lists jobs in it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (tmp_path / ".env").write_text(f"OURVIDZ_URL={url}\nOURVIDZ_STATE_DIR={tmp_path}\n")
        env = environment(OURVIDZ_API_KEY="key", OURVIDZ_PORTS="9", OURVIDZ_STATE_DIR=str(tmp_path / "s"))
        command = [*PYTHON_M, "ourvidz.cli.main", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=with_package_path(env), stderr=subprocess.PIPE, text=True
        )
        if asked:
            listener.settimeout(30)
            listener.accept()[0].close()
        _, printed = process.communicate(timeout=60)
        assert process.returncode == 1
        assert ("--env-file .env" in printed) != asked
        if not asked:
            with pytest.raises(BlockingIOError):
                listener.accept()
