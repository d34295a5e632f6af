"""SDXL: generates images from a prompt and an optional reference image.

Owns: the loaded SDXL checkpoint, prompt encoding, image-to-image, IP-Adapter, LoRA files, schedulers.
Handles: image jobs and images. `pipeline` is the entry point.
"""
