"""Introducing the rooms to each other: which implementation stands behind each seam.

Owns: building the ledger, storage, gate and models from the settings.
Speaks: settings in, objects out. No story of a job is told here.
"""
