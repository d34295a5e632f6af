"""Recovery: finds what was lost or damaged in the ledger, and repairs it with the ledger's operations.

Owns: the sweep, the check of everything that is stored, the rereading of quarantined jobs.
Handles: records, indexes and findings. Knows no Redis; the message broker is an argument.
"""
