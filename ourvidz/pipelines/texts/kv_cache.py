"""The KV cache of texts of different lengths: one row per text, starting at column 0.

A token's column is its position in the text, so no row moves when another text is added or grows. Removing a
text moves the last row into the gap. Columns behind a text's end are masked where they are read.
"""

from __future__ import annotations

from typing import Any

import torch

ROW_MULTIPLE = 4
COLUMN_MULTIPLE = 64
"""Room is reserved in these multiples, because growing the cache copies it. One text alone gets one row."""


class KVCache:
    """Keys and values of all layers, each (layers, rows, heads, columns, width)."""

    def __init__(self, *, layers: int, heads: int, width: int, device: torch.device, dtype: torch.dtype):
        self._shape = (layers, heads, width)
        self._device = device
        self._dtype = dtype
        self.keys, self.values = self._allocate(0, 0)

    @torch.inference_mode()
    def reserve(self, rows: int, columns: int) -> None:
        """Reserve at least these rows and columns, keeping the contents. Shrinks the cache if at least three
        quarters of it are not needed any more."""
        needed = (_round_up(rows, ROW_MULTIPLE) if rows > 1 else rows, _round_up(columns, COLUMN_MULTIPLE))
        current = (self.keys.shape[1], self.keys.shape[3])
        fits = needed[0] <= current[0] and needed[1] <= current[1]
        if fits and needed[0] * needed[1] * 4 > current[0] * current[1]:
            return
        keys, values = self._allocate(*needed)
        rows, columns = min(needed[0], current[0]), min(needed[1], current[1])
        keys[:, :rows, :, :columns] = self.keys[:, :rows, :, :columns]
        values[:, :rows, :, :columns] = self.values[:, :rows, :, :columns]
        self.keys, self.values = keys, values

    @torch.inference_mode()
    def move(self, row: int, to: int, columns: int) -> None:
        """Copy the first `columns` columns of row `row` to row `to`."""
        if row != to:
            self.keys[:, to, :, :columns] = self.keys[:, row, :, :columns]
            self.values[:, to, :, :columns] = self.values[:, row, :, :columns]

    def _allocate(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeroed keys and values, (layers, rows, heads, columns, width) each."""
        layers, heads, width = self._shape
        # Not torch.empty: a masked NaN is still a NaN.
        size = (2, layers, rows, heads, columns, width)
        both = torch.zeros(size, device=self._device, dtype=self._dtype)
        return both[0], both[1]


class PrefillCache:
    """The cache argument of a prefill pass: writes new texts into the rows from `first_row` on. For a prompt
    that is prefilled in chunks, `cached_tokens` tokens of it are in the cache already."""

    def __init__(self, cache: KVCache, first_row: int, *, cached_tokens: int = 0) -> None:
        self._cache = cache
        self._first_row = first_row
        self._cached_tokens = cached_tokens

    def mask(self, positions: torch.Tensor) -> torch.Tensor | None:
        """The attention mask of the tokens at `positions`, (1, 1, tokens, columns); None for a plain causal
        mask over the tokens of this pass."""
        if not self._cached_tokens:
            return None
        columns = torch.arange(int(positions[-1]) + 1, device=positions.device)
        return (columns <= positions[:, None])[None, None]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of a layer, (texts, heads, tokens, width), and return those that the
        tokens of this pass attend to."""
        rows = slice(self._first_row, self._first_row + keys.shape[0])
        end = self._cached_tokens + keys.shape[2]
        self._cache.keys[layer, rows, :, self._cached_tokens : end] = keys
        self._cache.values[layer, rows, :, self._cached_tokens : end] = values
        if not self._cached_tokens:
            return keys, values
        return self._cache.keys[layer, rows, :, :end], self._cache.values[layer, rows, :, :end]


class DecodeCache:
    """The cache argument of a decode pass, which takes one new token per row. `lengths` are the numbers of
    tokens that each row holds already."""

    def __init__(self, cache: KVCache, lengths: list[int], device: torch.device) -> None:
        self._cache = cache
        self._rows = len(lengths)
        self.positions = torch.tensor(lengths, device=device)
        self._equal_lengths = min(lengths) == max(lengths)
        self._columns = self._end = max(lengths) + 1
        if not self._equal_lengths:
            # The kernels that take a mask see a new shape every 64 steps, not in every one. Rows of equal
            # length take none: the kernel for them divides a row among processors, for any length.
            self._columns = min(_round_up(self._end, COLUMN_MULTIPLE), cache.keys.shape[3])
        self._row_indices = torch.arange(self._rows, device=device)

    @property
    def mask(self) -> torch.Tensor | None:
        """The attention mask, (rows, 1, 1, columns); None if all rows have the same length."""
        if self._equal_lengths:
            return None
        columns = torch.arange(self._columns, device=self.positions.device)
        return (columns <= self.positions[:, None])[:, None, None]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of the new tokens in a layer, (rows, heads, 1, width), and return those
        of all tokens, (rows, heads, columns, width), with the columns of the mask."""
        all_keys, all_values = self._cache.keys[layer, : self._rows], self._cache.values[layer, : self._rows]
        if self._equal_lengths:
            all_keys[:, :, self._end - 1] = keys[:, :, 0]
            all_values[:, :, self._end - 1] = values[:, :, 0]
        else:
            all_keys[self._row_indices, :, self.positions] = keys[:, :, 0]
            all_values[self._row_indices, :, self.positions] = values[:, :, 0]
        return all_keys[:, :, : self._columns], all_values[:, :, : self._columns]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
