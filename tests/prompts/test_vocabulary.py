"""CLIP's vocabulary from an installed package, and the tokenizers of SDXL that are built from it."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copytree
from types import ModuleType

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED, SDXL_BASE_CONFIG
from ourvidz.prompts import vocabulary
from ourvidz.prompts.clip import read_tokenizer
from ourvidz.prompts.vocabulary import find_vocabulary, read_vocabulary

pytestmark = pytest.mark.model

CONFIG = PACKAGED / SDXL_BASE_CONFIG
SPECIAL = [
    "<|endoftext|>",
    "<|startoftext|>",
    "!",
    "!!",
    "'s",
    "</w>",
    "\u00a0",
    "e\u0301",
    "½",
    "İ",
    "👩‍👩‍👧",
]
WORDS = ["a", "red", "Fox", "in", "the", "snow,", "(sharp:1.3)", "8k", "don't", "photo-realistic", "[x]"]


def clip_release() -> ModuleType:
    """CLIP's own tokenizer. The package itself cannot be imported without torchvision."""
    file = find_vocabulary().with_name("simple_tokenizer.py")
    spec = spec_from_file_location("clip_simple_tokenizer", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def texts(count: int = 10_000) -> list[str]:
    """Texts of words, special cases and letters of all scripts that Unicode has."""
    letters: dict[str, list[str]] = {}
    # Every seventh of the 100,000 ideographs and syllables, and all others; no private characters.
    for code in (
        *range(0x3400),
        *range(0x3400, 0xE000, 7),
        *range(0xF900, 0x20000),
        *range(0x20000, 0x30000, 7),
    ):
        letter = chr(code)
        if unicodedata.category(letter)[0] in "LMNPS":
            letters.setdefault(unicodedata.name(letter, "OTHER").split(" ")[0], []).append(letter)
    assert len(letters) > 300
    choose, scripts = random.Random(20261128), sorted(letters)

    def word(index: int) -> str:
        kind = choose.random()
        if kind < 0.3:
            return choose.choice(WORDS)
        if kind < 0.4:
            return choose.choice(SPECIAL)
        return "".join(choose.choices(letters[scripts[index % len(scripts)]], k=choose.randint(1, 8)))

    return [
        choose.choice(["", " "]).join(word(index) for _ in range(choose.randint(0, 6)))
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tokenizer folders with the files that SDXL base was released with, written from CLIP's own
    tokenizer."""
    release = clip_release().SimpleTokenizer()
    folder = tmp_path_factory.mktemp("released")
    merges = sorted(release.bpe_ranks, key=release.bpe_ranks.__getitem__)
    for name in ("tokenizer", "tokenizer_2"):
        target = copytree(CONFIG / name, folder / name)
        (target / "vocab.json").write_text(json.dumps(release.encoder))
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
        config = json.loads((target / "tokenizer_config.json").read_text())
        tokens = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        (target / "special_tokens_map.json").write_text(json.dumps(tokens))
    return folder


def test_the_vocabulary_is_that_of_clips_release() -> None:
    """Ids and priorities of CLIP's own tokenizer, for all 49,408 tokens."""
    release = clip_release().SimpleTokenizer()
    tokens, merges = read_vocabulary()
    assert tokens == release.encoder
    assert {pair: rank for rank, pair in enumerate(merges)} == release.bpe_ranks


@pytest.mark.parametrize(("name", "padding"), [("tokenizer", 49407), ("tokenizer_2", 0)])
def test_tokens_equal_those_of_the_released_files(released: Path, name: str, padding: int) -> None:
    """10,000 texts of all scripts, in the worker and in the shim. The second tokenizer pads with `!`, so that
    an exclamation mark has another token there."""
    from transformers import CLIPTokenizer

    from ourvidz.pipelines.sdxl import single_file

    reference = CLIPTokenizer.from_pretrained(released / name, local_files_only=True)
    worker, shim = single_file.read_tokenizer(CONFIG / name), read_tokenizer(CONFIG / name)
    prompts = texts()
    backends = (reference.backend_tokenizer, worker.backend_tokenizer, shim._tokenizer)
    expected, *others = (
        [encoding.tokens for encoding in backend.encode_batch_fast(prompts, add_special_tokens=False)]
        for backend in backends
    )
    assert others == [expected, expected]
    options = {"padding": "max_length", "truncation": True, "max_length": 77}
    padded = worker(prompts[:100], **options)["input_ids"]
    assert padded == reference(prompts[:100], **options)["input_ids"]
    assert worker("a fox", **options)["input_ids"][-1] == worker.pad_token_id == padding
    assert worker.model_max_length == reference.model_max_length == shim.context == 77


def test_a_file_of_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same name may have another vocabulary, whose tokens would be nonsense to the model."""
    package = tmp_path / "other_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vocabulary, "PACKAGES", ("no_such_package", "other_clip"))
    read_vocabulary.cache_clear()
    try:
        with pytest.raises(ModelLoadError, match=r"pip install 'ourvidz\[single-file\]'"):
            read_vocabulary()
        file = package / vocabulary.FILE
        file.write_bytes(gzip.compress(b"#version\na b\n"))
        with pytest.raises(ModelLoadError, match="has another checksum"):
            read_vocabulary()
        file.write_bytes(b"not compressed")
        with pytest.raises(ModelLoadError, match="cannot be read"):
            read_vocabulary()
    finally:
        read_vocabulary.cache_clear()
