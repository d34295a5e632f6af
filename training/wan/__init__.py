"""Training of tiny-wan: the model classes of Wan 2.1 text-to-video, small enough for a CPU.

Owns: its architecture, its tokenizer, its training stages, its export and its evaluation.
Handles: clips, captions, latents, losses.
"""
