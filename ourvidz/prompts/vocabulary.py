"""CLIP's vocabulary, read from an installed package that has it.

SDXL's single files hold no tokenizer. All of them use the vocabulary that OpenAI released with CLIP (MIT
licence); several packages on the index contain that one file. It is read, and the package is not imported.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from ourvidz.errors import ModelLoadError

PACKAGES = ("clip", "open_clip")
"""Modules that have the file: those of openai-clip (the extra `single-file`) and clip-anytorch, and that of
open_clip_torch."""
FILE = "bpe_simple_vocab_16e6.txt.gz"
SHA256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"
"""Of the uncompressed content."""
SIZE = 49_408
"""Tokens of the vocabulary."""
_BYTES = 256
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")

Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]
"""Token ids by token, and the merges in order of priority."""


def find_vocabulary() -> Path:
    """The vocabulary file of the first of the packages that is installed and has it. Raises `ModelLoadError`
    if there is none."""
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            file = Path(folder) / FILE
            if file.is_file():
                return file
    raise ModelLoadError(
        "CLIP's vocabulary is missing: pip install 'ourvidz[single-file]', or set OURVIDZ_SDXL_CONFIG"
        " to a diffusers folder of SDXL."
    )


@lru_cache(maxsize=1)
def read_vocabulary() -> Vocabulary:
    """CLIP's vocabulary. Raises `ModelLoadError` if no package has it, or if its file is another one."""
    file = find_vocabulary()
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ModelLoadError(f"{file} is not CLIP's vocabulary: its content has another checksum.")
    return _parse(content.decode())


def _parse(text: str) -> Vocabulary:
    """The first line is a comment; the file has more merges than CLIP uses."""
    count = SIZE - 2 * _BYTES - len(_SPECIAL)
    pairs = [line.split() for line in text.split("\n")[1 : count + 1]]
    merges = [(left, right) for left, right in pairs]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), *_SPECIAL]
    return {token: number for number, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE, in CLIP's order: printable Latin-1 characters
    stand for themselves and come first; the others are moved above U+0100."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = _BYTES - len(printable)
    return [chr(byte) for byte in printable] + [chr(_BYTES + number) for number in range(others)]
