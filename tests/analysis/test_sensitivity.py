"""What layers lose and how far seeds agree: paired, averaged, in intervals."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from minarch_jax import analysis, records
from minarch_jax.analysis import statistics
from tests.analysis import simulated


def layer_rows(handmade, accuracies):
  """One layer of the first architecture: sparsity -> accuracy of each seed."""
  who = list(records.SCHEMAS["networks"])[:7]
  frame = handmade.networks.select(who)
  return pl.concat(
    frame.with_columns(
      criterion=pl.lit("magnitude"),
      granularity=pl.lit("element"),
      layer=pl.lit("hidden_0/kernel"),
      number=pl.lit(0),
      groups=pl.lit(100),
      sparsity=pl.lit(sparsity),
      val_accuracy=pl.Series(values),
    )
    for sparsity, values in accuracies.items()
  )


def test_losses_are_paired_averaged_and_without_seeds_that_failed():
  # So many images that seeds alone are a source of error.
  found = simulated.handmade(
    {1000: [0.9, 0.8, 0.85, 0.1]}, num_validation=10**9
  )
  rows = layer_rows(
    found, {0.0: [0.9, 0.8, 0.85, 0.1], 0.5: [0.8, 0.75, 0.84, 0.1]}
  )
  table = analysis.layer_sensitivity(found, rows)
  assert table["lost"].to_list() == pytest.approx([0, 0.16 / 3])
  row = table.row(1, named=True)
  lost = [0.1, 0.05, 0.01]
  expected = stats.t.interval(0.95, 2, np.mean(lost), stats.sem(lost))
  assert (row["lost_low"], row["lost_high"]) == pytest.approx(expected)
  assert (row["n_seeds"], row["confidence"]) == (3, 0.95)
  assert row["accuracy"] == pytest.approx((0.8 + 0.75 + 0.84) / 3)


def test_overlaps_are_averaged_over_pairs_that_learned():
  found = simulated.handmade({1000: [0.9, 0.8, 0.85, 0.1]})
  pairs = {(0, 1): 0.5, (0, 2): 0.3, (1, 2): 0.4, (0, 3): 0.9, (2, 3): 0.9}
  rows = layer_rows(found, {0.5: [0.0] * 4}).drop("val_accuracy")
  rows = pl.concat(
    rows.filter(seed=a).with_columns(
      other=pl.lit(b, pl.Int64),
      overlap=pl.lit(value),
      chance=pl.lit(0.25),
      shuffled=pl.lit(0.3),
    )
    for (a, b), value in pairs.items()
  )
  row = analysis.mask_overlap(found, rows).row(0, named=True)
  assert row["overlap"] == pytest.approx(0.4)
  assert (row["n_seeds"], row["n_pairs"]) == (3, 3)
  assert (row["chance"], row["shuffled"]) == pytest.approx((0.25, 0.3))
  assert row["overlap_low"] < 0.3 and row["overlap_high"] > 0.5


def test_the_interval_over_pairs_covers():
  # A pair's value is the sum of its members', whose mean is known; pairs taken
  # for independent would cover in two thirds of the cases.
  rng = np.random.default_rng(0)
  each = rng.normal(1, 1, (2000, 6))
  pairs = each[:, :, None] + each[:, None, :]
  pairs[:, np.arange(6), np.arange(6)] = np.nan
  mean, low, high, n = statistics.pair_interval(pairs, 0.9)
  np.testing.assert_allclose(mean, 2 * each.mean(-1))
  assert 0.88 <= ((low <= 2) & (2 <= high)).mean() <= 0.92
  assert (n == 6).all()


def test_absent_seeds_do_not_count_and_two_have_no_interval():
  few = np.array([[np.nan, 0.2, 0.4], [0.2, np.nan, 0.6], [0.4, 0.6, np.nan]])
  more = np.full((5, 5), np.nan)
  more[np.ix_([0, 2, 3], [0, 2, 3])] = few
  expected = statistics.pair_interval(few, 0.95)
  np.testing.assert_allclose(statistics.pair_interval(more, 0.95), expected)
  two = statistics.pair_interval(few[:2, :2], 0.95)
  np.testing.assert_array_equal(two, [0.2, np.nan, np.nan, 2])
