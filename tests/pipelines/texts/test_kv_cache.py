"""The KV cache: one row per text, one column per token position."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ourvidz.pipelines.texts.kv_cache import COLUMN_MULTIPLE, DecodeCache, KVCache, PrefillCache

CPU = torch.device("cpu")
LAYERS, HEADS, WIDTH = 2, 3, 4


@pytest.fixture(autouse=True)
def _inference_mode() -> Iterator[None]:
    with torch.inference_mode():
        yield


def new_cache() -> KVCache:
    return KVCache(layers=LAYERS, heads=HEADS, width=WIDTH, device=CPU, dtype=torch.float32)


def numbered(texts: int, tokens: int, *, start: float = 0.0) -> torch.Tensor:
    """(texts, heads, tokens, width): `start` + token index + 100 · text index."""
    base = torch.full((texts, HEADS, tokens, WIDTH), float(start))
    return base + torch.arange(tokens)[None, None, :, None] + 100 * torch.arange(texts)[:, None, None, None]


def capacity(cache: KVCache) -> tuple[int, int]:
    """Rows and columns."""
    return cache.keys.shape[1], cache.keys.shape[3]


def test_each_row_grows_at_its_own_end() -> None:
    """A token's column is its position in the text, whatever the other rows hold."""
    cache = new_cache()
    cache.reserve(2, 8)
    PrefillCache(cache, 0).update(numbered(2, 3), numbered(2, 3), 1)
    decode = DecodeCache(cache, [3, 1], CPU)
    keys, values = decode.update(numbered(2, 1, start=7), numbered(2, 1, start=9), 1)
    assert keys[:, 0, :4, 0].tolist() == [[0, 1, 2, 7], [100, 107, 102, 0]]
    assert values[1, 0, 1, 0] == 109
    assert decode.mask is not None
    assert decode.mask.shape == (2, 1, 1, keys.shape[2])
    assert decode.mask[:, 0, 0, :4].tolist() == [[True] * 4, [True, True, False, False]]
    assert not decode.mask[:, 0, 0, 4:].any()


def test_rows_of_equal_length_need_no_mask() -> None:
    """The fastest attention kernels take none."""
    cache = new_cache()
    cache.reserve(2, 8)
    PrefillCache(cache, 0).update(numbered(2, 3), numbered(2, 3), 0)
    decode = DecodeCache(cache, [3, 3], CPU)
    keys, _ = decode.update(numbered(2, 1, start=7), numbered(2, 1), 0)
    assert decode.mask is None
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2, 7], [100, 101, 102, 107]]


def test_reserve_keeps_the_contents_and_shrinks_a_mostly_unused_cache() -> None:
    """One long text must not occupy its memory for as long as other texts run."""
    cache = new_cache()
    cache.reserve(1, 2)
    PrefillCache(cache, 0).update(numbered(1, 2), numbered(1, 2), 0)
    assert capacity(cache) == (1, COLUMN_MULTIPLE)
    cache.reserve(5, 10 * COLUMN_MULTIPLE)
    assert capacity(cache) == (8, 10 * COLUMN_MULTIPLE)
    cache.reserve(5, 9 * COLUMN_MULTIPLE)
    assert capacity(cache) == (8, 10 * COLUMN_MULTIPLE)
    cache.reserve(2, COLUMN_MULTIPLE)
    assert capacity(cache) == (4, COLUMN_MULTIPLE)
    assert cache.keys[0, 0, 0, :2, 0].tolist() == [0, 1]


def test_move_copies_a_row_over_another() -> None:
    """A gap is closed without moving the rows between."""
    cache = new_cache()
    cache.reserve(3, 4)
    PrefillCache(cache, 0).update(numbered(3, 2), numbered(3, 2), 0)
    cache.move(2, 0, 2)
    assert cache.keys[0, :3, 0, :2, 0].tolist() == [[200, 201], [100, 101], [200, 201]]
