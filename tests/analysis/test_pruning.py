"""Pruning phases on records with known truth."""

import numpy as np
import polars as pl
import polars.testing
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import pruning
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
  assert row["redundancy"] == 0.5  # 0.7 may be free, but it is not shown
  assert row["redundancy_low"] <= 0.5 < row["redundancy_high"] <= 0.9
  assert 0.7 <= row["crossing"] <= 0.9
  assert row["collapse_at"] == 0.98 == row["collapse_high"]
  assert 0.9 < row["collapse_low"] < 0.98
  assert row["n_seeds"] == 5 and row["free_margin"] == CONFIG.free_margin


def test_free_ends_at_the_first_failure():
  row = phases(SURE | {0.9: [0.95] * 5})
  assert row["redundancy"] == 0.5


def test_pruning_that_never_costs_reaches_the_end_of_the_grid():
  row = phases({0.0: [0.95] * 5, 0.5: [0.95] * 5, 0.9: [0.951] * 5})
  assert row["redundancy"] == 0.9 and row["crossing"] == 0.9
  assert row["collapse_at"] is None and row["collapse_high"] is None


def test_one_seed_shows_nothing_and_has_no_interval():
  row = phases({s: values[:1] for s, values in SURE.items()})
  assert row["redundancy"] is None and row["redundancy_high"] is None
  assert row["collapse_at"] == 0.98 and row["n_seeds"] == 1


def test_missing_cells_are_skipped():
  row = phases(SURE | {0.5: SURE[0.5][:3]})
  assert row["n_seeds"] == 5 and row["redundancy"] in (0.0, 0.5)


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
  assert analysis.pruning_phases(both, CONFIG)["redundancy"].to_list() == [0.5]
  control = analysis.pruning_phases(both, CONFIG, control="shuffled")
  assert control["redundancy"].to_list() == [0.0]


def test_redundancy_intervals_hold_the_tested_value():
  frame = analysis.pruning_phases(
    simulated.simulate(datasets=("easy",), noise=0.01), CONFIG
  ).drop_nulls("redundancy_low")
  assert (frame["redundancy_low"] <= frame["redundancy"]).all()
  assert (frame["redundancy"] <= frame["redundancy_high"]).all()
