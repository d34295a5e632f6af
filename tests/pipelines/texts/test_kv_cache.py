"""The memory of attention, row by row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ourvidz.pipelines.texts.kv_cache import COLUMN_MULTIPLE, DecodeCache, KVCache, PrefillCache

CPU = torch.device("cpu")
LAYERS, HEADS, WIDTH = 2, 3, 4


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def cache() -> KVCache:
    return KVCache(layers=LAYERS, heads=HEADS, width=WIDTH, device=CPU, dtype=torch.float32)


def some(texts: int, tokens: int, *, number: float = 0.0) -> torch.Tensor:
    made = torch.full((texts, HEADS, tokens, WIDTH), float(number))
    return made + torch.arange(tokens)[None, None, :, None] + 100 * torch.arange(texts)[:, None, None, None]


def room(kept: KVCache) -> tuple[int, int]:
    return kept.keys.shape[1], kept.keys.shape[3]


def test_rows_of_different_lengths_grow_each_at_its_own_end() -> None:
    """The column of a token is its position, whoever else is in."""
    kept = cache()
    kept.reserve(2, 8)
    PrefillCache(kept, 0).update(some(2, 3), some(2, 3), 1)
    going = DecodeCache(kept, [3, 1], CPU)
    keys, values = going.update(some(2, 1, number=7), some(2, 1, number=9), 1)
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2, 7], [100, 107, 102, 0]]
    assert values[1, 0, 1, 0] == 109
    assert going.mask is not None
    assert going.mask[:, 0, 0].tolist() == [[True] * 4, [True, True, False, False]]


def test_rows_of_one_length_need_no_mask() -> None:
    """Without one the fastest kernels can be used."""
    kept = cache()
    kept.reserve(2, 8)
    PrefillCache(kept, 0).update(some(2, 3), some(2, 3), 0)
    going = DecodeCache(kept, [3, 3], CPU)
    keys, _ = going.update(some(2, 1, number=7), some(2, 1), 0)
    assert going.mask is None
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2, 7], [100, 101, 102, 107]]


def test_more_room_keeps_what_is_there_and_little_need_gives_room_back() -> None:
    """One long text must not hold its memory for as long as others go on."""
    kept = cache()
    kept.reserve(1, 2)
    PrefillCache(kept, 0).update(some(1, 2), some(1, 2), 0)
    assert room(kept) == (1, COLUMN_MULTIPLE)
    kept.reserve(5, 10 * COLUMN_MULTIPLE)
    assert room(kept) == (8, 10 * COLUMN_MULTIPLE)
    kept.reserve(5, 9 * COLUMN_MULTIPLE)
    assert room(kept) == (8, 10 * COLUMN_MULTIPLE)
    kept.reserve(2, COLUMN_MULTIPLE)
    assert room(kept) == (4, COLUMN_MULTIPLE)
    assert kept.keys[0, 0, 0, :2, 0].tolist() == [0, 1]


def test_a_moved_row_takes_the_place_of_another() -> None:
    """A gap is closed without touching the rows between."""
    kept = cache()
    kept.reserve(3, 4)
    PrefillCache(kept, 0).update(some(3, 2), some(3, 2), 0)
    kept.move(2, 0, 2)
    assert kept.keys[0, :3, 0, :2, 0].tolist() == [[200, 201], [100, 101], [200, 201]]
