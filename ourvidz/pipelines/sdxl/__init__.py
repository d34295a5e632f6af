"""SDXL: words, and a picture to begin with, to pictures.

Owns: the SDXL checkpoint on its device, Compel's conditioning, img2img, adapters, LoRA files, schedulers.
Speaks: image jobs and pictures. Starts at `pipeline`, which climbs the stairs.
"""
