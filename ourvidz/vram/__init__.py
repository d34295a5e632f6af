"""Which models may be resident on the GPU.

Owns: the memory of the GPU, measured and budgeted.
Handles: MiB, GPUs, residents. No prompts, no pictures.
"""
