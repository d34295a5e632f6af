"""Checkpoints with random weights, built in a second, for tests that need real model classes but no meaning.

Owns: the smallest models of each class set that a pipeline loads. Every build writes equal files.
Handles: folders in the diffusers layout. Nothing here is trained, and nothing of it ships.
"""
