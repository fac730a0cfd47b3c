"""Chance that is the same in every run; UNDERSTUDY_SEED=n tries another, or repeats what such a try found."""

from __future__ import annotations

import os
import random


def seeded() -> random.Random:
    seed = int(os.environ.get("UNDERSTUDY_SEED", 1))
    print(f"UNDERSTUDY_SEED={seed}")
    return random.Random(seed)
