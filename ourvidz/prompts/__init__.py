"""Reading what people write before a model does.

Owns: the weights syntax, the tokens and chunks of a prompt, the shapes they become.
Speaks: text, weighted fragments, tokens, counts. No torch, no jobs.
"""
