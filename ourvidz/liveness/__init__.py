"""Worker liveness: the heartbeat that a worker sends, and whether a queue has live workers.

Owns: the heartbeat thread; the grace period before a queue without workers refuses jobs.
Speaks: worker rows out to the ledger, queue names in, `WorkerUnavailable` out.
"""
