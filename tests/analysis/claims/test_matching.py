"""Pairs of architectures matched in size."""

import numpy as np

from minarch_jax.analysis.claims import matching


def test_matching_is_one_to_one_and_within_the_tolerance():
  a, b = np.array([100, 205, 1000]), np.array([104, 108, 210, 1200])
  assert matching.matched(a, b, 0.1) == [(0, 0), (1, 2)]
  assert matching.matched(a, b[:0], 0.1) == []
