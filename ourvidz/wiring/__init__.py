"""Wiring: which implementation stands behind each interface.

Owns building the ledger, storage, gate and models from the settings.
Handles settings and the objects built from them; runs no job.
"""
