"""Training of tiny-sdxl: the model classes of SDXL, small enough for a CPU.

Owns: its architecture, its tokenizers, its training stages, its export and its evaluation.
Handles: scenes, captions, latents, losses.
"""
