"""Seeds of independent random streams."""

from __future__ import annotations

import numpy as np


def seed_for(seed: int, stream: str, *indices: int) -> int:
    """Return an independent 31-bit seed for each (seed, purpose, indices); no two actors share a stream."""
    entropy = [seed, *stream.encode(), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
