"""The ledger: the record of every job, in Redis.

Owns: records, claims and their fences, leases, progress, outcomes, the outbox, workers, the sweep.
Handles: job ids, runs, attempts, due times in seconds. Reads no prompts and sends nothing.
"""
