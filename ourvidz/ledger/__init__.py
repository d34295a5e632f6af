"""What happened to every job.

Owns: records, claims and their fences, leases, progress, outcomes, the outbox, who is at work, the sweep.
Speaks: job ids, runs, attempts, due times in seconds. No prompts are read here, nothing is sent.
"""
