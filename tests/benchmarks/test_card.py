"""The benchmark of sleeping and waking: its small form runs, its full form has the real sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import card

ROW = card.Row(
    family="sdxl",
    device="GPU",
    weights_mib=6620,
    load_s=9.0,
    sleep_s=1.0,
    wake_s=0.4,
    target_s=0.5,
    left_mib=0,
    peak_mib=4000,
    reserved_mib=1655,
    planned_mib=4600,
)


@pytest.mark.model
def test_the_small_form_measures_every_family() -> None:
    """On the CPU nothing is said about a GPU."""
    rows = list(card.measure(card.SMALL, families=list(card.BUILDERS), rounds=1))
    assert [row.family for row in rows] == ["sdxl", "qwen", "wan"]
    for row in rows:
        assert row.weights_mib > 0
        assert min(row.load_s, row.sleep_s, row.wake_s) >= 0
        if not torch.cuda.is_available():
            assert row.verdict == "not measured on a GPU"
            assert card.format_row(row).endswith("not measured on a GPU")


def test_the_verdict_names_what_was_missed() -> None:
    """Time to wake, and memory beyond the plan."""
    assert ROW.verdict == "kept"
    assert replace(ROW, wake_s=0.6).verdict == "slow"
    assert replace(ROW, peak_mib=4700, wake_s=0.6).verdict == "slow, more memory than planned"


def test_an_unknown_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setattr("sys.argv", ["card", "--families", "sdxl,vae"])
    with pytest.raises(SystemExit):
        card.main()
