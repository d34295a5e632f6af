"""Prompt parsing and tokenization before encoding, without torch.

Owns the weight syntax, the tokens and chunks of a prompt, and the shapes of its embeddings.
Handles text, weighted fragments, tokens and counts; knows no torch and no jobs.
"""
