"""Builds CLIP's tokenizer from the files of a checkpoint, with the same results as transformers.

The library tokenizers is imported when the first one is built: a control host has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ourvidz.errors import ModelLoadError
from ourvidz.prompts.files import read_json, read_text
from ourvidz.prompts.tokens import CONTEXT, WORD_END, PromptTokenizer
from ourvidz.prompts.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# The splits of CLIP's own tokenizer.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_END_OF_TEXT = "<|endoftext|>"
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


def read_tokenizer(folder: Path) -> PromptTokenizer:
    """The CLIP tokenizer in a folder: its `tokenizer.json`, or `vocab.json` and `merges.txt`. A folder with
    none of them, only a config, has the vocabulary of CLIP's release, which an installed package provides.

    Raises `ModelLoadError`, which names the file, if one is missing or damaged.
    """
    config = read_json(folder / "tokenizer_config.json")
    fast_file = folder / "tokenizer.json"
    file = fast_file if fast_file.is_file() else folder / "vocab.json"
    released = not file.is_file() and not (folder / "merges.txt").is_file()
    document = {} if released else read_json(file)
    try:
        if released:
            (vocabulary, merges), added = read_vocabulary(), []
        elif file == fast_file:
            model, added = document["model"], document.get("added_tokens", [])
            vocabulary, merges = model["vocab"], [_merge(line) for line in model["merges"]]
        else:
            vocabulary, merges, added = document, _read_merges(folder / "merges.txt"), []
        built = _build(vocabulary, merges, str(_content(config.get("unk_token", _END_OF_TEXT))))
        built.add_tokens(_added_tokens(folder, config, added))
        return PromptTokenizer(folder.name, built, int(config.get("model_max_length", CONTEXT)))
    except ModelLoadError:
        raise
    except Exception as error:
        # The tokenizers library raises bare exceptions; wrong shapes raise KeyError, TypeError, ValueError.
        raise ModelLoadError(f"{file} is not a CLIP tokenizer ({type(error).__name__}).") from error


def _build(vocabulary: dict[str, int], merges: list[tuple[str, str]], unknown: str) -> Tokenizer:
    """Byte-level BPE with CLIP's normaliser: NFC, single spaces, lower case."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _added_tokens(folder: Path, config: dict[str, Any], added: list[dict[str, Any]]) -> list[AddedToken]:
    """The added tokens, which are matched before the text is split; later ones override earlier ones.

    Newer folders list them in `tokenizer_config.json`; older ones define them by the named tokens and to
    `special_tokens_map.json` or `tokenizer.json`.
    """
    token_config = config
    added_tokens = config.get("added_tokens_decoder")
    if added_tokens is None:
        older = folder / "special_tokens_map.json"
        token_config = config | (read_json(older) if older.is_file() else {})
        added_tokens = {token["id"]: token for token in added}
    tokens = [_added_token(added_tokens[at]) for at in sorted(added_tokens, key=int)]
    contents = {token.content for token in tokens}
    names = [
        token_config.get(name, _END_OF_TEXT) for name in _NAMED if name in token_config or name == "unk_token"
    ]
    return tokens + [_added_token(name) for name in names if _content(name) not in contents]


def _added_token(token: str | dict[str, Any]) -> AddedToken:
    """The added token of a config entry, as special token with the flags of the entry."""
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(
        token["content"], special=True, **{flag: token[flag] for flag in _FLAGS if flag in token}
    )


def _content(token: str | dict[str, Any]) -> str:
    """The text of a token entry."""
    return token if isinstance(token, str) else str(token["content"])


def _read_merges(file: Path) -> list[tuple[str, str]]:
    """The merges in `merges.txt`, in order of priority."""
    lines = read_text(file).splitlines()
    return [_merge(line) for line in lines if line.strip() and not line.startswith("#version")]


def _merge(line: str | list[str]) -> tuple[str, str]:
    """The two parts of a merge."""
    left, right = line.split(" ") if isinstance(line, str) else line
    return left, right
