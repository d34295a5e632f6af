"""The route that inspects prompts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def inspect(open_shim: Any, untrained_sdxl: Path) -> Any:
    """Post a prompt to a shim with a checkpoint whose tokens are single bytes."""
    shim = open_shim(OURVIDZ_SDXL_MODEL=untrained_sdxl)
    return lambda body, path="/prompts/inspect": shim.client.post(path, json=body)


def test_a_prompt_is_inspected_with_its_weights(inspect: Any) -> None:
    """A caller sees what the text encoders read, without using a GPU."""
    answer = inspect(
        {"prompt": "a (red:1.2) fox", "compel_weights": "[calm]", "negative_prompt": "(dim:1.5)"}
    )
    assert answer.status_code == 200, answer.text
    inspection = answer.json()
    assert inspection["clean_text"] == "a red fox, calm"
    assert inspection["fragments"] == [
        {"text": "a ", "weight": 1.0, "section": 0},
        {"text": "red", "weight": 1.2, "section": 0},
        {"text": " fox", "weight": 1.0, "section": 0},
        {"text": ", ", "weight": 1.0, "section": 0},
        {"text": "calm", "weight": 0.909091, "section": 0},
    ]
    letters = ["a</w>", "r", "e", "d</w>", "f", "o", "x</w>", ",</w>", "c", "a", "l", "m</w>"]
    assert inspection["tokens"] == {"tokenizer": [letters], "tokenizer_2": [letters]}
    assert inspection["token_counts"] == {"tokenizer": 12, "tokenizer_2": 12}
    assert inspection["chunks"] == 1
    assert inspection["embed_shapes"] == {"prompt_embeds": [1, 77, 64], "pooled_prompt_embeds": [1, 40]}
    assert (inspection["weights_usable"], inspection["enhancement_strategy"]) == (True, "compel")
    assert (inspection["reason"], inspection["note"]) == (None, None)
    assert inspection["negative_prompt"]["fragments"] == [{"text": "dim", "weight": 1.5, "section": 0}]


def test_the_older_names_of_route_and_field_give_the_same_result(inspect: Any) -> None:
    """Older tools call `/test-compel`, and jobs name the field `compel_weights`."""
    one = inspect({"prompt": "a fox", "weights": "(calm:1.2)"})
    other = inspect({"prompt": "a fox", "compel_weights": "(calm:1.2)"}, "/test-compel")
    assert one.json() == other.json()
    assert one.json()["fragments"][-1]["weight"] == 1.2


def test_long_prompts_take_more_chunks(inspect: Any) -> None:
    """No token is dropped; the longer of the two prompts decides the shape."""
    inspection = inspect({"prompt": "a " * 200, "negative_prompt": "b " * 400}).json()
    assert inspection["chunks"] == 3
    assert [len(chunk) for chunk in inspection["tokens"]["tokenizer"]] == [75, 75, 50]
    assert inspection["negative_prompt"]["chunks"] == 6
    assert inspection["embed_shapes"]["prompt_embeds"] == [1, 6 * 77, 64]


def test_break_starts_a_new_section(inspect: Any) -> None:
    """Each section is encoded in chunks of its own."""
    inspection = inspect({"prompt": "a fox BREAK (a hill:1.2)"}).json()
    assert [part["section"] for part in inspection["fragments"]] == [0, 1]
    assert (inspection["chunks"], inspection["weights_usable"]) == (2, None)


def test_unusable_weights_are_reported_as_a_fallback(inspect: Any) -> None:
    """The result is what a job would use: the prompt alone, taken literally."""
    inspection = inspect(
        {"prompt": "a (red:1.2) fox", "weights": "(calm:very)", "negative_prompt": "(dim)"}
    ).json()
    assert (inspection["weights_usable"], inspection["enhancement_strategy"]) == (False, "fallback")
    assert "no readable weight" in inspection["reason"]
    assert [part["text"] for part in inspection["fragments"]] == ["a (red:1.2) fox"]
    assert inspection["negative_prompt"]["clean_text"] == "(dim)"


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "INVALID_PROMPT", "prompt"),
        ({"prompt": "  "}, "INVALID_PROMPT", "prompt"),
        ({"prompt": 7}, "INVALID_PROMPT", "prompt"),
        ({"prompt": "a" * 10_001}, "INVALID_PROMPT", "prompt"),
        ({"prompt": "a", "weights": "b" * 10_001}, "INVALID_PARAMETERS", "weights"),
        ({"prompt": "a", "compel_weights": ["(b:1.2)"]}, "INVALID_PARAMETERS", "compel_weights"),
        ({"prompt": "a", "negative_prompt": "\0"}, "INVALID_PARAMETERS", "negative_prompt"),
        (["a"], "INVALID_PARAMETERS", None),
    ],
)
def test_a_wrong_field_is_named(inspect: Any, body: Any, code: str, field: str | None) -> None:
    """The rules and errors are those of a job with these fields."""
    answer = inspect(body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["field"]) == (code, field)
    assert problem["rule"]


def test_without_a_checkpoint_the_tokens_are_null_with_a_note(
    open_shim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host without models the weights are still parsed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shim = open_shim(OURVIDZ_SDXL_MODEL=tmp_path / "nowhere")
    inspection = shim.client.post("/prompts/inspect", json={"prompt": "a (fox:1.2)"}).json()
    assert inspection["fragments"][1] == {"text": "fox", "weight": 1.2, "section": 0}
    assert [inspection[name] for name in ("tokens", "token_counts", "chunks", "embed_shapes")] == [None] * 4
    assert "no SDXL checkpoint" in inspection["note"]


def test_a_damaged_checkpoint_is_a_server_error(open_shim: Any, tmp_path: Path) -> None:
    """The operator must repair it; the prompt is not at fault."""
    shim = open_shim(OURVIDZ_SDXL_MODEL=tmp_path)
    answer = shim.client.post("/prompts/inspect", json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["code"]) == (500, "MODEL_LOAD_ERROR")


def test_inspection_needs_the_jobs_scope(open_shim: Any) -> None:
    """Both paths of the route are protected."""
    shim = open_shim(OURVIDZ_API_KEYS="j:jobs:jobs,c:chat:chat")
    for path in ("/prompts/inspect", "/test-compel"):
        statuses = [
            shim.client.post(path, json={"prompt": "a"}, headers={"X-API-Key": key}).status_code
            for key in ("jobs", "chat", "nobody")
        ]
        assert statuses == [200, 403, 401]


def test_inspection_imports_no_model_library(untrained_sdxl: Path) -> None:
    """The shim runs on hosts without a GPU and starts within a second: tokens are counted without torch."""
    script = (
        "import sys; from pathlib import Path;"
        "from ourvidz.prompts.encoders import read_encoders;"
        "from ourvidz.prompts.weights import parse_prompt;"
        "prompt = parse_prompt('a (red:1.2) fox', weighted=True).prompt;"
        "shapes = read_encoders(Path(sys.argv[1])).shapes([prompt]);"
        "print(shapes.prompt_embeds, [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(untrained_sdxl)], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "(1, 77, 64) []"
