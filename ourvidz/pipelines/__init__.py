"""Pipelines: generate images, videos and texts with torch.

Owns: checkpoints on disk, loaded models, devices, denoising, decoding.
Handles: jobs, prompts, tensors, steps, seeds. Does not handle queues, storage or callbacks.
"""
