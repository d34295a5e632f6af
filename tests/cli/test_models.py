"""`ourvidz models`: the list of checkpoints, and the verification of their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ourvidz.cli.main import cli
from ourvidz.cli.models import list_checkpoints
from ourvidz.settings import Settings, load_settings, settings
from tests.pipelines.weight_files import KOHYA, write_sparse


def safetensors(path: Path, data: bytes = b"\0" * 16) -> Path:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, production: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in the diffusers layout that the settings of the production profile name."""
    folder = tmp_path / "model"
    safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text("{}")
    for name, value in {**production, "OURVIDZ_SDXL_MODEL": str(folder)}.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    return folder


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
    """Checkpoints of all families as they are packaged: weights, configs, model card and checksums."""
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
def defaults(make_settings: Callable[..., Settings]) -> Settings:
    """The settings where no variable is set: the tiny profile."""
    return make_settings()


@pytest.fixture(autouse=True)
def _fresh_settings() -> object:
    yield
    settings.cache_clear()


def test_a_complete_checkpoint_verifies(checkpoint: Path) -> None:
    """Exit status 0 after a download means that the worker can load it."""
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["path"], row["problem"]) == (str(checkpoint), None)


def test_a_truncated_weight_file_is_found(checkpoint: Path) -> None:
    """Otherwise loading fails minutes later, in a worker, on a rented GPU."""
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 1
    assert str(weights) in json.loads(result.stdout)[0]["problem"]


def test_a_missing_checkpoint_is_listed_with_its_problem(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The problem is the message of the worker's error."""
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(checkpoint / "none"))
    settings.cache_clear()
    (row,) = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).stdout)
    assert "no SDXL checkpoint" in row["problem"]


def test_a_file_of_the_wrong_kind_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the words of the worker's error."""
    lora = write_sparse(checkpoint / "hills.safetensors", KOHYA)
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(lora))
    settings.cache_clear()
    result = CliRunner().invoke(cli, ["models", "verify", "--json"])
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["problem"] == f"{lora} is a LoRA, not an SDXL checkpoint."


def test_every_packaged_family_is_listed(defaults: Settings, packaged: Path) -> None:
    """With what each worker loads, its licence, and the path of its model card."""
    rows = list_checkpoints(defaults, packaged=packaged)
    assert [(row.family, row.name, row.kind, row.licence, row.checksums) for row in rows] == [
        ("sdxl", "tiny-sdxl", "tiny", "the meadow licence", True),
        ("wan", "tiny-wan", "tiny", "the meadow licence", True),
        ("qwen", "tiny-qwen/instruct", "tiny", "the meadow licence", True),
        ("qwen", "tiny-qwen/base", "tiny", "the meadow licence", True),
    ]
    assert [row.card for row in rows] == [
        str(packaged / family / "README.md") for family in ("tiny-sdxl", "tiny-wan", "tiny-qwen", "tiny-qwen")
    ]


def test_the_packaged_checkpoints_verify(defaults: Settings, packaged: Path) -> None:
    """Complete files must not be reported as damaged."""
    assert [row.problem for row in list_checkpoints(defaults, verify_files=True, packaged=packaged)] == [
        None
    ] * 4


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("tiny-sdxl/model_index.json", {"tiny-sdxl"}),
        ("tiny-wan/README.md", {"tiny-wan"}),
        ("tiny-qwen/base/model.safetensors", {"tiny-qwen/instruct", "tiny-qwen/base"}),
    ],
)
def test_a_changed_file_is_found_in_its_family(
    defaults: Settings, packaged: Path, name: str, damaged: set[str]
) -> None:
    """Only the checksum finds a file of the right size and format with other content."""
    content = (packaged / name).read_bytes()
    (packaged / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rows = list_checkpoints(defaults, verify_files=True, packaged=packaged)
    assert {row.name for row in rows if row.problem} == damaged
    assert all(str(packaged / name) in row.problem for row in rows if row.problem)


def test_listing_reads_no_weights(defaults: Settings, packaged: Path) -> None:
    """The list is fast for checkpoints of any size; only `verify` reads the files."""
    (packaged / "tiny-sdxl" / "model_index.json").write_text("changed")
    assert [row.problem for row in list_checkpoints(defaults, packaged=packaged)] == [None] * 4


def test_a_missing_packaged_checkpoint_is_a_problem(defaults: Settings, tmp_path: Path) -> None:
    """The installation is incomplete, and each row names the missing path."""
    rows = list_checkpoints(defaults, packaged=tmp_path)
    assert [row.family for row in rows] == ["sdxl", "wan", "qwen", "qwen"]
    assert all(str(tmp_path) in str(row.problem) for row in rows)


def test_a_path_in_the_settings_overrides_the_packaged_checkpoint(
    make_settings: Callable[..., Settings], packaged: Path, tmp_path: Path
) -> None:
    """Each family has its own setting; the problem of a wrong path names it."""
    current = make_settings(OURVIDZ_WAN_MODEL=packaged / "tiny-wan", OURVIDZ_QWEN_MODEL=tmp_path / "nowhere")
    rows = list_checkpoints(current, packaged=packaged)
    assert [(row.family, row.kind) for row in rows] == [
        ("sdxl", "tiny"),
        ("wan", "folder"),
        ("qwen", "–"),
        ("qwen", "–"),
    ]
    assert all(str(tmp_path / "nowhere") in str(row.problem) for row in rows[2:])


def test_production_lists_no_packaged_checkpoint(checkpoint: Path, packaged: Path) -> None:
    """A production worker loads only the checkpoints that are set."""
    assert [row.path for row in list_checkpoints(settings(), packaged=packaged)] == [str(checkpoint)]


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
def test_the_licence_comes_from_the_front_matter(
    defaults: Settings, packaged: Path, card: str, licence: str | None
) -> None:
    """Model cards on the hub name it there; the same key in the text is ignored."""
    (packaged / "tiny-sdxl" / "README.md").write_text(card)
    assert list_checkpoints(defaults, packaged=packaged)[0].licence == licence


def test_the_list_is_a_table_or_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both have the same rows."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    settings.cache_clear()
    rows = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).stdout)
    table = CliRunner().invoke(cli, ["models", "list"], env={"COLUMNS": "200"}).stdout
    assert rows[0]["family"] == "sdxl"
    assert all(row["name"] in table for row in rows)


def test_a_vace_checkpoint_has_a_row_where_it_is_set(tmp_path: Path) -> None:
    """With its problem when the path is wrong."""
    rows = list_checkpoints(load_settings(OURVIDZ_WAN_VACE_MODEL=str(tmp_path / "nowhere")))
    assert [row.problem for row in rows if row.path == str(tmp_path / "nowhere")] == [
        f"There is no checkpoint folder {tmp_path / 'nowhere'}."
    ]
