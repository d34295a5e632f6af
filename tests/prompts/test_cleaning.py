"""Prompts of Wan are cleaned as by its release. The expected texts are those of ftfy 6.3."""

from __future__ import annotations

import pytest

from ourvidz.prompts.cleaning import clean_prompt


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("a  hill\n in\tthe rain ", "a hill in the rain"),
        ("salt &amp;amp; sea", "salt & sea"),
        ("&lt;b&gt;", "<b>"),
        ("", ""),
        ("\u8272\u8c03\uff0c\u8fc7\u66dd\u3000\u9759\u6001\uff01", "\u8272\u8c03,\u8fc7\u66dd \u9759\u6001!"),
        ("\u201ca hill\u201d, it\u2019s \u2018red\u2019 \u201elow\u201f", '"a hill", it\'s \'red\' "low"'),
        ("\uff46\uff55\uff4c\uff4c \uff11\uff16\uff1a\uff19", "full 16:9"),
        ("\ufb01re and \ufb02ower", "fire and flower"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00 hill\ufeff", "a hill"),
        ("it&rsquo;s a &ldquo;hill&rdquo;", 'it\'s a "hill"'),
        ("a\u2028b \u2014 c\u2026", "a b \u2014 c\u2026"),
    ],
)
def test_prompts_are_cleaned_as_in_training(prompt: str, cleaned: str) -> None:
    """The tokens of a full-width comma or a curly quote are others than the model was trained with."""
    assert clean_prompt(prompt) == cleaned
