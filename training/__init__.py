"""Training the small checkpoints that ship with the project.

Owns: the world of captioned shapes and clips, the evaluator that measures pictures of it, one command per
model that trains, exports and measures it.
Speaks: scenes, captions, pictures, losses, weights. No jobs but the one it evaluates with, no queues.
"""

from __future__ import annotations

import os

# Before torch is imported: threads that spin while they wait make a shared machine up to eight times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
