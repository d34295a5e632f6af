"""Training tiny-qwen: the real Qwen2 class, a base model and an instruct model of it, small enough for two
processor cores.

Owns: its corpus of prompts and conversations, its tokenizer, its stages from the base model to the exported
folders, its evaluation.
Speaks: prompts, conversations, tokens, losses.
"""
