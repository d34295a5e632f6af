"""Wan: generates clips from a prompt and optional reference images.

Owns: loaded Wan checkpoints of every model and layout, reference images, solvers, step caches.
Handles: video jobs and clips. `pipeline` is the entry point.
"""
