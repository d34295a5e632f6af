"""Training tiny-sdxl: the real SDXL class set, small enough for two processor cores.

Owns: its architecture, its tokenizers, the stages from the VAE to the exported folder, its evaluation.
Speaks: scenes, captions, latents, losses.
"""
