"""Turning jobs into pictures, clips and texts with torch.

Owns: checkpoints, warm pipelines, devices, denoising.
Speaks: prompts, tensors, steps, seeds. No queues, no storage, no callbacks.
"""
