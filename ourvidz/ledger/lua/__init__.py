"""The atomic verbs of the Redis ledger, one script a file.

Owns: every write to the ledger's keys.
Speaks: keys, scores, fields. `prelude.lua` goes before each of them.
"""
