"""Erasure of all that is stored of one user.

Owns: the erasures that have begun, their steps, and the rewriting of the Redis server's files afterwards.
Handles: user ids, records, storage folders; deleting one job is in `ourvidz.dispatch`.
"""
