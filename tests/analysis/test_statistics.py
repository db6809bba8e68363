"""The wrappers equal scipy where scipy answers, and stay quiet elsewhere."""

import itertools

import numpy as np
import pytest
from scipy import stats

from minarch_jax.analysis import statistics


def test_wilson_equals_binomtest_for_every_cell():
  hits = np.array([[0, 1, 5], [3, 0, 2]])
  trials = np.array([[5, 5, 5], [7, 0, 2]])
  low, high = statistics.wilson(hits, trials, 0.95)
  for i, j in itertools.product(range(2), range(3)):
    if not trials[i, j]:
      assert np.isnan(low[i, j]) and np.isnan(high[i, j])
      continue
    expected = stats.binomtest(
      int(hits[i, j]), int(trials[i, j])
    ).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((low[i, j], high[i, j]), tuple(expected))


@pytest.mark.parametrize("trials", [144, 1000, 5000])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_chance_hits_is_the_smallest_significant_count(trials, classes):
  hits = statistics.chance_hits(trials, classes, 0.001)

  def p(k):
    return stats.binomtest(k, trials, 1 / classes, "greater").pvalue

  assert p(hits) < 0.001 <= p(hits - 1)


def test_moments_and_interval_ignore_missing_values():
  values = np.array([[1.0, 2.0, 4.0, np.nan], [3.0, np.nan, np.nan, np.nan]])
  mean, low, high, n = statistics.mean_interval(values, 0.9)
  expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0.0).confidence_interval(0.9)
  np.testing.assert_allclose((low[0], high[0]), tuple(expected))
  assert mean.tolist() == [7 / 3, 3.0] and n.tolist() == [3, 1]
  assert np.isnan(low[1]) and np.isnan(high[1])


def test_empty_and_constant_samples_do_not_warn():
  statistics.moments(np.empty((2, 0)))
  mean, low, high, _ = statistics.mean_interval(np.ones((1, 5)), 0.95)
  assert mean == low == high == 1.0


def test_tests_equal_scipy():
  sample = np.array([0.004, -0.002, 0.006, 0.001, 0.003])
  n, mean, deviation = statistics.moments(sample)
  lower = stats.ttest_1samp(sample, 0.01, alternative="less").pvalue
  upper = stats.ttest_1samp(sample, -0.01, alternative="greater").pvalue
  assert statistics.one_sided_p(mean, deviation, n, 0.01) == pytest.approx(
    lower
  )
  assert statistics.tost(mean, deviation, n, 0.01) == pytest.approx(
    max(lower, upper)
  )
  assert statistics.two_sided_p(mean, deviation, n) == pytest.approx(
    stats.ttest_1samp(sample, 0.0).pvalue
  )


@pytest.mark.parametrize(
  ("mean", "deviation", "n", "expected"),
  [
    (0.0, 0.0, 5, 0.0),  # exactly no drop in every seed: shown to be free
    (0.02, 0.0, 5, 1.0),
    (0.01, 0.0, 5, 1.0),  # at the margin is not below it
    (0.0, np.nan, 1, 1.0),  # one seed shows nothing
  ],
)
def test_one_sided_p_of_degenerate_samples(mean, deviation, n, expected):
  assert (
    statistics.one_sided_p(
      np.array(mean), np.array(deviation), np.array(n), 0.01
    )
    == expected
  )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_small_resamples_are_the_exact_bootstrap(n):
  counts, p = statistics.resamples(n, 2000, np.random.default_rng(0))
  assert (counts.sum(1) == n).all() and p.sum() == pytest.approx(1)
  assert len(np.unique(counts, axis=0)) == len(counts)
  values = np.arange(n) ** 1.5
  means = counts @ values / n
  assert p @ means == pytest.approx(values.mean())
  variance = p @ (means - values.mean()) ** 2
  assert variance == pytest.approx(values.var() / n)


def test_large_resamples_are_drawn():
  counts, p = statistics.resamples(30, 500, np.random.default_rng(0))
  assert counts.shape == (500, 30) and (counts.sum(1) == 30).all()
  np.testing.assert_allclose(p, 1 / 500)


def test_quantile_weighs_and_admits_infinity():
  values = np.array([[3.0, -np.inf, 2.0, np.inf]])
  p = np.array([0.5, 0.1, 0.3, 0.1])
  for level, expected in ((0.05, -np.inf), (0.4, 2.0), (0.5, 3.0), (1, np.inf)):
    assert statistics.quantile(values, p, level)[0] == expected


def test_within_stays_in_its_bracket():
  low = np.array([[0.0, -np.inf, 2.0]])
  high = np.array([[1.0, 0.0, np.inf]])
  spread = statistics.within(low, high, np.random.default_rng(0))[0]
  assert 0 < spread[0] < 1
  assert spread[1] == -np.inf and spread[2] == np.inf


def test_partial_spearman_is_spearman_without_a_confounder():
  rng = np.random.default_rng(0)
  x, z = rng.normal(size=(2, 40))
  y = x + rng.normal(size=40)
  plain = stats.spearmanr(x, y).statistic
  effect, low, high, n = statistics.partial_spearman(
    [(x, y, np.ones(40))], 0.95
  )
  assert effect == pytest.approx(plain) and low < effect < high and n == 40
  confounded = [(z + 0.3 * x, z + 0.3 * rng.normal(size=40), z)]
  raw = stats.spearmanr(*confounded[0][:2]).statistic
  effect, low, high, _ = statistics.partial_spearman(confounded, 0.95)
  assert raw > 0.6 and low < 0 < high


def test_bca_is_scipys_and_survives_ties():
  values = np.random.default_rng(0).exponential(size=30)
  mean, low, high = statistics.bca(
    (values,), np.mean, 0.95, 999, np.random.default_rng(1)
  )
  assert low < mean < high
  assert statistics.bca(
    (np.ones(9),), np.mean, 0.95, 999, np.random.default_rng(1)
  ) == (1.0, 1.0, 1.0)
  few = statistics.bca(
    (np.ones(2),), np.mean, 0.95, 999, np.random.default_rng(1)
  )
  assert few[0] == 1.0 and np.isnan(few[1:]).all()


def test_theil_sen_needs_distinct_sizes():
  slope, low, high = statistics.theil_sen(
    np.arange(10.0), 2 * np.arange(10.0), 0.95
  )
  assert slope == low == high == 2
  assert np.isnan(statistics.theil_sen(np.ones(5), np.arange(5.0), 0.95)).all()
  short = statistics.theil_sen(np.arange(3.0), np.arange(3.0), 0.95)
  assert short[0] == 1 and np.isnan(short[1:]).all()


@pytest.mark.parametrize("digits", [1, 2, 16])  # few digits make ties
def test_theil_sen_and_adjusted_are_scipys(digits):
  rng = np.random.default_rng(digits)
  for _ in range(50):
    x = np.round(rng.normal(size=rng.integers(4, 40)), digits)
    y = np.round(x + rng.normal(size=len(x)), digits)
    slope, _, low, high = stats.theilslopes(y, x, alpha=0.9)
    found = statistics.theil_sen(x, y, 0.9)
    assert found == (slope, low, high)
    p = np.round(rng.random(len(x)) ** 3, digits)
    expected = stats.false_discovery_control(p)
    np.testing.assert_array_equal(statistics.adjusted(p), expected)


def test_adjusted_keeps_missing_values():
  p = np.array([0.01, np.nan, 0.04])
  np.testing.assert_allclose(
    statistics.adjusted(p), [0.02, np.nan, 0.04], equal_nan=True
  )


def test_generator_depends_on_content_only():
  one, same, other = (
    statistics.generator(*c).random() for c in (("a", 1), ("a", 1), ("a", 2))
  )
  assert one == same != other
