"""Other systems with a no-op task, each configured as its documentation recommends, in a venv of its own.

Owns the table of peers, their environments and their measurement; `systems` holds one script for each peer.
"""
