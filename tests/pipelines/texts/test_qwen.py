"""The Qwen pipeline on the packaged checkpoints: batches, lengths, stop strings, loading."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ourvidz.errors import CONTEXT_EXCEEDED, InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen
from ourvidz.pipelines.texts.kv_cache import DecodeCache, KVCache, PrefillCache
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.qwen_model import QwenModel
from tests.factories import chat_job

LoadQwen = Callable[[QwenVariant], QwenPipeline]

PROMPTS = (
    "Enhance: a big red circle on a green field",
    "a small star",
    "The circle is blue. What colour is the circle?",
    "Hello",
    "a yellow square at the top",
    "a fox in the forest",
    "a hill under a cloud",
    "Enrich: a purple triangle on a white background with a small black cat beside it",
)


class Recording:
    """The texts of a decoder by key, and the last delta of each."""

    def __init__(self, decoder: BatchDecoder) -> None:
        self.decoder = decoder
        self.texts: defaultdict[str, str] = defaultdict(str)
        self.last: dict[str, TextDelta] = {}

    def step(self) -> list[TextDelta]:
        """Run one step and record its deltas."""
        deltas = self.decoder.step()
        for delta in deltas:
            assert delta.key not in self.last or self.last[delta.key].finish_reason is None
            self.texts[delta.key] += delta.text
            self.last[delta.key] = delta
        return deltas

    def finish(self) -> dict[str, str]:
        """Run all remaining steps and return the texts."""
        while self.step():
            pass
        return dict(self.texts)


def decode_together(pipeline: QwenPipeline, jobs: Mapping[str, ChatJob]) -> Recording:
    recording = Recording(pipeline.new_decoder())
    for key, job in jobs.items():
        recording.decoder.add(key, job)
    recording.finish()
    return recording


def decode_alone(pipeline: QwenPipeline, job: ChatJob) -> str:
    return decode_together(pipeline, {"k": job}).texts["k"]


def test_a_text_is_the_same_in_a_batch_and_alone(qwen: LoadQwen) -> None:
    """Also if other texts are added and removed at different steps."""
    jobs = {f"t{index}": chat_job(prompt) for index, prompt in enumerate(PROMPTS)}
    expected = {key: decode_alone(qwen("instruct"), job) for key, job in jobs.items()}
    recording = Recording(qwen("instruct").new_decoder())
    for key, job in list(jobs.items())[:3]:
        recording.decoder.add(key, job)
    recording.step()
    recording.decoder.remove("t1")
    for key, job in list(jobs.items())[3:]:
        recording.decoder.add(key, job)
        recording.step()
    recording.decoder.remove("t5")
    texts = recording.finish()
    assert all(text for text in expected.values())
    for key in set(jobs) - {"t1", "t5"}:
        assert texts[key] == expected[key]
    for key in ("t1", "t5"):
        assert expected[key].startswith(texts[key])
        assert len(texts[key]) < len(expected[key])


def test_decoding_takes_few_shapes_and_no_kernel_that_plans_for_each(
    qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that plans for each shape would plan for every token, and keep all plans."""
    columns: set[int] = set()
    planned: set[bool] = set()
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        planned.add(torch.backends.cuda.cudnn_sdp_enabled())
        if len(key) == 2:
            columns.add(key.shape[2])
        return attention(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    decoder = qwen("base").new_decoder()
    for number, prompt in enumerate(PROMPTS[:2]):
        decoder.add(str(number), chat_job(prompt, max_tokens=80))
    for _ in range(64):
        decoder.step()
    assert 0 < len(columns) <= 3
    assert planned == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_greedy_text_is_the_one_of_transformers(qwen: LoadQwen) -> None:
    """Our decoding loop computes the same as the library's."""
    from training.qwen.generation import TextGenerator

    generator = TextGenerator(find_qwen(None, "instruct").path)
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = generator.chat(conversations, max_tokens=48)
    jobs = {f"t{index}": chat_job(prompt) for index, prompt in enumerate(PROMPTS)}
    recording = decode_together(qwen("instruct"), jobs)
    assert [recording.texts[f"t{index}"] for index in range(len(PROMPTS))] == expected


def test_the_repetition_penalty_of_a_checkpoint_is_applied(qwen: LoadQwen, tmp_path: Path) -> None:
    """Released Qwen checkpoints rely on it: without it long answers repeat themselves."""
    from training.qwen.generation import TextGenerator

    shutil.copytree(find_qwen(None, "instruct").path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    config |= {"repetition_penalty": 1.6, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    expected = TextGenerator(tmp_path).chat(
        [[{"role": "user", "content": p}] for p in PROMPTS], max_tokens=24
    )
    pipeline = QwenPipeline(Checkpoint(tmp_path, "folder"), "instruct")
    jobs = {f"t{index}": chat_job(prompt, max_tokens=24) for index, prompt in enumerate(PROMPTS)}
    texts = decode_together(pipeline, jobs).texts
    assert [texts[key] for key in jobs] == expected
    assert any(decode_alone(qwen("instruct"), job) != texts[key] for key, job in jobs.items())


def test_grouped_query_attention_and_bfloat16_are_supported(tmp_path: Path) -> None:
    """Full-size checkpoints have fewer key-value heads than query heads, and run in bfloat16 on a GPU."""
    import transformers

    packaged = find_qwen(None, "base").path
    shutil.copytree(packaged, tmp_path, dirs_exist_ok=True)
    config = transformers.Qwen2Config.from_pretrained(packaged, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(3)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path, "folder")
    jobs = {f"t{index}": chat_job(prompt, max_tokens=12) for index, prompt in enumerate(PROMPTS[:4])}
    pipeline = QwenPipeline(checkpoint, "base", device=torch.device("cpu"))
    texts = decode_together(pipeline, jobs).texts
    assert len(set(texts.values())) > 1
    for key, job in jobs.items():
        assert texts[key] == decode_alone(pipeline, job)
    half = QwenPipeline(checkpoint, "base", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert half.info()["dtype"] == "bfloat16"
    assert all(delta.finish_reason for delta in decode_together(half, jobs).last.values())


def test_finish_reason_and_token_count_are_reported(qwen: LoadQwen) -> None:
    """A text ends with an end-of-text token or at `max_tokens`."""
    jobs = {"whole": chat_job(), "cut": chat_job(max_tokens=3)}
    recording = decode_together(qwen("instruct"), jobs)
    whole, cut = recording.last["whole"], recording.last["cut"]
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert cut.tokens_generated == 3
    assert 3 < whole.tokens_generated < 48
    assert recording.texts["whole"].startswith(recording.texts["cut"])


def test_a_text_ends_before_its_stop_string(qwen: LoadQwen) -> None:
    """Nothing of the stop string is shown. A text without it is not affected."""
    whole = decode_alone(qwen("instruct"), chat_job())
    stop = whole[12:17]
    jobs = {"a": chat_job(stop=(stop,)), "b": chat_job(stop=("never",))}
    recording = decode_together(qwen("instruct"), jobs)
    assert recording.texts == {"a": whole[: whole.index(stop)], "b": whole}
    assert recording.last["a"].finish_reason == "stop"
    assert recording.last["a"].tokens_generated < recording.last["b"].tokens_generated


def limit_prefill(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr("ourvidz.pipelines.texts.decoding.MAX_PREFILL_TOKENS", tokens)


def test_many_prompts_are_prefilled_over_several_steps(
    qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between, the other texts are decoded and the caller can check cancellations."""
    pipeline = qwen("instruct")
    expected = {prompt: decode_alone(pipeline, chat_job(prompt)) for prompt in PROMPTS[:3]}
    limit_prefill(monkeypatch, 21)
    recording = Recording(pipeline.new_decoder())
    for prompt in expected:
        recording.decoder.add(prompt, chat_job(prompt))
    assert [len(recording.step()) for _ in expected] == [1, 2, 3]
    assert recording.finish() == expected


def test_a_long_prompt_is_prefilled_in_chunks_while_others_are_decoded(
    qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of thousands of tokens must not stop the other texts. Its result does not change."""
    pipeline = qwen("instruct")
    long = ", ".join(PROMPTS[1:6] * 2)
    expected = {prompt: decode_alone(pipeline, chat_job(prompt)) for prompt in (PROMPTS[0], long)}
    limit_prefill(monkeypatch, 20)
    recording = Recording(pipeline.new_decoder())
    for key in ("removed", PROMPTS[0]):
        recording.decoder.add(key, chat_job(PROMPTS[0]))
        recording.step()
    assert recording.decoder.add(long, chat_job(long)) > 2 * 20
    assert len(recording.step()) == 2, "the other texts are decoded"
    recording.decoder.remove("removed")
    while long not in recording.last:
        assert [delta.key for delta in recording.step()][:1] == [PROMPTS[0]]
    assert {key: text for key, text in recording.finish().items() if key != "removed"} == expected


def test_a_text_can_be_removed_while_it_is_prefilled(qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next text is not affected."""
    pipeline = qwen("instruct")
    expected = decode_alone(pipeline, chat_job(PROMPTS[0]))
    limit_prefill(monkeypatch, 4)
    decoder = pipeline.new_decoder()
    decoder.add("long", chat_job(PROMPTS[1]))
    assert decoder.step() == []
    decoder.remove("long")
    decoder.add("next", chat_job(PROMPTS[0]))
    recording = Recording(decoder)
    while not recording.step():
        continue
    assert recording.finish() == {"next": expected}


def test_the_base_model_continues_plain_text(qwen: LoadQwen) -> None:
    """Without a template and without roles."""
    job = chat_job("Prompt: a small star\nEnriched:", stop=("\n",))
    assert decode_alone(qwen("base"), job).startswith(" a small star")


def test_the_seed_determines_a_sampled_text(qwen: LoadQwen) -> None:
    """A caller can get an answer again, in any batch."""
    parameters: dict[str, Any] = {"temperature": 1.2, "top_p": 1.0}
    jobs = {str(seed): chat_job("a fox in the forest", seed=seed, **parameters) for seed in (2, 3, 1)}
    first, again, other = (decode_alone(qwen("instruct"), jobs[seed]) for seed in ("1", "1", "2"))
    assert first == again != other
    assert decode_together(qwen("instruct"), jobs).texts["1"] == first


def test_a_greedy_text_does_not_depend_on_the_seed(qwen: LoadQwen) -> None:
    """Temperature 0 is deterministic."""
    one, other = (decode_alone(qwen("instruct"), chat_job(seed=seed)) for seed in (1, 2))
    assert one == other


def test_penalties_change_the_text(qwen: LoadQwen) -> None:
    """The maximum penalty prevents frequent repetition."""
    repetitive = "Prompt: a fox\nPrompt: a fox\nPrompt:"
    plain, penalised = (
        decode_alone(qwen("base"), chat_job(repetitive, frequency_penalty=penalty)) for penalty in (0, 2.0)
    )
    assert plain != penalised


def test_a_text_that_exceeds_the_context_is_refused_with_the_limit(qwen: LoadQwen) -> None:
    """It is never truncated silently: the caller is told what to shorten. Other texts are not affected."""
    recording = Recording(qwen("instruct").new_decoder())
    prompt_tokens = recording.decoder.add("a", chat_job())
    with pytest.raises(InvalidParameters) as too_many:
        recording.decoder.add("b", chat_job(max_tokens=2048))
    assert (too_many.value.field, too_many.value.value) == ("max_tokens", 2048)
    assert too_many.value.kind == CONTEXT_EXCEEDED
    assert str(2048 - prompt_tokens) in str(too_many.value.rule)
    with pytest.raises(InvalidParameters) as too_long:
        recording.decoder.add("b", chat_job("hill " * 3000))
    assert (too_long.value.field, too_long.value.kind) == ("messages", CONTEXT_EXCEEDED)
    assert "2047" in str(too_long.value.rule)
    assert recording.finish() == {"a": decode_alone(qwen("instruct"), chat_job())}


def test_prompt_and_max_tokens_may_fill_the_context_exactly(qwen: LoadQwen) -> None:
    """One token more is refused."""
    decoder = qwen("instruct").new_decoder()
    prompt_tokens = decoder.add("a", chat_job())
    decoder.add("b", chat_job(max_tokens=2048 - prompt_tokens))
    with pytest.raises(InvalidParameters):
        decoder.add("c", chat_job(max_tokens=2049 - prompt_tokens))


def test_an_empty_prompt_is_refused(qwen: LoadQwen) -> None:
    """A base model needs at least one token to continue."""
    with pytest.raises(InvalidParameters) as refused:
        qwen("base").new_decoder().add("a", chat_job(""))
    assert refused.value.field == "messages"


def test_removing_a_text_is_idempotent(qwen: LoadQwen) -> None:
    """A text may end while its caller cancels it."""
    decoder = qwen("instruct").new_decoder()
    decoder.add("a", chat_job())
    decoder.remove("a")
    decoder.remove("a")
    assert decoder.step() == []
    decoder.add("a", chat_job())
    assert [delta.key for delta in decoder.step()] == ["a"]


def test_keys_are_unique(qwen: LoadQwen) -> None:
    """Two texts with one key would be mixed up."""
    decoder = qwen("instruct").new_decoder()
    decoder.add("a", chat_job())
    with pytest.raises(ValueError, match="a is in"):
        decoder.add("a", chat_job())


def test_after_out_of_memory_a_smaller_batch_continues(
    qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text loses tokens."""
    recording = Recording(qwen("instruct").new_decoder())
    recording.decoder.add("a", chat_job())
    recording.step()
    recording.decoder.add("b", chat_job("a hill under a cloud"))

    def reserve(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "reserve", reserve)
        with pytest.raises(OutOfMemory, match="2 texts"):
            recording.step()
        recording.decoder.remove("b")
        recording.step()
    recording.decoder.add("b", chat_job("a hill under a cloud"))
    texts = recording.finish()
    assert texts["a"] == decode_alone(qwen("instruct"), chat_job())
    assert texts["b"] == decode_alone(qwen("instruct"), chat_job("a hill under a cloud"))


def fail_decoding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next pass over the newest tokens of a batch run out of memory."""
    original, failures = QwenModel.hidden_states, iter((True,))

    def hidden_states(self: QwenModel, tokens: Any, positions: Any, cache: Any, **options: Any) -> Any:
        if isinstance(cache, DecodeCache) and next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, tokens, positions, cache, **options)

    monkeypatch.setattr(QwenModel, "hidden_states", hidden_states)


@pytest.mark.parametrize("prefill_tokens", [4096, 6])
def test_out_of_memory_after_a_prefill_repeats_it(
    qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch, prefill_tokens: int
) -> None:
    """Whether a prompt is prefilled as a whole or in chunks, a repeated step changes no text."""
    expected = {prompt: decode_alone(qwen("instruct"), chat_job(prompt)) for prompt in PROMPTS[:2]}
    limit_prefill(monkeypatch, prefill_tokens)
    recording = Recording(qwen("instruct").new_decoder())
    recording.decoder.add(PROMPTS[0], chat_job(PROMPTS[0]))
    while not recording.step():
        continue
    recording.decoder.add(PROMPTS[1], chat_job(PROMPTS[1]))
    chunks = recording.decoder.add("again", chat_job(PROMPTS[1])) // prefill_tokens
    for _ in range(chunks):
        recording.step()
    fail_decoding_once(monkeypatch)
    with pytest.raises(OutOfMemory, match="3 texts"):
        recording.step()
    assert recording.finish() == expected | {"again": expected[PROMPTS[1]]}


def test_the_first_token_takes_one_pass(qwen: LoadQwen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller waits for the prefill alone, also while other texts are decoded in the same step."""
    passes: list[type] = []
    original = QwenModel.hidden_states

    def hidden_states(self: QwenModel, tokens: Any, positions: Any, cache: Any, **options: Any) -> Any:
        passes.append(type(cache))
        return original(self, tokens, positions, cache, **options)

    monkeypatch.setattr(QwenModel, "hidden_states", hidden_states)
    decoder = qwen("instruct").new_decoder()
    decoder.add("a", chat_job())
    assert [(delta.key, delta.tokens_generated) for delta in decoder.step()] == [("a", 1)]
    assert passes == [PrefillCache]
    decoder.add("b", chat_job(PROMPTS[1]))
    assert [(delta.key, delta.tokens_generated) for delta in decoder.step()] == [("a", 2), ("b", 1)]
    assert passes[1:] == [PrefillCache, DecodeCache]


def test_loading_and_unloading_are_idempotent_and_shown_by_info() -> None:
    """A pipeline that was unloaded loads itself for the next text."""
    pipeline = QwenPipeline(find_qwen(None, "base"), "base", device=torch.device("cpu"))
    info = pipeline.info()
    assert (info["loaded"], info["context_length"], info["memory_mib"]) == (False, None, 0)
    pipeline.load()
    pipeline.load()
    info = pipeline.info()
    assert (info["loaded"], info["context_length"], info["dtype"]) == (True, 2048, "float32")
    assert (info["name"], info["variant"], info["inference_engine"]) == ("tiny-qwen/base", "base", "pure")
    assert info["memory_mib"] > 0
    pipeline.unload()
    pipeline.unload()
    assert pipeline.info()["loaded"] is False
    assert decode_alone(pipeline, chat_job())


def test_a_base_checkpoint_is_refused_as_instruct() -> None:
    """It has no chat template."""
    with pytest.raises(ModelLoadError, match="chat template"):
        QwenPipeline(find_qwen(None, "base"), "instruct").load()


def test_a_changed_file_is_not_loaded(tmp_path: Path) -> None:
    """The checksums are verified first."""
    folder = tmp_path / "tiny-qwen"
    shutil.copytree(find_qwen(None, "base").root, folder)
    weights = folder / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelLoadError, match="changed"):
        QwenPipeline(find_qwen(folder, "base"), "base").load()


def test_an_unreadable_checkpoint_is_a_load_error(tmp_path: Path) -> None:
    """A worker without its model must not start."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        QwenPipeline(Checkpoint(tmp_path, "folder"), "base").load()
