"""Model cards contain the measured scores."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from ourvidz.cli.models import list_checkpoints
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checksums import verify
from ourvidz.settings import load_settings
from training.cards import TEXTS, card, format_score, main, tables, write
from training.export import write_checksums
from training.sdxl.evaluate import Scores

HELD_OUT = Scores(pictures=300, background=1.0, colour=0.987, shape=0.37, position=0.997, seconds=0.412)
WITHOUT_PROMPT = Scores(pictures=100, background=0.11, colour=0.17, shape=0.15, position=0.2, seconds=0.4)
SCORES = {
    "load_seconds": 0.8,
    "held out": asdict(HELD_OUT),
    "without the prompt": asdict(WITHOUT_PROMPT),
    "vae round trip dB at 128 px": 36.64,
    "MiB": 12.8,
    "lost": [{"prompt": "a ring", "answer": "no"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small exported checkpoint."""
    exported = tmp_path / "tiny-sdxl"
    (exported / "unet").mkdir(parents=True)
    (exported / "model_index.json").write_text("{}")
    (exported / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 3_145_728)
    write_checksums(exported)
    return exported


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_card_has_data_recipe_scores_limits_and_licence(name: str) -> None:
    """Users of a checkpoint need these five."""
    text = card(name, SCORES, trained="20 minutes on two processor cores.", mib=3.0)
    assert re.match(r"---\n(\w+: .*\n)+---\n# " + name, text)
    for row in ("| size | 3.0 MiB |", "| trained | 20 minutes on two processor cores. |"):
        assert row in text
    for word in ("| data |", "| recipe |", "| licence |", "## Measured", "## Limits", "held out"):
        assert word in text
    assert not re.search(r"\{|\}|None|\n\n\n", text)


def test_a_card_has_all_scores() -> None:
    """Low scores must not be left out."""
    text = card("tiny-sdxl", SCORES, trained="an hour", mib=12.8)
    assert "| held out | 300 | 100.0% | 98.7% | 37.0% | 99.7% | 0.41 s |" in text
    assert "| without the prompt | 100 | 11.0% | 17.0% | 15.0% | 20.0% | 0.40 s |" in text
    assert "| vae round trip dB at 128 px | 36.6 dB |" in text
    assert "| load_seconds | 0.80 s |" in text


def test_groups_with_other_measures_have_their_own_tables() -> None:
    """Otherwise scores would stand under wrong headings."""
    lines = list(tables({"one": {"a": 0.5}, "two": {"b": 0.25, "a": 1.0}, "three": {"a": 0.75}, "n": 3}))
    assert lines == [
        "|  | a |", "|---|---|", "| one | 50.0% |", "| three | 75.0% |", "",
        "|  | b | a |", "|---|---|---|", "| two | 25.0% | 100.0% |", "",
        "|  | measured |", "|---|---|", "| n | 3 |", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        ("shape", 0.876, "87.6%"),
        ("shape", 0.0, "0.0%"),
        ("pictures", 1, "1"),
        ("seconds", 0.4, "0.40 s"),
        ("perplexity of held-out captions", 1.0, "1.00"),
        ("words a second", 123.456, "123.5"),
        ("device", "cpu", "cpu"),
    ],
)
def test_a_score_is_shown_with_its_unit(measure: str, value: object, text: str) -> None:
    """Counts, proportions and times are formatted differently."""
    assert format_score(measure, value) == text


def test_writing_a_card_updates_the_checksums(folder: Path) -> None:
    """Workers refuse a checkpoint with a file that its checksums do not list."""
    write("tiny-sdxl", folder, SCORES, trained="an hour")
    first = (folder / "README.md").read_text()
    verify(folder)
    write("tiny-sdxl", folder, SCORES, trained="an hour")
    verify(folder)
    assert (folder / "README.md").read_text() == first
    assert "| size | 3.0 MiB |" in first


def test_a_damaged_folder_gets_no_card(folder: Path) -> None:
    """New checksums would hide the change."""
    (folder / "model_index.json").write_text("[]")
    before = (folder / "SHA256SUMS").read_text()
    with pytest.raises(ModelLoadError, match=r"model_index\.json is not the file"):
        write("tiny-sdxl", folder, SCORES, trained="an hour")
    assert not (folder / "README.md").exists()
    assert (folder / "SHA256SUMS").read_text() == before


def test_the_command_line_reads_the_licence_of_a_card(folder: Path, tmp_path: Path) -> None:
    """`ourvidz models` shows the licence of the card."""
    write("tiny-sdxl", folder, SCORES, trained="an hour")
    row = list_checkpoints(load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path), packaged=tmp_path)[0]
    assert (row.licence, row.card) == ("none chosen yet", str(folder / "README.md"))


def test_the_command_writes_the_card_from_the_scores_file(folder: Path, tmp_path: Path) -> None:
    """It is run after the evaluation."""
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    options = ["--folder", str(folder), "--scores", str(tmp_path / "scores.json"), "--trained", "an hour"]
    result = CliRunner().invoke(main, ["tiny-sdxl", *options])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(folder / "README.md")
    assert "| held out | 300 |" in (folder / "README.md").read_text()
