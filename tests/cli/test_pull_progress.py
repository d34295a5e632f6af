"""Progress of a pull: bars on a terminal, a few lines in a log."""

from __future__ import annotations

import sys

import pytest

from ourvidz.cli import pull_progress
from ourvidz.cli.pull_progress import progress, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (27_064, "27.1 kB"), (3_200_152, "3.2 MB"), (5_135_149_760, "5.1 GB")],
)
def test_sizes_have_the_unit_that_suits_them(count: int, text: str) -> None:
    """As disks and the hub write them."""
    assert size_text(count) == text


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """None for small files; one at intervals for large ones."""
    with progress("sdxl") as shown:
        shown.begin("model_index.json", 600, 0)
        shown.advance(600)
        shown.end()
        shown.begin("unet/model.safetensors", 5_000_000_000, 2_000_000_000)
        shown.advance(1)
        monkeypatch.setattr(pull_progress, "LINE_INTERVAL_S", -1)
        shown.advance(1_000_000_000)
        shown.note("the checksum differs")
        shown.end()
    assert capsys.readouterr().err.splitlines() == [
        "sdxl: unet/model.safetensors: continues 5.0 GB",
        "sdxl: unet/model.safetensors: 3.0 GB of 5.0 GB",
        "sdxl: the checksum differs",
        "sdxl: unet/model.safetensors: complete, 5.0 GB",
    ]


def test_a_terminal_gets_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With sizes and speeds; brackets in names are no markup."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with progress("sdxl") as shown:
        shown.begin("model_index.json", 600, 0)
        shown.advance(600)
        shown.end()
        shown.begin("unet/model.safetensors", 5_000_000, 2_500_000)
        shown.advance(2_500_000)
        shown.note("[a note]")
        shown.end()
    printed = capsys.readouterr().err
    assert "sdxl: unet/model.safetensors" in printed
    assert "5.0/5.0 MB" in printed
    assert "sdxl: [a note]" in printed
    assert "0/100" not in printed
