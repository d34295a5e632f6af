"""Language models: conversations and completions, many at once.

Owns: Qwen on its device and its decoding, token by token; other people's servers behind the same protocol.
Speaks: text jobs and pieces of text. `qwen` and `remote` are the two ways to make them.
"""
