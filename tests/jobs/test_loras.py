from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import ImageJob

ALLOWED = Defaults(loras={"hills": 0.8, "sky": 1.0}, draw_seed=lambda: 7)


def job(loras: Any, defaults: Defaults = ALLOWED) -> ImageJob:
    asked = {"id": "one", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me"}
    found = parse(asked | {"config": {"loras": loras}}, defaults)
    assert isinstance(found, ImageJob)
    return found


@pytest.mark.parametrize(
    ("written", "read"),
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
def test_loras_are_named_with_or_without_a_weight(written: Any, read: list[tuple[str, float]]) -> None:
    """The operator's weight stands in for one that is not given."""
    found = job(written)
    assert [(one.name, one.weight) for one in found.loras] == read
    assert "config" not in found.extras


@pytest.mark.parametrize(
    ("written", "field", "rule"),
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
def test_what_is_not_allowed_is_refused_at_the_door(written: Any, field: str, rule: str) -> None:
    """The caller reads which names there are; a file nobody allowed is never opened."""
    with pytest.raises(InvalidParameters) as refused:
        job(written)
    assert (refused.value.field, refused.value.rule) == (field, rule)
    assert refused.value.value is not None or written == [{"weight": 1}]


def test_without_an_allow_list_the_field_is_one_nobody_asked_for() -> None:
    """Kept and ignored, as every unknown field is."""
    found = job(["hills"], Defaults())
    assert found.loras == ()
    assert found.extras == {"config": {"loras": ["hills"]}}


def test_another_lora_is_another_job() -> None:
    """A repeated id with other files is a conflict, not the first job again."""
    prints = {
        job(asked).fingerprint() for asked in ([], ["hills"], ["sky"], [{"name": "sky", "weight": 0.5}])
    }
    assert len(prints) == 4
