"""How many examples the tests of properties try: profiles of Hypothesis, and settings that follow them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

FAST, LONG = 20, 2000
"""Examples of a property without settings of its own, by profile. Without a profile Hypothesis tries 100."""

settings.register_profile("fast", max_examples=FAST, deadline=None)
settings.register_profile("long", max_examples=LONG, deadline=None)


def examples(count: int, *, repeatable: bool = False, **options: Any) -> settings:
    """Settings of a property that tries `count` examples, or the share of them that the profile tries of 100.

    A `repeatable` property tries the same examples in every run. Under the profile `long` its seed is that of
    `--hypothesis-seed`, or random.
    """
    default = settings.default
    assert default is not None
    share = default.max_examples / 100
    options = {"deadline": None, **options}
    if repeatable:
        options |= {"derandomize": share <= 1, "database": None}
    return settings(max_examples=max(1, round(count * share)), **options)
