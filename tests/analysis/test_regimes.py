"""Regimes and their boundaries on records with known truth."""

import dataclasses

import polars as pl
import pytest

from minarch_jax import analysis
from minarch_jax.analysis.regimes import scaled
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


GOOD = [0.96, 0.97, 0.965, 0.97, 0.96]


def regime(accuracy, **options):
  records = simulated.handmade({100: accuracy}, **options)
  return analysis.regimes(records, CONFIG).row(0, named=True)


@pytest.mark.parametrize(
  ("accuracy", "expected", "stuck"),
  [
    (GOOD, "learning", 0),
    ([*GOOD[:4], 0.11], "unstable", 1),  # stuck at chance
    ([*GOOD[:4], 0.149], "unstable", 1),  # significant, but below the margin
    ([*GOOD[:4], 0.90], "unstable", 0),  # varies too much
    ([0.5] * 5, "learning", 0),
  ],
)
def test_label_of_an_architecture(accuracy, expected, stuck):
  row = regime(accuracy)
  assert (row["label"], row["stuck"]) == (expected, stuck)
  assert row["p_unstable"] == stuck / 5
  assert row["p_unstable_low"] <= row["p_unstable"] <= row["p_unstable_high"]
  assert row["eps_sigma"] == CONFIG.eps_sigma


def test_chance_needs_significance_on_few_images():
  assert regime([0.2] * 5, num_validation=5000)["stuck"] == 0
  assert regime([0.2] * 5, num_validation=20)["stuck"] == 5


def test_divergence_is_told_from_being_stuck():
  row = regime([0.1] * 5, diverged=True)
  assert (row["diverged"], row["stuck"], row["label"]) == (5, 0, "unstable")


@pytest.mark.parametrize(
  ("losses", "expected"),
  [
    ([0.9, 0.5, 0.52], "learning"),
    ([0.9, 0.5, 0.53], "overfitting"),
    ([0.5, 0.9, 0.5], "learning"),  # the end is what counts
  ],
)
def test_overfitting_is_a_rise_from_the_minimum(losses, expected):
  assert regime(GOOD, losses=losses)["label"] == expected


def test_a_rise_of_both_losses_is_not_overfitting():
  records = simulated.handmade({100: GOOD}, losses=[0.9, 0.5, 0.6])
  rising = records.curves.with_columns(train_loss=pl.col("epoch") * 0.1)
  frame = analysis.regimes(records._replace(curves=rising), CONFIG)
  assert frame["label"].to_list() == ["learning"]


def test_labels_move_with_their_thresholds():
  row = regime([0.96, 0.93, 0.96, 0.93, 0.96])  # deviation 0.0164
  assert row["label"] == "learning" == row["label_doubled"]
  assert row["label_halved"] == "unstable"
  strict = dataclasses.replace(CONFIG, eps_sigma=0.01)
  records = simulated.handmade({100: [0.96, 0.93, 0.96, 0.93, 0.96]})
  assert analysis.regimes(records, strict)["label"][0] == "unstable"


def test_without_curves_overfitting_cannot_be_said():
  row = regime(GOOD)
  assert row["without_curve"] == 5 and row["n_seeds"] == 5


def test_boundaries_of_known_regimes():
  world = simulated.World(
    datasets=("easy",), families=("cnn",), num_architectures=40
  )
  records = simulated.draw(world, 3)
  frame = analysis.regime_boundaries(records, CONFIG)
  first, second = frame.sort("p").iter_rows(named=True)
  assert first["boundary"] == "unstable|learning"
  truth = 10 ** (simulated.centre(world, "easy", "cnn") + world.overfit_above)
  assert second["p_low"] < truth < second["p_high"]
  assert first["p_high"] < second["p_low"]
  by_depth = analysis.regime_boundaries(
    records, CONFIG, by=("dataset", "family", "depth")
  )
  assert by_depth["depth"].unique().sort().to_list() == [1, 2, 4]


def test_scaled_thresholds_stay_shares():
  doubled = scaled(dataclasses.replace(CONFIG, max_failed=0.8), 2.0)
  assert doubled.max_failed == 1.0
  assert doubled.overfit_rise == 2 * CONFIG.overfit_rise


def test_regime_counts_of_three_architectures():
  labels = pl.DataFrame(
    {
      "dataset": ["a"] * 3,
      "family": ["dnn", "dnn", "cnn"],
      "label_halved": ["unstable", "unstable", "unstable"],
      "label": ["unstable", "learning", "overfitting"],
      "label_doubled": ["learning", "learning", "overfitting"],
    }
  )
  counts = analysis.regime_counts(labels).filter(family="dnn")
  assert counts.select("regime", "halved", "as_set", "doubled").rows() == [
    ("unstable", 2, 1, 0),
    ("learning", 0, 1, 2),
    ("overfitting", 0, 0, 0),
  ]
