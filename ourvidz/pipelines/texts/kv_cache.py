"""What attention remembers of texts of different lengths: one row a text, each from column 0.

A token's column is its position, so no row has to move when another comes, grows or goes: joining writes a
row, leaving closes the gap with the last one. What lies behind a row's end is never read.
"""

from __future__ import annotations

from typing import Any

import torch

ROWS = 4
COLUMNS = 64
"""Room is reserved in multiples of these, but for a lone text: a cache that grows is copied."""


class KeyValues:
    """Keys and values of all layers, (layers, rows, heads, columns, width) each."""

    def __init__(self, *, layers: int, heads: int, width: int, device: torch.device, dtype: torch.dtype):
        self._shape = (layers, heads, width)
        self._device = device
        self._dtype = dtype
        self.keys, self.values = self._empty(0, 0)

    @torch.inference_mode()
    def reserve(self, rows: int, columns: int) -> None:
        """Make room for so many rows and columns; what is there stays. Gives room back when three quarters
        of it are not needed any more."""
        wanted = (_rounded(rows, ROWS) if rows > 1 else rows, _rounded(columns, COLUMNS))
        has = (self.keys.shape[1], self.keys.shape[3])
        if wanted[0] <= has[0] and wanted[1] <= has[1] and wanted[0] * wanted[1] * 4 > has[0] * has[1]:
            return
        keys, values = self._empty(*wanted)
        rows, columns = min(wanted[0], has[0]), min(wanted[1], has[1])
        keys[:, :rows, :, :columns] = self.keys[:, :rows, :, :columns]
        values[:, :rows, :, :columns] = self.values[:, :rows, :, :columns]
        self.keys, self.values = keys, values

    @torch.inference_mode()
    def move(self, row: int, to: int, columns: int) -> None:
        """Write the first `columns` of one row over those of another."""
        if row != to:
            self.keys[:, to, :, :columns] = self.keys[:, row, :, :columns]
            self.values[:, to, :, :columns] = self.values[:, row, :, :columns]

    def _empty(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        layers, heads, width = self._shape
        # Not torch.empty: a masked NaN is still a NaN.
        size = (2, layers, rows, heads, columns, width)
        both = torch.zeros(size, device=self._device, dtype=self._dtype)
        return both[0], both[1]


class Opening:
    """What a forward pass over new texts is given: writes them into the rows from `first` on. Of a text that
    is read in stretches, `begun` tokens are there already."""

    def __init__(self, cache: KeyValues, first: int, *, begun: int = 0) -> None:
        self._cache = cache
        self._first = first
        self._begun = begun

    def mask(self, positions: torch.Tensor) -> torch.Tensor | None:
        """What the tokens at `positions` may see, (1, 1, tokens, columns); None when that is whatever came
        before them in this pass."""
        if not self._begun:
            return None
        columns = torch.arange(int(positions[-1]) + 1, device=positions.device)
        return (columns <= positions[:, None])[None, None]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys and values of a layer, (texts, heads, tokens, width): all that there is to see."""
        rows, end = slice(self._first, self._first + keys.shape[0]), self._begun + keys.shape[2]
        self._cache.keys[layer, rows, :, self._begun : end] = keys
        self._cache.values[layer, rows, :, self._begun : end] = values
        if not self._begun:
            return keys, values
        return self._cache.keys[layer, rows, :, :end], self._cache.values[layer, rows, :, :end]


class Going:
    """What a forward pass over one more token of every row is given: `lengths` are those before it."""

    def __init__(self, cache: KeyValues, lengths: list[int], device: torch.device) -> None:
        self._cache = cache
        self._rows = len(lengths)
        self._columns = max(lengths) + 1
        self.positions = torch.tensor(lengths, device=device)
        self._even = min(lengths) == max(lengths)
        self._each = torch.arange(self._rows, device=device)

    @property
    def mask(self) -> torch.Tensor | None:
        """What each row may see, (rows, 1, 1, columns); None when that is everything."""
        if self._even:
            return None
        columns = torch.arange(self._columns, device=self.positions.device)
        return (columns <= self.positions[:, None])[:, None, None]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the newest keys and values of a layer, (rows, heads, 1, width); all of it, as far as the
        longest row goes."""
        all_keys, all_values = self._cache.keys[layer, : self._rows], self._cache.values[layer, : self._rows]
        if self._even:
            all_keys[:, :, self._columns - 1] = keys[:, :, 0]
            all_values[:, :, self._columns - 1] = values[:, :, 0]
        else:
            all_keys[self._each, :, self.positions] = keys[:, :, 0]
            all_values[self._each, :, self.positions] = values[:, :, 0]
        return all_keys[:, :, : self._columns], all_values[:, :, : self._columns]


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
