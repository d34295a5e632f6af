"""Turning pictures into files.

Owns: encodings, thumbnails, the mark that says a file is machine-made.
Speaks: pictures and bytes. No jobs, no keys, no storage.
"""
