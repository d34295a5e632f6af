"""Training the small checkpoints that ship with the project.

Owns: synthetic scenes and clips with captions, their recognition in images, and one command per model that
trains, exports and evaluates it.
Handles: scenes, captions, images, losses, weights. The only jobs are those of the evaluation.
"""

from __future__ import annotations

import os

# Must be set before torch is imported: spinning threads make a shared machine up to eight times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
