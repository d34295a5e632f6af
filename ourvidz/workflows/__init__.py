"""The workflows: the stages of one job, without Celery, Redis or torch.

Owns: the order of the stages within a job, and what its outcome reports.
Speaks: jobs, references, images, assets, outcomes.
"""
