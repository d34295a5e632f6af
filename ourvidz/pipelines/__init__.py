"""Pipelines: generate images, videos and texts with torch.

Owns: checkpoints on disk, loaded models, devices, denoising, decoding.
Speaks: jobs, prompts, tensors, steps, seeds. Knows no queues, no storage and no callbacks.
"""
