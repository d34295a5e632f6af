from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from tests.properties import examples
from training.export import CHECKSUMS, digest, exported_files
from training.qwen import tokenization, trainer
from training.qwen.__main__ import Stages, main
from training.qwen.corpus import Text
from training.qwen.evaluate import is_enriched
from training.qwen.generation import TextGenerator
from training.qwen.models import Shape
from training.qwen.recipe import Recipe
from training.runs import Run

DIALOGUE = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "There is a red circle.\nWhat colour is it?"},
    {"role": "assistant", "content": "red"},
]


@pytest.fixture(scope="module")
def tokenizer() -> transformers.Qwen2Tokenizer:
    """A tokenizer trained on fewer texts than that of the recipe."""
    return tokenization.train_tokenizer(7, texts=1500)


@pytest.fixture
def minute_qwen() -> Recipe:
    """A recipe whose stages take about a second each: a few steps of a model with a few thousand weights."""
    return Recipe(
        shape=Shape(width=16, layers=2, heads=2, inner=24),
        tokenizer_texts=400,
        base_steps=6,
        base_batch=3,
        instruct_steps=6,
        instruct_batch=3,
        evaluated=4,
        clips=1,
    )


@examples(60)
@given(text=st.text())
def test_any_text_survives_encoding_and_decoding(tokenizer: transformers.Qwen2Tokenizer, text: str) -> None:
    """Prompts may contain any character; only Unicode normalization may change them."""
    import unicodedata

    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_words_of_captions_are_single_tokens(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """Words in pieces are harder to copy."""
    text = " a big purple triangle on the left on a yellow background moving to the right"
    assert len(tokenizer.tokenize(text)) == len(text.split())
    assert len(tokenizer) <= tokenization.VOCABULARY_SIZE + 3


def test_the_chat_template_is_chatml(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """As in Qwen2.5, without its default system prompt."""
    text = tokenizer.apply_chat_template(DIALOGUE[:2], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nAnswer in one word.<|im_end|>\n"
        "<|im_start|>user\nThere is a red circle.\nWhat colour is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template(DIALOGUE[1:2], tokenize=False).startswith("<|im_start|>user")


def test_training_examples_match_the_chat_template(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """Inference must use the tokens of the training."""
    ids, labels = tokenization.chat_example(tokenizer, DIALOGUE)
    assert ids == tokenizer.apply_chat_template(DIALOGUE, return_dict=True)["input_ids"]
    labelled = [label for label in labels if label != tokenization.IGNORED]
    assert tokenizer.decode(labelled) == "red<|im_end|>"
    assert all(label in (one, tokenization.IGNORED) for label, one in zip(labels, ids, strict=True))


def test_the_labels_of_a_text_are_the_completion_and_the_end(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """The end token stops the base model; the context is not trained on."""
    ids, labels = tokenization.text_example(tokenizer, Text("Prompt: a cat\nEnriched:", " a cat, soft light"))
    assert ids == tokenizer.encode("Prompt: a cat\nEnriched: a cat, soft light<|endoftext|>")
    assert (
        tokenizer.decode([one for one in labels if one != tokenization.IGNORED])
        == " a cat, soft light<|endoftext|>"
    )


def test_padding_does_not_change_the_loss(tokenizer: transformers.Qwen2Tokenizer) -> None:
    """The loss of a text must not depend on the other texts of the batch."""
    torch.manual_seed(0)
    model = trainer.models.build_model(Shape(width=16, layers=2, heads=2, inner=24), tokenizer).eval()
    examples = [tokenization.text_example(tokenizer, Text("", "a cat" + " and a dog" * k)) for k in range(5)]
    counts = [len(ids) - 1 for ids, _ in examples]
    alone = [trainer.cross_entropy(model, [one]).item() for one in examples]
    together = trainer.cross_entropy(model, examples).item()
    mean = sum(one * count for one, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, rel=1e-4)


def test_every_stage_runs_and_transformers_loads_the_export(minute_qwen: Recipe, tmp_path: Path) -> None:
    """Train both models, export them, load them with transformers and evaluate, on a tiny scale."""
    stages = Stages(minute_qwen, tmp_path / "run")
    for name in Stages.NAMES:
        stages.run(name)
    scores = json.loads((stages.out / "scores.json").read_text())
    assert {"enriched", "answers right", "continued in known words", "seconds for 64 tokens"} <= set(scores)
    assert scores["MiB"] < 1
    for name in ("base-loss.png", "instruct-loss.png"):
        assert (stages.out / name).stat().st_size > 100
    _check_variant(stages.export_folder / "base", end="<|endoftext|>", chats=False)
    _check_variant(stages.export_folder / "instruct", end="<|im_end|>", chats=True)
    _check_checksums(stages.export_folder)


def _check_variant(folder: Path, *, end: str, chats: bool) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, transformers.Qwen2ForCausalLM)
    assert model.dtype == torch.float16
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.tie_word_embeddings
    assert tokenizer.eos_token == end
    assert (tokenizer.chat_template is not None) == chats
    ends = model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    with safe_open(folder / "model.safetensors", "pt") as weights:
        dtypes = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16}


def _check_checksums(folder: Path) -> None:
    """There is one list over both variants."""
    lines = (folder / CHECKSUMS).read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert listed == {str(file.relative_to(folder)): digest(file) for file in exported_files(folder)}
    assert {"base/model.safetensors", "instruct/tokenizer.json"} <= set(listed)


def test_a_few_steps_lower_the_loss(minute_qwen: Recipe, tmp_path: Path) -> None:
    """A trainer without effect would pass the other tests."""
    from dataclasses import replace

    recipe = replace(minute_qwen, base_steps=40, base_batch=8, base_lr=1e-2)
    losses = trainer.train_base(recipe, tmp_path).run.losses
    assert losses[-1][1] < 0.9 * losses[0][1]


@pytest.mark.parametrize("name", ["base", "instruct"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(minute_qwen: Recipe, tmp_path: Path, name: str) -> None:
    """A restart must not change the result."""
    train = trainer.train_base if name == "base" else trainer.train_instruct
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = train(minute_qwen, whole).model.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train", _killed_after(3, Run.train))
        train(minute_qwen, pieces)
    found = train(minute_qwen, pieces).model.state_dict()
    for key in expected:
        torch.testing.assert_close(expected[key], found[key], rtol=1e-4, atol=1e-5)


def _killed_after(steps: int, train):  # type: ignore[no-untyped-def]
    return lambda run, step_loss: train(run, step_loss, until_step=steps)


def test_the_instruct_model_starts_from_the_base_model(minute_qwen: Recipe, tmp_path: Path) -> None:
    """It keeps what the base model learned."""
    base = trainer.train_base(minute_qwen, tmp_path).model.state_dict()
    initial = trainer.prepare_instruct(minute_qwen, tmp_path).model.state_dict()
    assert all(torch.equal(base[key], initial[key]) for key in base)


def test_batched_answers_equal_single_ones(minute_qwen: Recipe, tmp_path: Path) -> None:
    """Padding on the left must not change the answers."""
    stages = Stages(minute_qwen, tmp_path)
    for name in Stages.NAMES[:3]:
        stages.run(name)
    generator = TextGenerator(stages.export_folder / "instruct")
    dialogues = [DIALOGUE[:2], DIALOGUE[1:2]]
    assert generator.chat(dialogues, max_tokens=8) == [
        generator.chat([one], max_tokens=8)[0] for one in dialogues
    ]


def test_an_answer_without_detail_is_not_enriched() -> None:
    """Copying alone is no enrichment."""
    assert is_enriched("a red circle", "a red circle, crisp edges, soft light")
    assert not is_enriched("a red circle", "a red circle")
    assert not is_enriched("a red circle", "a circle with soft light and crisp edges")


def test_the_help_lists_stages_and_options() -> None:
    """The command is documented by its help."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(
        word in result.output for word in ("--minutes-base", "--minutes-instruct", "--out", "evaluate")
    )
