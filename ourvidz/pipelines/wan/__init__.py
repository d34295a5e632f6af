"""Wan: words, and pictures to follow, to clips.

Owns: Wan checkpoints of every kind and layout on their device, references in latents, solvers, step caches.
Speaks: video jobs and clips. Starts at `pipeline`, which climbs the stairs.
"""
