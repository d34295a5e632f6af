"""The types of what the ledger stores, and how they are written.

Owns: records, claims, outbox events, stream items and workers; their flat text fields; the record version.
Handles: hashes and JSON. Reads and writes no server: the ledger does.
"""
