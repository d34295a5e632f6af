"""Telemetry: what a worker reports of ended jobs and of itself, beside callbacks.

Owns: the documents of worker metrics and completion stats, the thread that posts them, the status line.
Handles: outcomes, counts, bytes and URLs; knows no images, no models and no Celery. Nobody waits for it.
"""
