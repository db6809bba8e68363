"""A made-up data set of tiny images: a few classes around their means."""

import numpy as np

from minarch_jax.types import Batch, Dataset

SHAPE, CLASSES = (4, 4, 1), 3


def dataset(*sizes: int, spread: float = 1.0, fingerprint: str = "0"):
  """Draws training, validation and test images, equally often of each class.

  `spread` is the distance of the classes' means in units of the noise.
  """
  rng = np.random.default_rng(0)
  means = spread * rng.normal(size=(CLASSES, *SHAPE))

  def split(count):
    y = (np.arange(count) % CLASSES).astype(np.int32)
    noise = rng.normal(size=(count, *SHAPE))
    return Batch((means[y] + noise).astype(np.float32), y)

  return Dataset(
    "made-up", *map(split, sizes), CLASSES, fingerprint=fingerprint
  )
