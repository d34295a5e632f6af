"""Model repositories on the hub, and the checkpoints that were pulled from them.

Owns: which repositories hold a family's checkpoint, downloads by revision, the manifest of a pulled folder.
Handles: file names, sizes, digests and bytes; loads no weights and knows no jobs.
"""
