"""Wiring: which implementation stands behind each interface.

Owns: building the ledger, storage, gate and models from the settings.
Speaks: settings in, objects out. No job is run here.
"""
