"""Pruning phases on records with known truth."""

import numpy as np
import polars as pl
import polars.testing
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import pruning, statistics
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


def phases(accuracy, **options):
  found = analysis.pruning_phases(
    simulated.compressed(accuracy, **options), CONFIG
  )
  return found.row(0, named=True)


SURE = {
  0.0: [0.95] * 5,
  0.5: [0.949, 0.950, 0.948, 0.949, 0.950],
  0.7: [0.937, 0.947, 0.927, 0.950, 0.949],  # 0.8 points lost, on average
  0.9: [0.6, 0.62, 0.61, 0.6, 0.63],
  0.98: [0.1, 0.12, 0.11, 0.1, 0.13],
}


def test_phases_begin_where_they_should():
  row = phases(SURE)
  assert row["shown_free"] == 0.5  # 0.7 may be free, but it is not shown
  assert row["redundancy_low"] < 0.7 < row["redundancy_high"] <= 0.9
  assert 0.7 <= row["redundancy"] <= 0.9
  assert row["collapse_at"] == 0.98 == row["collapse_high"]
  assert 0.9 < row["collapse_low"] < 0.98
  assert row["n_seeds"] == 5 and row["free_margin"] == CONFIG.free_margin


def test_free_ends_at_the_first_failure():
  row = phases(SURE | {0.9: [0.95] * 5})
  assert row["shown_free"] == 0.5


def test_pruning_that_never_costs_reaches_the_end_of_the_grid():
  row = phases({0.0: [0.95] * 5, 0.5: [0.95] * 5, 0.9: [0.951] * 5})
  assert row["shown_free"] == 0.9 and row["redundancy"] == 0.9
  assert row["collapse_at"] is None and row["collapse_high"] is None


def test_one_seed_shows_nothing_and_has_no_interval():
  row = phases({s: values[:1] for s, values in SURE.items()})
  assert (
    row["redundancy"] is row["shown_free"] is None
    and row["redundancy_high"] is None
  )
  assert row["collapse_at"] == 0.98 and row["n_seeds"] == 1


def test_missing_cells_are_skipped():
  row = phases(SURE | {0.5: SURE[0.5][:3]})
  assert row["n_seeds"] == 5 and row["shown_free"] in (0.0, 0.5)


def test_seeds_that_did_not_learn_are_left_out():
  assert analysis.pruning_phases(
    simulated.compressed({0.0: [0.1] * 5, 0.5: [0.1] * 5}, dense=0.1), CONFIG
  ).is_empty()


def test_retrained_networks_are_compared_with_the_retrained_dense():
  plain = simulated.compressed({0.0: [0.95] * 5, 0.5: [0.94] * 5})
  tuned = simulated.compressed(
    {0.0: [0.97] * 5, 0.5: [0.94] * 5}, schedule="finetune"
  ).compression
  both = plain._replace(compression=pl.concat([plain.compression, tuned]))
  drops = pruning.pruning_drops(both, CONFIG)
  by_schedule = dict(
    zip(
      drops.groups["schedule"], np.nanmean(drops.drop[..., 1], 1), strict=True
    )
  )
  assert by_schedule["oneshot"] == pytest.approx(0.01)
  assert by_schedule["finetune"] == pytest.approx(0.03)


def test_a_criterion_without_its_own_dense_row_shares_the_schedules():
  magnitude = simulated.compressed({0.0: [0.95] * 5, 0.5: [0.94] * 5})
  other = simulated.compressed({0.5: [0.93] * 5}, criterion="snip").compression
  drops = pruning.pruning_drops(
    magnitude._replace(compression=pl.concat([magnitude.compression, other])),
    CONFIG,
  )
  assert drops.groups["criterion"].to_list() == ["magnitude", "snip"]
  np.testing.assert_allclose(drops.drop[1, :, 1], 0.02)


def test_controls_are_analysed_apart_against_the_same_dense():
  real = simulated.compressed(SURE)
  shuffled = simulated.compressed(
    {0.5: [0.8] * 5}, control="shuffled"
  ).compression
  both = real._replace(compression=pl.concat([real.compression, shuffled]))
  assert analysis.pruning_phases(both, CONFIG)["shown_free"].to_list() == [0.5]
  control = analysis.pruning_phases(both, CONFIG, control="shuffled")
  assert control["shown_free"].to_list() == [0.0]


def test_redundancy_intervals_hold_the_estimate():
  frame = analysis.pruning_phases(
    simulated.simulate(datasets=("easy",), noise=0.01), CONFIG
  ).drop_nulls("redundancy_low")
  assert (frame["redundancy_low"] <= frame["redundancy"]).all()
  assert (frame["redundancy"] <= frame["redundancy_high"]).all()


def test_accuracy_that_comes_back_is_averaged():
  row = phases(
    {0.0: [0.95] * 5, 0.3: [0.93] * 5, 0.5: [0.95] * 5, 0.9: [0.5] * 5}
  )
  # 2 points and none lost at 0.3 and 0.5 are 1 point at both: the margin.
  assert row["shown_free"] == 0.0
  assert row["redundancy"] == pytest.approx(0.5)


def test_the_largest_of_equals_is_not_too_large():
  """Thirty settings that lose exactly one point at sparsity 0.5."""
  sparsities = np.linspace(0, 0.9, 10)
  naive, corrected, held = [], [], 0
  for study in range(30):
    rng = np.random.default_rng(study)
    noise = rng.normal(0, 0.006, (30, 5, 1)) + rng.normal(0, 0.002, (30, 5, 10))
    drop = 0.01 * (sparsities / 0.5) ** 4 + noise * (sparsities > 0)
    drops = pruning.Drops(
      pl.DataFrame(),
      sparsities,
      np.full((30, 5), 0.95),
      drop,
      np.full(30, 0.1),
      statistics.image_part(drop.mean(1), 1e5),
    )
    found = pruning.phases(*drops[1:], CONFIG)
    naive.append(found["redundancy"].max())
    largest = pruning.largest(
      drops, np.arange(30), found["redundancy_high"], CONFIG
    )
    corrected.append(largest.redundancy)
    held += largest.low <= 0.5 <= largest.high
  assert np.mean(naive) > 0.54
  assert np.mean(corrected) == pytest.approx(0.5, abs=0.02)
  assert held == 30
