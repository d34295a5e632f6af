"""The workflows: the stages of one job, without Celery, Redis or torch.

Owns the order of the stages within a job, and what its outcome reports.
Handles jobs, references, images, assets, outcomes.
"""
