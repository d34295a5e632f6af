"""Storage of assets.

Owns storage keys, buckets, atomic writes, and the storage back ends.
Handles bytes and keys; knows no images and no jobs.
"""
