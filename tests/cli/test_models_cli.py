"""`ourvidz models`: which checkpoints there are, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from ourvidz.cli.main import cli
from ourvidz.cli.models import damage, describe
from ourvidz.settings import Settings, load_settings, settings


def safetensors(path: Path, data: bytes = b"\0" * 16) -> Path:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The production profile with a checkpoint in the diffusers layout."""
    made = tmp_path / "model"
    safetensors(made / "unet" / "diffusion_pytorch_model.safetensors")
    (made / "model_index.json").write_text("{}")
    for name, value in {"OURVIDZ_PROFILE": "production", "OURVIDZ_SDXL_MODEL": str(made),
                        "OURVIDZ_REDIS_URL": "redis://127.0.0.1:1/0",
                        "SUPABASE_URL": "http://127.0.0.1:1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    return made


CARD = """---
license: other
license_name: the meadow licence
---
# A card
"""

TINY = {
    "tiny-sdxl": ("model_index.json", "unet/diffusion_pytorch_model.safetensors"),
    "tiny-wan": ("model_index.json", "transformer/diffusion_pytorch_model.safetensors"),
    "tiny-qwen": (
        "instruct/config.json",
        "instruct/model.safetensors",
        "base/config.json",
        "base/model.safetensors",
    ),
}


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    """Checkpoints of all families as they ship: weights, configs, card and checksums."""
    for family, names in TINY.items():
        root = tmp_path / "packaged" / family
        for name in names:
            if name.endswith(".json"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text("{}")
            else:
                safetensors(root / name)
        (root / "README.md").write_text(CARD)
        (root / "SHA256SUMS").write_text(
            "".join(
                f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n"
                for name in (*names, "README.md")
            )
        )
    return tmp_path / "packaged"


@pytest.fixture
def laptop(tmp_path: Path) -> Settings:
    """The settings where nothing is set."""
    return load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path)


@pytest.fixture(autouse=True)
def _fresh_settings() -> object:
    yield
    settings.cache_clear()


def test_a_whole_checkpoint_verifies(folder: Path) -> None:
    """Exit status 0 after a download means it can be loaded."""
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["path"], row["problem"]) == (str(folder), None)


def test_a_download_that_broke_off_is_found(folder: Path) -> None:
    """Half a weight file otherwise fails minutes later, in a worker, on a rented GPU."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 1
    assert str(weights) in json.loads(result.stdout)[0]["problem"]


def test_a_checkpoint_that_is_not_there_is_listed_with_its_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list says what a worker would say."""
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(folder / "none"))
    settings.cache_clear()
    (row,) = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).stdout)
    assert "no SDXL checkpoint" in row["problem"]


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"<html>", (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_weight_file_is_damage(tmp_path: Path, content: bytes) -> None:
    """An error page saved under the name of a model is found, never a traceback."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    told = damage(path)
    assert told is not None
    assert str(path) in told


def test_every_family_that_ships_is_listed(laptop: Settings, packaged: Path) -> None:
    """An operator sees what each worker will load, under which licence, and where its card is."""
    rows = describe(laptop, packaged=packaged)
    assert [(row.family, row.name, row.kind, row.licence, row.checksums) for row in rows] == [
        ("sdxl", "tiny-sdxl", "tiny", "the meadow licence", True),
        ("wan", "tiny-wan", "tiny", "the meadow licence", True),
        ("qwen", "tiny-qwen/instruct", "tiny", "the meadow licence", True),
        ("qwen", "tiny-qwen/base", "tiny", "the meadow licence", True),
    ]
    assert [row.card for row in rows] == [
        str(packaged / family / "README.md") for family in ("tiny-sdxl", "tiny-wan", "tiny-qwen", "tiny-qwen")
    ]


def test_all_that_ships_verifies(laptop: Settings, packaged: Path) -> None:
    """Whole files must not be called damaged."""
    assert [row.problem for row in describe(laptop, whole=True, packaged=packaged)] == [None] * 4


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("tiny-sdxl/model_index.json", {"tiny-sdxl"}),
        ("tiny-wan/README.md", {"tiny-wan"}),
        ("tiny-qwen/base/model.safetensors", {"tiny-qwen/instruct", "tiny-qwen/base"}),
    ],
)
def test_a_changed_file_is_found_in_its_family(
    laptop: Settings, packaged: Path, name: str, damaged: set[str]
) -> None:
    """A file of the right size and form with another content passes every other check."""
    content = (packaged / name).read_bytes()
    (packaged / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rows = describe(laptop, whole=True, packaged=packaged)
    assert {row.name for row in rows if row.problem} == damaged
    assert all(str(packaged / name) in row.problem for row in rows if row.problem)


def test_listing_reads_no_weights(laptop: Settings, packaged: Path) -> None:
    """The list answers at once, however large the checkpoints; `verify` is the one that reads."""
    (packaged / "tiny-sdxl" / "model_index.json").write_text("changed")
    assert [row.problem for row in describe(laptop, packaged=packaged)] == [None] * 4


def test_what_ought_to_ship_and_does_not_is_a_problem(laptop: Settings, tmp_path: Path) -> None:
    """A package without its checkpoints is broken, whatever else works."""
    rows = describe(laptop, packaged=tmp_path)
    assert [row.family for row in rows] == ["sdxl", "wan", "qwen", "qwen"]
    assert all(str(tmp_path) in str(row.problem) for row in rows)


def test_a_path_in_the_settings_wins_over_what_ships(packaged: Path, tmp_path: Path) -> None:
    """Each family has its own setting, and a wrong one is said with its path."""
    chosen = load_settings(
        _env_file=None,
        OURVIDZ_STATE_DIR=tmp_path,
        OURVIDZ_WAN_MODEL=packaged / "tiny-wan",
        OURVIDZ_QWEN_MODEL=tmp_path / "nowhere",
    )
    rows = describe(chosen, packaged=packaged)
    assert [(row.family, row.kind) for row in rows] == [
        ("sdxl", "tiny"),
        ("wan", "folder"),
        ("qwen", "–"),
        ("qwen", "–"),
    ]
    assert all(str(tmp_path / "nowhere") in str(row.problem) for row in rows[2:])


def test_production_lists_nothing_that_ships(folder: Path, packaged: Path) -> None:
    """A production worker loads what it was given, so that is what the list shows."""
    assert [row.path for row in describe(settings(), packaged=packaged)] == [str(folder)]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: other\n---\n", None),
        ("# no front matter\nlicense: mine\n", None),
        ("text\n---\nlicense: mine\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_is_what_the_front_matter_says(
    laptop: Settings, packaged: Path, card: str, licence: str | None
) -> None:
    """Cards of downloaded models have it in one place; a word in their text is not it."""
    (packaged / "tiny-sdxl" / "README.md").write_text(card)
    assert describe(laptop, packaged=packaged)[0].licence == licence


def test_the_list_is_a_table_or_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """People and programs get the same rows."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    settings.cache_clear()
    rows = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).stdout)
    table = CliRunner().invoke(cli, ["models", "list"], env={"COLUMNS": "200"}).stdout
    assert rows[0]["family"] == "sdxl"
    assert all(row["name"] in table for row in rows)


def test_an_archive_of_weights_that_was_cut_off_is_damage(tmp_path: Path) -> None:
    """The files of the Wan release are several gigabytes: downloads break off."""
    path = tmp_path / "Wan2.1_VAE.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    assert damage(path) is None
    path.write_bytes(path.read_bytes()[:500])
    assert damage(path) == f"{path} is cut off"


def test_a_vace_checkpoint_has_a_row_where_it_is_configured(tmp_path: Path) -> None:
    """With the reason when it is not one."""
    rows = describe(load_settings(OURVIDZ_WAN_VACE_MODEL=str(tmp_path / "nowhere")))
    assert [row.problem for row in rows if row.path == str(tmp_path / "nowhere")] == [
        f"There is no checkpoint folder {tmp_path / 'nowhere'}."
    ]
