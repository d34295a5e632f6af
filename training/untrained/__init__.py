"""Checkpoints with random weights, written in a second: what tests of mechanics run.

Owns: the smallest models of each class set that a pipeline loads. Equal files on every call.
Speaks: folders in the diffusers layout. Nothing here is trained, and nothing of it ships.
"""
