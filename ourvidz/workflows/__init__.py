"""The stories: what happens in one job, told without Celery, Redis or torch.

Owns: the order of things within a job.
Speaks: jobs, references, pictures, assets, outcomes.
"""
