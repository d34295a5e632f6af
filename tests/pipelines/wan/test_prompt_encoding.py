from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.prompt_encoding import clean_prompt, encode_prompt


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a  hill\n in\tthe rain ", "a hill in the rain"),
        ("salt &amp;amp; sea", "salt & sea"),
        ("&lt;b&gt;", "<b>"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned_as_in_training(written: str, read: str) -> None:
    """What the model never saw would be a word it does not know."""
    assert clean_prompt(written) == read


def test_a_prompt_is_read_as_diffusers_reads_it(wan_checkpoint: Checkpoint) -> None:
    """To the bit, with zeros after its end; by pipelines for pictures too, which cannot do it themselves."""
    pipe: Any = diffusers.WanPipeline.from_pretrained(wan_checkpoint.path, local_files_only=True)
    cpu = torch.device("cpu")
    text = "a red  star &amp; a pond"
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=512, device=cpu
        )
        parts = SimpleNamespace(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)
        found = encode_prompt(parts, text, cpu, torch.float32)
    assert torch.equal(found, expected)
    assert found[0, -1].abs().sum() == 0
