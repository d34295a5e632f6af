"""The language models that ship, through the pipeline: texts that grow together."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ourvidz.errors import CONTEXT_EXCEEDED, InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.kv_cache import KVCache
from ourvidz.pipelines.texts.qwen import QwenPipeline

Load = Callable[[str], QwenPipeline]
Make = Callable[..., ChatJob]

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


class Heard:
    """What a batch said, text by text."""

    def __init__(self, decoder: BatchDecoder) -> None:
        self.decoder = decoder
        self.texts: defaultdict[str, str] = defaultdict(str)
        self.last: dict[str, TextDelta] = {}

    def step(self) -> list[TextDelta]:
        pieces = self.decoder.step()
        for piece in pieces:
            assert piece.key not in self.last or self.last[piece.key].finish_reason is None
            self.texts[piece.key] += piece.text
            self.last[piece.key] = piece
        return pieces

    def finish(self) -> dict[str, str]:
        while self.step():
            pass
        return dict(self.texts)


def together(pipeline: QwenPipeline, jobs: Mapping[str, ChatJob]) -> Heard:
    heard = Heard(pipeline.new_decoder())
    for key, job in jobs.items():
        heard.decoder.add(key, job)
    heard.finish()
    return heard


def alone(pipeline: QwenPipeline, job: ChatJob) -> str:
    return together(pipeline, {"k": job}).texts["k"]


def test_each_of_eight_texts_is_what_it_is_alone(qwen: Load, chat_job: Make) -> None:
    """They join and leave at different steps: company changes nothing that is said."""
    jobs = {f"t{at}": chat_job(prompt) for at, prompt in enumerate(PROMPTS)}
    expected = {key: alone(qwen("instruct"), job) for key, job in jobs.items()}
    heard = Heard(qwen("instruct").new_decoder())
    for key, job in list(jobs.items())[:3]:
        heard.decoder.add(key, job)
    heard.step()
    heard.decoder.remove("t1")
    for key, job in list(jobs.items())[3:]:
        heard.decoder.add(key, job)
        heard.step()
    heard.decoder.remove("t5")
    said = heard.finish()
    assert all(text for text in expected.values())
    for key in set(jobs) - {"t1", "t5"}:
        assert said[key] == expected[key]
    for key in ("t1", "t5"):
        assert expected[key].startswith(said[key])
        assert len(said[key]) < len(expected[key])


def test_a_text_is_what_plain_transformers_say(qwen: Load, chat_job: Make) -> None:
    """The own loop over the model computes what the library's computes."""
    from training.qwen.generation import TextGenerator

    speaker = TextGenerator(find_qwen(None, "instruct").path)
    talks = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = speaker.chat(talks, max_tokens=48)
    heard = together(qwen("instruct"), {f"t{at}": chat_job(prompt) for at, prompt in enumerate(PROMPTS)})
    assert [heard.texts[f"t{at}"] for at in range(len(PROMPTS))] == expected


def test_shared_key_heads_and_half_precision_work_alike(tmp_path: Path, chat_job: Make) -> None:
    """Real checkpoints share each key head among several others, and run in bfloat16 on a GPU."""
    import transformers

    found = find_qwen(None, "base").path
    shutil.copytree(found, tmp_path, dirs_exist_ok=True)
    config = transformers.Qwen2Config.from_pretrained(found, num_key_value_heads=2)
    torch.manual_seed(3)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path, "folder")
    jobs = {f"t{at}": chat_job(prompt, max_tokens=12) for at, prompt in enumerate(PROMPTS[:4])}
    whole = QwenPipeline(checkpoint, "base", device=torch.device("cpu"))
    texts = together(whole, jobs).texts
    assert len(set(texts.values())) > 1
    for key, job in jobs.items():
        assert texts[key] == alone(whole, job)
    half = QwenPipeline(checkpoint, "base", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert half.info()["dtype"] == "bfloat16"
    assert all(piece.finish_reason for piece in together(half, jobs).last.values())


def test_a_text_ends_by_itself_or_at_its_most_tokens(qwen: Load, chat_job: Make) -> None:
    """Callers are told which it was, and how many tokens were generated."""
    heard = together(qwen("instruct"), {"whole": chat_job(), "cut": chat_job(max_tokens=3)})
    assert (heard.last["whole"].finish_reason, heard.last["cut"].finish_reason) == ("stop", "length")
    assert heard.last["cut"].tokens_generated == 3
    assert 3 < heard.last["whole"].tokens_generated < 48
    assert heard.texts["whole"].startswith(heard.texts["cut"])


def test_a_text_ends_before_its_stop_string(qwen: Load, chat_job: Make) -> None:
    """The string itself, and what came with it, is never shown; a text without it goes on."""
    whole = alone(qwen("instruct"), chat_job())
    stop = whole[12:17]
    heard = together(qwen("instruct"), {"a": chat_job(stop=(stop,)), "b": chat_job(stop=("never",))})
    assert heard.texts == {"a": whole[: whole.index(stop)], "b": whole}
    assert heard.last["a"].finish_reason == "stop"
    assert heard.last["a"].tokens_generated < heard.last["b"].tokens_generated


def test_a_crowd_is_read_a_few_at_a_time(qwen: Load, chat_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading long texts takes long: in between the others go on, and whoever drives them hears cancels."""
    pipeline = qwen("instruct")
    expected = {prompt: alone(pipeline, chat_job(prompt)) for prompt in PROMPTS[:3]}
    monkeypatch.setattr("ourvidz.pipelines.texts.decoding.MAX_PREFILL_TOKENS", 20)
    heard = Heard(pipeline.new_decoder())
    for prompt in expected:
        heard.decoder.add(prompt, chat_job(prompt))
    assert [len(heard.step()) for _ in expected] == [1, 2, 3]
    assert heard.finish() == expected


def test_a_long_text_is_read_by_and_by_while_the_others_go_on(
    qwen: Load, chat_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of many thousand tokens must not stop everybody: and it is the same text in the end."""
    pipeline = qwen("instruct")
    long = ", ".join(PROMPTS[1:6])
    expected = {prompt: alone(pipeline, chat_job(prompt)) for prompt in (PROMPTS[0], long)}
    monkeypatch.setattr("ourvidz.pipelines.texts.decoding.MAX_PREFILL_TOKENS", 20)
    heard = Heard(pipeline.new_decoder())
    for name in ("gone", PROMPTS[0]):
        heard.decoder.add(name, chat_job(PROMPTS[0]))
        heard.step()
    length = heard.decoder.add(long, chat_job(long))
    assert length > 2 * 20
    assert len(heard.step()) == 2, "the others go on"
    heard.decoder.remove("gone")
    while long not in heard.last:
        assert [piece.key for piece in heard.step()][:1] == [PROMPTS[0]]
    assert {name: text for name, text in heard.finish().items() if name != "gone"} == expected


def test_a_long_text_may_leave_before_it_is_read(
    qwen: Load, chat_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller went away: the next one finds everything as if it had never been there."""
    pipeline = qwen("instruct")
    expected = alone(pipeline, chat_job(PROMPTS[0]))
    monkeypatch.setattr("ourvidz.pipelines.texts.decoding.MAX_PREFILL_TOKENS", 4)
    decoder = pipeline.new_decoder()
    decoder.add("long", chat_job(PROMPTS[1]))
    assert decoder.step() == []
    decoder.remove("long")
    decoder.add("next", chat_job(PROMPTS[0]))
    heard = Heard(decoder)
    while not heard.step():
        continue
    assert heard.finish() == {"next": expected}


def test_the_base_model_goes_on_from_the_plain_text(qwen: Load, chat_job: Make) -> None:
    """No template, no roles: what is written is continued."""
    job = chat_job("Prompt: a small star\nEnriched:", stop=("\n",))
    assert alone(qwen("base"), job).startswith(" a small star")


def test_the_same_seed_repeats_and_another_differs(qwen: Load, chat_job: Make) -> None:
    """Whoever likes an answer can have it again, in whatever company."""
    hot: dict[str, Any] = {"temperature": 1.2, "top_p": 1.0}
    first, again, other = (
        alone(qwen("instruct"), chat_job("a fox in the forest", seed=seed, **hot)) for seed in (1, 1, 2)
    )
    assert first == again != other
    jobs = {str(seed): chat_job("a fox in the forest", seed=seed, **hot) for seed in (2, 3, 1)}
    assert together(qwen("instruct"), jobs).texts["1"] == first


def test_greedy_answers_repeat_whatever_the_seed(qwen: Load, chat_job: Make) -> None:
    """Temperature 0 is deterministic."""
    assert alone(qwen("instruct"), chat_job(seed=1)) == alone(qwen("instruct"), chat_job(seed=2))


def test_penalties_change_what_is_said(qwen: Load, chat_job: Make) -> None:
    """The strongest one lets no token come back for long."""
    plain = together(qwen("base"), {"k": chat_job("a a a a a a")})
    heard = together(qwen("base"), {"k": chat_job("a a a a a a", frequency_penalty=2.0)})
    assert heard.texts["k"] != plain.texts["k"]


def test_a_prompt_without_room_for_its_answer_is_refused_with_numbers(qwen: Load, chat_job: Make) -> None:
    """Never a silent cut: the caller learns what to shorten, and the others go on."""
    heard = Heard(qwen("instruct").new_decoder())
    used = heard.decoder.add("a", chat_job())
    with pytest.raises(InvalidParameters) as too_much:
        heard.decoder.add("b", chat_job(max_tokens=2048))
    assert (too_much.value.field, too_much.value.value) == ("max_tokens", 2048)
    assert too_much.value.kind == CONTEXT_EXCEEDED
    assert str(2048 - used) in str(too_much.value.rule)
    with pytest.raises(InvalidParameters) as too_long:
        heard.decoder.add("b", chat_job("hill " * 3000))
    assert (too_long.value.field, too_long.value.kind) == ("messages", CONTEXT_EXCEEDED)
    assert "2047" in str(too_long.value.rule)
    assert heard.finish() == {"a": alone(qwen("instruct"), chat_job())}


def test_prompt_and_answer_may_fill_the_context(qwen: Load, chat_job: Make) -> None:
    """The limit is the model's, to the token."""
    decoder = qwen("instruct").new_decoder()
    used = decoder.add("a", chat_job())
    decoder.add("b", chat_job(max_tokens=2048 - used))
    with pytest.raises(InvalidParameters):
        decoder.add("c", chat_job(max_tokens=2049 - used))


def test_a_text_of_nothing_is_refused(qwen: Load, chat_job: Make) -> None:
    """There is nothing to go on from."""
    with pytest.raises(InvalidParameters) as empty:
        qwen("base").new_decoder().add("a", chat_job(""))
    assert empty.value.field == "messages"


def test_leaving_twice_or_never_joined_is_no_error(qwen: Load, chat_job: Make) -> None:
    """A text may end while its caller goes."""
    decoder = qwen("instruct").new_decoder()
    decoder.add("a", chat_job())
    decoder.remove("a")
    decoder.remove("a")
    assert decoder.step() == []
    decoder.add("a", chat_job())
    assert [piece.key for piece in decoder.step()] == ["a"]


def test_a_key_is_in_once(qwen: Load, chat_job: Make) -> None:
    """Two texts under one name would be mixed up."""
    decoder = qwen("instruct").new_decoder()
    decoder.add("a", chat_job())
    with pytest.raises(ValueError, match="a is in"):
        decoder.add("a", chat_job())


def test_after_a_lack_of_memory_the_texts_are_where_they_were(
    qwen: Load, chat_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer of them can go on."""
    heard = Heard(qwen("instruct").new_decoder())
    heard.decoder.add("a", chat_job())
    heard.step()
    heard.decoder.add("b", chat_job("a hill under a cloud"))

    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as full:
        full.setattr(KVCache, "reserve", refuse)
        with pytest.raises(OutOfMemory, match="2 texts"):
            heard.step()
        heard.decoder.remove("b")
        heard.step()
    heard.decoder.add("b", chat_job("a hill under a cloud"))
    said = heard.finish()
    assert said["a"] == alone(qwen("instruct"), chat_job())
    assert said["b"] == alone(qwen("instruct"), chat_job("a hill under a cloud"))


def test_loading_and_unloading_may_be_repeated(chat_job: Make) -> None:
    """And it can be told what is loaded."""
    pipeline = QwenPipeline(find_qwen(None, "base"), "base", device=torch.device("cpu"))
    cold = pipeline.info()
    assert (cold["loaded"], cold["context_length"], cold["memory_mib"]) == (False, None, 0)
    pipeline.load()
    pipeline.load()
    warm = pipeline.info()
    assert (warm["loaded"], warm["context_length"], warm["dtype"]) == (True, 2048, "float32")
    assert (warm["name"], warm["variant"], warm["inference_engine"]) == ("tiny-qwen/base", "base", "pure")
    assert warm["memory_mib"] > 0
    pipeline.unload()
    pipeline.unload()
    assert pipeline.info()["loaded"] is False
    assert alone(pipeline, chat_job())


def test_a_base_model_is_no_instruct_model() -> None:
    """Without a template it could not tell who speaks."""
    found = find_qwen(None, "base")
    with pytest.raises(ModelLoadError, match="chat template"):
        QwenPipeline(found, "instruct").load()


def test_a_changed_file_is_not_loaded(tmp_path: Path) -> None:
    """Weights that are not the published ones are not run."""
    folder = tmp_path / "tiny-qwen"
    shutil.copytree(find_qwen(None, "base").root, folder)
    weights = folder / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelLoadError, match="changed"):
        QwenPipeline(find_qwen(folder, "base"), "base").load()


def test_a_broken_checkpoint_says_so(tmp_path: Path) -> None:
    """A worker without its model must not start."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        QwenPipeline(Checkpoint(tmp_path, "folder"), "base").load()


def test_a_lent_number_of_threads_is_given_back() -> None:
    """Other models in the process compute on all of them."""
    before = torch.get_num_threads()
    with devices.torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
