"""The ledger: the record of every job, in Redis.

Owns: every operation on records, claims, fences, leases, outcomes, the outbox and workers, with its script.
Handles: job ids, runs, attempts, due times in seconds. Reads no prompts and sends nothing.
"""
