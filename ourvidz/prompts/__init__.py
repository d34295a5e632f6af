"""Prompt parsing and tokenization before encoding, without torch.

Owns the weight syntax, the tokens and chunks of a prompt, the shapes of its embeddings, and which texts the
encoders read for a job.
Handles text, weighted fragments, tokens and counts; knows no torch.
"""
