"""Synthetic sets: difficulty is a dial."""

import numpy as np

from minarch_jax.data import synthetic


def test_synthetic_sets_are_as_hard_as_they_say():
  def nearest_mean(name):
    raw = synthetic.SOURCE.read(name, None)
    x, test_x = (
      a.reshape(len(a), -1).astype(float) for a in (raw.x, raw.test_x)
    )
    means = np.stack([x[raw.y == c].mean(0) for c in range(4)])
    distances = ((test_x[:, None] - means) ** 2).sum(-1)
    return np.mean(distances.argmin(1) == raw.test_y)

  accuracies = [
    nearest_mean(f"synthetic:{d}") for d in (0, "easy", 0.3, "hard")
  ]
  assert accuracies[0] == 1.0 and accuracies[1] > 0.99
  assert accuracies[0] >= accuracies[1] > accuracies[2] > accuracies[3]
  assert nearest_mean("synthetic:1") < 0.35
