"""Statistics of the training images, and nothing else."""

import numpy as np

from minarch_jax.data import normalisation
from tests.data import made_images


def test_statistics_are_those_of_the_chosen_images():
  x, _ = made_images.draw(n=1000, shape=(5, 3, 3))
  x[..., 2] //= 9
  indices = np.arange(0, 1000, 3)
  stats = normalisation.statistics(x, indices)
  part = x[indices].astype(np.float64)
  np.testing.assert_allclose(stats[0], part.mean((0, 1, 2)), rtol=1e-7)
  np.testing.assert_allclose(stats[1], part.std((0, 1, 2)), rtol=1e-7)
  np.testing.assert_allclose(
    normalisation.standardise(x, indices, stats),
    (part - stats[0]) / stats[1],
    rtol=1e-5,
    atol=1e-6,
  )
