"""Audit log: an append-only Merkle log (RFC 6962) of who did what, when, from where, and how it ended.

Owns: the tree, the files of a log and their rotation, signed checkpoints, and the verification of a log.
Handles: entries as JSON lines, hashes, notes and a store of files. It knows no HTTP requests and no prompts.
"""
