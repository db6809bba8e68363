"""Minimal sizes on records with known truth."""

import numpy as np
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import hits, minimal
from minarch_jax.analysis.outcomes import outcomes
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


GOOD = [0.96, 0.97, 0.965, 0.97, 0.96]


STEP = {
  100: [0.3, 0.9, 0.1, 0.4, 0.5],
  300: [0.8, 0.85, 0.82, 0.81, 0.84],
  1000: GOOD,
  3000: GOOD[::-1],
  10000: GOOD,
}


def p_min(accuracy, **options):
  records = simulated.handmade(accuracy, **options)
  return analysis.minimal_parameters(records, CONFIG).row(0, named=True)


def test_p_min_is_the_first_size_from_which_all_are_good():
  row = p_min(STEP)
  assert (row["status"], row["p_min"], row["p_below"]) == (
    "bracketed",
    1000,
    300,
  )
  assert row["architecture"] == "dnn:1000"
  assert 300 < row["p_min_low"] < 1000 == row["p_min_high"]
  assert row["plateau"] == pytest.approx(0.965)


def test_an_unstable_large_network_moves_p_min_beyond_the_grid():
  row = p_min(STEP | {30000: [0.97, 0.97, 0.5, 0.97, 0.2]})
  assert row["status"] == "above grid" and row["p_min"] is None


def test_the_frontier_forgives_a_bad_shape_of_matched_size():
  row = p_min(STEP | {3100: [0.2] * 5, 980: [0.5] * 5})
  assert row["p_min"] == 1000


@pytest.mark.parametrize(
  ("accuracy", "status"),
  [
    ({p: GOOD for p in (100, 1000, 10000)}, "below grid"),
    ({p: [0.1] * 5 for p in (100, 1000, 10000)}, "above grid"),
    ({p: [0.96] for p in (100, 1000)}, "one seed"),
  ],
)
def test_p_min_is_not_a_number_where_the_grid_does_not_reach(accuracy, status):
  row = p_min(accuracy)
  assert row["status"] == status and row["p_min"] is None


def test_p_learn_and_p_at_follow_their_own_definitions():
  records = simulated.handmade(STEP)
  learn = analysis.minimal_parameters(records, CONFIG)["p_learn"][0]
  assert 90 < learn < 400  # one of five seeds fails at 100, none above
  at = analysis.p_at(records, 0.8, CONFIG).row(0, named=True)
  assert at["p"] == 300 and at["p_low"] < 300
  with pytest.raises(ValueError, match="1.5"):
    analysis.p_at(records, 1.5, CONFIG)


def test_missing_seeds_are_no_obstacle():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  few = records._replace(networks=records.networks.sample(fraction=0.7, seed=0))
  row = analysis.minimal_parameters(few, CONFIG).row(0, named=True)
  assert row["status"] == "bracketed"
  assert row["p_min_low"] < 1000 < row["p_min_high"]


@pytest.mark.parametrize("size", [2000, 5000, 30000])
def test_a_poor_shape_does_not_move_p_min(size):
  row = p_min(STEP | {size: [0.9] * 5})
  assert (row["status"], row["p_min"]) == ("bracketed", 1000)
  at = analysis.p_at(simulated.handmade(STEP | {size: [0.9] * 5}), 0.95, CONFIG)
  assert at["p"].to_list() == [1000]


def test_replicates_of_few_seeds_vary_as_their_mean_does():
  records = simulated.handmade({1000: [0.94, 0.95, 0.97]})
  rows = outcomes(records, CONFIG)
  family = minimal.grid(rows, CONFIG)
  config = Config(num_bootstrap=20_000)
  fit = minimal.replicates(family, hits.NONE, config, None)
  expected = family.accuracy.std(ddof=1) / np.sqrt(3)
  assert fit.plateau.std() == pytest.approx(expected, rel=0.03)
