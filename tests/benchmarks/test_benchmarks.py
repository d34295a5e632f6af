"""The benchmarks refer to functions by name, and no other test runs them."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks import sdxl


@pytest.mark.parametrize("name", ["card", "chat", "control_plane", "sdxl", "startup", "wan"])
def test_every_benchmark_can_be_imported_and_has_a_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function that was renamed elsewhere is found here, not by the next measurement."""
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


def test_every_timed_function_of_a_job_exists() -> None:
    """`--stages` replaces these functions by name."""
    missing = [
        (owner, name) for owner, name, _ in sdxl.our_stages() if not callable(getattr(owner, name, None))
    ]
    assert not missing
