"""What a job is.

Owns: the catalog of job types, the canonical frozen jobs, the dialects callers write, how a job ends.
Speaks: types, prompts, sizes, seeds, outcomes. No queues of a broker, no HTTP, no models.
"""
