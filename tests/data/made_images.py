"""Made-up images as sources give them."""

import numpy as np


def draw(seed=0, n=90, shape=(4, 4, 2), classes=3):
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
  return x, np.arange(n, dtype=np.int32) % classes
