"""Jobs: parses what callers send into frozen, validated jobs.

Owns the catalog of job types, the jobs themselves, the accepted payload dialects, and the outcome of a job.
Handles types, prompts, sizes, seeds and outcomes; knows no broker, HTTP or models.
"""
