"""Looking at prompts over HTTP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def ask(open_shim: Any, untrained_sdxl: Path) -> Any:
    """Ask a shim whose workers run a checkpoint whose tokens are single bytes."""
    shim = open_shim(OURVIDZ_SDXL_MODEL=untrained_sdxl)
    return lambda body, path="/prompts/inspect": shim.client.post(path, json=body)


def test_a_prompt_is_inspected_with_its_weights(ask: Any) -> None:
    """A caller sees what the encoders will see, without spending a GPU on it."""
    answer = ask({"prompt": "a (red:1.2) fox", "compel_weights": "[calm]", "negative_prompt": "(dim:1.5)"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["clean_text"] == "a red fox, calm"
    assert found["fragments"] == [
        {"text": "a ", "weight": 1.0, "section": 0},
        {"text": "red", "weight": 1.2, "section": 0},
        {"text": " fox", "weight": 1.0, "section": 0},
        {"text": ", ", "weight": 1.0, "section": 0},
        {"text": "calm", "weight": 0.909091, "section": 0},
    ]
    letters = ["a</w>", "r", "e", "d</w>", "f", "o", "x</w>", ",</w>", "c", "a", "l", "m</w>"]
    assert found["tokens"] == {"tokenizer": [letters], "tokenizer_2": [letters]}
    assert found["token_counts"] == {"tokenizer": 12, "tokenizer_2": 12}
    assert found["chunks"] == 1
    assert found["embed_shapes"] == {"prompt_embeds": [1, 77, 64], "pooled_prompt_embeds": [1, 40]}
    assert (found["weights_usable"], found["enhancement_strategy"]) == (True, "compel")
    assert (found["reason"], found["note"]) == (None, None)
    assert found["negative_prompt"]["fragments"] == [{"text": "dim", "weight": 1.5, "section": 0}]


def test_both_names_of_the_route_and_of_the_weights_answer_alike(ask: Any) -> None:
    """Older tools call it /test-compel."""
    one = ask({"prompt": "a fox", "weights": "(calm:1.2)"})
    other = ask({"prompt": "a fox", "compel_weights": "(calm:1.2)"}, "/test-compel")
    assert one.json() == other.json()
    assert one.json()["fragments"][-1]["weight"] == 1.2


def test_long_prompts_take_more_chunks(ask: Any) -> None:
    """Nothing is cut off, and the longer of the two prompts decides the shape."""
    found = ask({"prompt": "a " * 200, "negative_prompt": "b " * 400}).json()
    assert found["chunks"] == 3
    assert [len(chunk) for chunk in found["tokens"]["tokenizer"]] == [75, 75, 50]
    assert found["negative_prompt"]["chunks"] == 6
    assert found["embed_shapes"]["prompt_embeds"] == [1, 6 * 77, 64]


def test_a_break_is_a_section(ask: Any) -> None:
    """Sections are how BREAK shows."""
    found = ask({"prompt": "a fox BREAK (a hill:1.2)"}).json()
    assert [part["section"] for part in found["fragments"]] == [0, 1]
    assert (found["chunks"], found["weights_usable"]) == (2, None)


def test_weights_that_cannot_be_used_are_shown_as_the_fallback(ask: Any) -> None:
    """What the answer shows is what the worker would do: the prompt alone, taken literally."""
    found = ask({"prompt": "a (red:1.2) fox", "weights": "(calm:very)", "negative_prompt": "(dim)"}).json()
    assert (found["weights_usable"], found["enhancement_strategy"]) == (False, "fallback")
    assert "no readable weight" in found["reason"]
    assert [part["text"] for part in found["fragments"]] == ["a (red:1.2) fox"]
    assert found["negative_prompt"]["clean_text"] == "(dim)"


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
def test_a_wrong_field_is_named(ask: Any, body: Any, code: str, field: str | None) -> None:
    """The same rules, in the same words, as for a job with these fields."""
    answer = ask(body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["field"]) == (code, field)
    assert problem["rule"]


def test_a_shim_without_a_checkpoint_says_so(
    open_shim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host without models the weights can still be checked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shim = open_shim(OURVIDZ_SDXL_MODEL=tmp_path / "nowhere")
    found = shim.client.post("/prompts/inspect", json={"prompt": "a (fox:1.2)"}).json()
    assert found["fragments"][1] == {"text": "fox", "weight": 1.2, "section": 0}
    assert [found[name] for name in ("tokens", "token_counts", "chunks", "embed_shapes")] == [None] * 4
    assert "no SDXL checkpoint" in found["note"]


def test_a_damaged_checkpoint_is_the_operators_to_repair(open_shim: Any, tmp_path: Path) -> None:
    """It must not look like a fault of the prompt."""
    shim = open_shim(OURVIDZ_SDXL_MODEL=tmp_path)
    answer = shim.client.post("/prompts/inspect", json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["code"]) == (500, "MODEL_LOAD_ERROR")


def test_a_key_of_another_scope_does_not_open_it(open_shim: Any) -> None:
    """Prompts of jobs are looked at with the keys of jobs."""
    shim = open_shim(OURVIDZ_API_KEYS="j:jobs:jobs,c:chat:chat")
    for path in ("/prompts/inspect", "/test-compel"):
        statuses = [
            shim.client.post(path, json={"prompt": "a"}, headers={"X-API-Key": key}).status_code
            for key in ("jobs", "chat", "nobody")
        ]
        assert statuses == [200, 403, 401]


def test_inspecting_needs_no_model_library(untrained_sdxl: Path) -> None:
    """The shim runs on hosts without a GPU and starts in a second: tokens are counted without torch."""
    script = (
        "import sys; from pathlib import Path;"
        "from ourvidz.prompts.encoders import read_encoders; from ourvidz.prompts.weights import read;"
        "prompt = read('a (red:1.2) fox', weighted=True).prompt;"
        "shapes = read_encoders(Path(sys.argv[1])).shapes([prompt]);"
        "print(shapes.prompt_embeds, [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(untrained_sdxl)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "(1, 77, 64) []"
