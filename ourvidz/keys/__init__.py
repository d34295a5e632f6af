"""API keys that are created while the installation runs, and who a request comes from.

Owns: the caller of a request with its scopes and the users it is bound to; stored keys and their scripts;
tokens for browsers.
Handles key ids, secrets, hashes, scopes; which route needs which scope is in `web`.
"""
