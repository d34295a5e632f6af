"""Language models: chat and text completions, many texts in one batch.

Owns: loaded Qwen checkpoints and their decoding loop; clients of servers with the OpenAI API.
Handles: chat jobs and text deltas. The entry points are `qwen`, `remote` and `residency`.
"""
