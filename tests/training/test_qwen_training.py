from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from training.export import CHECKSUMS, digest, shipped
from training.qwen import learn, tokens
from training.qwen.__main__ import STAGES, Workshop, main
from training.qwen.corpus import Text
from training.qwen.evaluate import is_enriched
from training.qwen.models import Shape
from training.qwen.recipe import Recipe
from training.qwen.speaker import Speaker
from training.runs import Run

TALK = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "There is a red circle.\nWhat colour is it?"},
    {"role": "assistant", "content": "red"},
]


@pytest.fixture(scope="module")
def words() -> transformers.Qwen2Tokenizer:
    """A tokenizer learnt from fewer texts than the real one."""
    return tokens.tokenizer(7, texts=1500)


@pytest.fixture
def minute_qwen() -> Recipe:
    """Every stage in about a second: a few steps of a model of a few thousand weights."""
    return Recipe(
        shape=Shape(width=16, layers=2, heads=2, inner=24),
        tokenizer_texts=400,
        base_steps=6,
        base_batch=3,
        instruct_steps=6,
        instruct_batch=3,
        evaluated=4,
    )


@settings(max_examples=60)
@given(text=st.text())
def test_any_text_can_be_read_and_written(words: transformers.Qwen2Tokenizer, text: str) -> None:
    """Callers write what they like; nothing may be lost or unknown but the spelling of equal characters."""
    import unicodedata

    ids = words.encode(text)
    assert words.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_words_of_the_world_are_single_tokens(words: transformers.Qwen2Tokenizer) -> None:
    """A word in pieces is harder to copy and to answer with."""
    text = " a big purple triangle on the left on a yellow background moving to the right"
    assert len(words.tokenize(text)) == len(text.split())
    assert len(words) <= tokens.MERGED_UP_TO + 3


def test_the_chat_template_writes_chatml(words: transformers.Qwen2Tokenizer) -> None:
    """As every caller of Qwen2.5 knows it, without a system prompt nobody asked for."""
    written = words.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    assert written == (
        "<|im_start|>system\nAnswer in one word.<|im_end|>\n"
        "<|im_start|>user\nThere is a red circle.\nWhat colour is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert words.apply_chat_template(TALK[1:2], tokenize=False).startswith("<|im_start|>user")


def test_what_is_trained_on_is_what_the_chat_template_writes(words: transformers.Qwen2Tokenizer) -> None:
    """One token's difference, and the model would be asked in a form that it never saw."""
    ids, labels = tokens.chat_example(words, TALK)
    assert ids == words.apply_chat_template(TALK, return_dict=True)["input_ids"]
    learnt = [label for label in labels if label != tokens.IGNORED]
    assert words.decode(learnt) == "red<|im_end|>"
    assert all(label in (one, tokens.IGNORED) for label, one in zip(labels, ids, strict=True))


def test_a_text_is_learnt_from_where_it_was_given_to_its_end(words: transformers.Qwen2Tokenizer) -> None:
    """The end token is what stops the base model; what a caller gives needs no guessing."""
    ids, labels = tokens.text_example(words, Text("Prompt: a cat\nEnriched:", " a cat, soft light"))
    assert ids == words.encode("Prompt: a cat\nEnriched: a cat, soft light<|endoftext|>")
    assert words.decode([one for one in labels if one != tokens.IGNORED]) == " a cat, soft light<|endoftext|>"


def test_padding_changes_no_loss(words: transformers.Qwen2Tokenizer) -> None:
    """A text's loss must not depend on the texts beside it."""
    torch.manual_seed(0)
    model = learn.models.model(Shape(width=16, layers=2, heads=2, inner=24), words).eval()
    examples = [tokens.text_example(words, Text("", "a cat" + " and a dog" * k)) for k in range(5)]
    counts = [len(ids) - 1 for ids, _ in examples]
    alone = [learn.loss(model, [one]).item() for one in examples]
    together = learn.loss(model, examples).item()
    mean = sum(one * count for one, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, rel=1e-4)


def test_every_stage_runs_and_transformers_loads_the_export(minute_qwen: Recipe, tmp_path: Path) -> None:
    """The whole road on a tiny scale: train both, export, load with plain transformers, measure."""
    workshop = Workshop(minute_qwen, tmp_path / "run")
    for stage in STAGES:
        workshop.run(stage)
    scores = json.loads((workshop.out / "scores.json").read_text())
    assert {"enriched", "answers right", "continued in known words", "seconds for 64 tokens"} <= set(scores)
    assert scores["MiB"] < 1
    for name in ("base-loss.png", "instruct-loss.png"):
        assert (workshop.out / name).stat().st_size > 100
    _check_variant(workshop.exported / "base", end="<|endoftext|>", chats=False)
    _check_variant(workshop.exported / "instruct", end="<|im_end|>", chats=True)
    _check_checksums(workshop.exported)


def _check_variant(folder: Path, *, end: str, chats: bool) -> None:
    read = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, transformers.Qwen2ForCausalLM)
    assert model.dtype == torch.float16
    assert model.config.vocab_size == len(read)
    assert model.config.tie_word_embeddings
    assert read.eos_token == end
    assert (read.chat_template is not None) == chats
    ends = model.generation_config.eos_token_id
    assert read.eos_token_id in (ends if isinstance(ends, list) else [ends])
    with safe_open(folder / "model.safetensors", "pt") as weights:
        kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert kinds == {torch.float16}


def _check_checksums(folder: Path) -> None:
    """One list over both variants."""
    lines = (folder / CHECKSUMS).read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert listed == {str(file.relative_to(folder)): digest(file) for file in shipped(folder)}
    assert {"base/model.safetensors", "instruct/tokenizer.json"} <= set(listed)


def test_a_few_steps_teach_something(minute_qwen: Recipe, tmp_path: Path) -> None:
    """A trainer that learns nothing would pass every other test."""
    from dataclasses import replace

    recipe = replace(minute_qwen, base_steps=40, base_batch=8, base_lr=1e-2)
    losses = learn.train_base(recipe, tmp_path).run.losses
    assert losses[-1][1] < 0.9 * losses[0][1]


@pytest.mark.parametrize("name", ["base", "instruct"])
def test_a_run_in_two_pieces_ends_like_a_run_in_one(minute_qwen: Recipe, tmp_path: Path, name: str) -> None:
    """A machine that restarts must not change the result."""
    train = learn.train_base if name == "base" else learn.train_instruct
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    expected = train(minute_qwen, whole).model.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train", _killed_after(3, Run.train))
        train(minute_qwen, pieces)
    found = train(minute_qwen, pieces).model.state_dict()
    for key in expected:
        torch.testing.assert_close(expected[key], found[key], rtol=1e-4, atol=1e-5)


def _killed_after(steps: int, train):  # type: ignore[no-untyped-def]
    return lambda run, loss_of: train(run, loss_of, until_step=steps)


def test_the_instruct_model_starts_from_the_base_model(minute_qwen: Recipe, tmp_path: Path) -> None:
    """What it knows of words it has from there."""
    base = learn.train_base(minute_qwen, tmp_path).model.state_dict()
    begun = learn.prepare_instruct(minute_qwen, tmp_path).model.state_dict()
    assert all(torch.equal(base[key], begun[key]) for key in base)


def test_batched_answers_are_those_asked_one_by_one(minute_qwen: Recipe, tmp_path: Path) -> None:
    """Padding on the left must not reach the scores."""
    workshop = Workshop(minute_qwen, tmp_path)
    for stage in STAGES[:3]:
        workshop.run(stage)
    speaker = Speaker(workshop.exported / "instruct")
    talks = [TALK[:2], TALK[1:2]]
    assert speaker.answers(talks, longest=8) == [speaker.answers([one], longest=8)[0] for one in talks]


def test_an_answer_without_detail_is_not_enriched() -> None:
    """Copying alone is not what was asked for."""
    assert is_enriched("a red circle", "a red circle, crisp edges, soft light")
    assert not is_enriched("a red circle", "a red circle")
    assert not is_enriched("a red circle", "a circle with soft light and crisp edges")


def test_the_command_says_what_it_needs() -> None:
    """One command a model, told by its help."""
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0
    assert all(word in told.output for word in ("--minutes-base", "--minutes-instruct", "--out", "evaluate"))
