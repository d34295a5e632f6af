"""Worker liveness: the heartbeat that a worker sends, and whether a queue has live workers.

Owns the heartbeat thread, and the grace period before a queue without workers refuses jobs.
Handles ledger rows of workers, and queue names; knows no jobs.
"""
