"""LoRAs of a job: named by the caller, allowed by the operator."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import ImageJob

ALLOWED = Defaults(loras={"hills": 0.8, "sky": 1.0}, draw_seed=lambda: 7)


def job(loras: Any, defaults: Defaults = ALLOWED) -> ImageJob:
    payload = {"id": "one", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    parsed = parse(payload | {"config": {"loras": loras}}, defaults)
    assert isinstance(parsed, ImageJob)
    return parsed


@pytest.mark.parametrize(
    ("loras", "expected"),
    [
        (["hills"], [("hills", 0.8)]),
        (["sky", "hills"], [("sky", 1.0), ("hills", 0.8)]),
        ("hills, sky", [("hills", 0.8), ("sky", 1.0)]),
        ("hills,", [("hills", 0.8)]),
        ([{"name": "hills", "weight": -2}], [("hills", -2.0)]),
        ([{"name": "hills", "weight": "1.5"}, "sky"], [("hills", 1.5), ("sky", 1.0)]),
        ([{"name": "hills", "weight": None}], [("hills", 0.8)]),
        ([], []),
        ("", []),
        (None, []),
    ],
)
def test_loras_have_their_own_or_the_default_weight(loras: Any, expected: list[tuple[str, float]]) -> None:
    """The default weight of a LoRA is set by the operator."""
    parsed = job(loras)
    assert [(lora.name, lora.weight) for lora in parsed.loras] == expected
    assert "config" not in parsed.extras


@pytest.mark.parametrize(
    ("loras", "field", "rule"),
    [
        (["rivers"], "config.loras[0]", "one of hills, sky"),
        ("hills, rivers", "config.loras", "one of hills, sky"),
        (["hills", {"name": "../hills"}], "config.loras[1].name", "one of hills, sky"),
        ([{"weight": 1}], "config.loras[0].name", "one of hills, sky"),
        ([{"name": "sky", "weight": 2.1}], "config.loras[0].weight", "a number from -2 to 2"),
        ([{"name": "sky", "weight": True}], "config.loras[0].weight", "a number from -2 to 2"),
        (["sky", "sky"], "config.loras", "a list with every name once"),
        ({"hills": 1}, "config.loras", "a list of names, or of objects with name and weight"),
        ([["hills"]], "config.loras[0]", "one of hills, sky"),
        (7, "config.loras", "a list of names, or of objects with name and weight"),
    ],
)
def test_other_loras_are_rejected(loras: Any, field: str, rule: str) -> None:
    """The error lists the allowed names; other files are never opened."""
    with pytest.raises(InvalidParameters) as refused:
        job(loras)
    assert (refused.value.field, refused.value.rule) == (field, rule)
    assert refused.value.value is not None or loras == [{"weight": 1}]


def test_without_an_allow_list_the_field_is_not_read() -> None:
    """It is kept and ignored like every unknown field."""
    parsed = job(["hills"], Defaults())
    assert parsed.loras == ()
    assert parsed.extras == {"config": {"loras": ["hills"]}}


def test_another_lora_is_another_job() -> None:
    """The same id with other LoRAs is a conflict, not a repeat."""
    fingerprints = {
        job(loras).fingerprint() for loras in ([], ["hills"], ["sky"], [{"name": "sky", "weight": 0.5}])
    }
    assert len(fingerprints) == 4
