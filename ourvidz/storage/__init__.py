"""Keeping what jobs made.

Owns: keys, buckets, atomic writes, back ends.
Speaks: bytes and keys. No pictures, no jobs.
"""
