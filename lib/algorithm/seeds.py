"""Seeds derived from several numbers, so that randomness depends on these alone."""

from __future__ import annotations

import numpy as np


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on all of `parts`, which are whole numbers from 0 on."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
