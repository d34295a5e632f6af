"""Training of tiny-qwen: a base model and an instruct model of the Qwen2 class, small enough for a CPU.

Owns: its corpora, its tokenizer, its training stages, its export and its evaluation.
Handles: prompts, conversations, tokens, losses.
"""
