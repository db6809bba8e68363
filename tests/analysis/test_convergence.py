"""Convergence phases of known curves."""

import numpy as np
import polars as pl

from minarch_jax import analysis
from minarch_jax.analysis import convergence
from minarch_jax.analysis.outcomes import with_chance
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


def test_change_points_partition_the_epochs():
  accuracy = np.array(
    [
      [0.1, 0.1, 0.5, 0.9, 0.94, 0.95, 0.949],
      [0.1, 0.11, 0.1, 0.12, 0.1, 0.1, 0.1],
      [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
    ]
  )
  ends = convergence.change_points(
    accuracy, np.full(3, 0.1), np.full(3, 0.15), CONFIG
  )
  assert ends.tolist() == [[2, 3, 5], [7, 7, 7], [0, 0, 0]]


def test_convergence_phases_of_known_curves():
  world = simulated.World(
    datasets=("easy",), families=("dnn",), num_seeds=8, num_epochs=40
  )
  frame = analysis.convergence_phases(simulated.draw(world, 0), CONFIG)
  big = frame.filter(pl.col("params") > 5000)
  epochs = np.arange(1, 41)
  curve = simulated.true_curve(world, 0.97, epochs)
  ends = convergence.change_points(
    curve[None], np.array([0.1]), np.array([0.15]), CONFIG
  )[0]
  lengths = np.diff(ends, prepend=0, append=40)
  for phase, length in zip(convergence.PHASES, lengths, strict=True):
    assert (big[f"{phase}_low"] - 1 <= length).all(), phase
    assert (big[f"{phase}_high"] + 1 >= length).all(), phase
  total = frame.select(pl.sum_horizontal(convergence.PHASES)).to_series()
  assert (total.filter(frame["n_left"] == 8) - 40).abs().max() < 1e-9
  never = frame.filter(pl.col("n_left") == 0)
  assert (never["chance"] == 40).all() and never["rapid"].is_null().all()


def test_a_curve_leaves_chance_at_the_floor_of_its_own_fold():
  """Folds of a data set may differ by an image, and so may their floors."""
  images = pl.Series([288, 287] * 5)
  # Without a margin the test against guessing decides.
  config = Config(num_bootstrap=300, chance_margin=1e-6)
  records = simulated.handmade({1000: [0.1] * 10}, losses=[1.0, 0.9])
  networks = records.networks.with_columns(num_validation=images)
  floors = with_chance(networks, config)["floor"]
  between = (floors.min() + floors.max()) / 2  # pyright: ignore
  assert floors.n_unique() == 2
  curves = records.curves.with_columns(val_accuracy=pl.lit(between))
  records = records._replace(networks=networks, curves=curves)
  for _ in range(20):  # whatever the order in which polars finds the folds
    chance = convergence.curve_phases(records, config).sort("seed")["chance"]
    assert chance.to_list() == [2.0 if f > between else 0.0 for f in floors]
