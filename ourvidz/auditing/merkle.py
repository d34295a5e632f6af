"""The Merkle tree of RFC 6962: hashes of leaves and nodes, and the right edge of a growing tree.

https://www.rfc-editor.org/rfc/rfc6962#section-2.1
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

HASH_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees of a tree, the largest first: enough to append and to compute the
    root, about log2(size) hashes.

    Raises `ValueError` if the number of hashes is not that of a tree of this size.
    """

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = list(hashes)
        if size < 0 or len(self.hashes) != size.bit_count():
            raise ValueError("these are not the subtrees of a tree of this size")

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        rest, node = self.size, leaf
        while rest & 1:
            node = node_hash(self.hashes.pop(), node)
            rest >>= 1
        self.hashes.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root of the tree."""
        if not self.hashes:
            return hashlib.sha256().digest()
        *left, root = self.hashes
        for node in reversed(left):
            root = node_hash(node, root)
        return root
