"""Curves that only rise: equal to scipy, and crossings at known places."""

import numpy as np
import pytest
from scipy import optimize

from minarch_jax.analysis import monotone


@pytest.mark.parametrize("increasing", [True, False])
def test_isotonic_rows_equal_scipy_one_by_one(increasing):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(50, 9))
  weights = rng.uniform(0.5, 2, 9)
  fitted = monotone.isotonic(rows, weights, increasing)
  for row, fit in zip(rows, fitted, strict=True):
    expected = optimize.isotonic_regression(
      row, weights=weights, increasing=increasing
    ).x
    np.testing.assert_allclose(fit, expected, atol=1e-9)


def test_threshold_finds_a_known_place():
  x = np.linspace(0, 6, 60)
  p = 1 / (1 + np.exp(-(x - 3) / 0.4))
  trials = np.full(60, 200.0)
  for level in (0.5, 0.95):
    where, low, high = monotone.threshold(
      x, np.round(p * 200), trials, level, 0.95
    )
    truth = 3 + 0.4 * np.log(level / (1 - level))
    assert where == pytest.approx(truth, abs=0.05)
    assert low < truth < high < low + 0.5


def test_threshold_of_separated_and_one_sided_data():
  x = np.arange(6.0)
  step = np.array([0, 0, 0, 5, 5, 5.0])
  where, low, high = monotone.threshold(x, step, np.full(6, 5.0), 0.5, 0.95)
  assert 2 < where < 3 and low < 2.1 and high > 2.9
  every = np.full(6, 5.0)
  where, low, _ = monotone.threshold(x, every, every, 0.95, 0.95)
  assert where == low == -np.inf
  where, _, high = monotone.threshold(x, 0 * every, every, 0.95, 0.95)
  assert where == high == np.inf
  assert np.isnan(monotone.threshold(x[:0], x[:0], x[:0], 0.5, 0.95)[0])
