"""Effects over architectures, seeds and images together."""

import numpy as np
import polars as pl
import pytest

from minarch_jax.analysis import statistics
from minarch_jax.analysis.analyses import Analyses
from minarch_jax.analysis.claims import blocks
from minarch_jax.analysis.hits import Hits, NONE
from minarch_jax.config import Config
from tests.analysis import ladder


def test_blocks_are_folds_or_else_fifths_of_the_seeds():
  networks = pl.DataFrame(
    {"dataset": ["a"] * 12, "seed": range(100, 112), "fold": [0] * 12}
  )
  found = blocks.of_networks(networks).sort("seed")["block"]
  assert found.n_unique() == blocks.PARTS and found[0] == found[5]
  folds = networks.with_columns(fold=pl.col("seed") % 4)
  found = blocks.of_networks(folds).sort("seed")
  assert (found["block"] == found["seed"] % 4).all()


def covered(cell, block, noise, cells=12, num=5, studies=600):
  rng = np.random.default_rng(0)
  found = []
  for _ in range(studies):
    values = cell * rng.normal(size=(cells, 1))
    values = values + block * rng.normal(size=(1, num))
    values = values + noise * rng.normal(size=(cells, num))
    low, high = blocks.mean(values).interval(0.95)
    found.append(low <= 0 <= high)
  return np.mean(found)


@pytest.mark.parametrize("parts", [(1, 0, 0.1), (0, 1, 0.1), (1, 1, 1)])
def test_intervals_cover_where_cells_or_blocks_or_both_vary(parts):
  assert 0.92 <= covered(*parts) <= 0.99


def test_noise_alone_is_covered_conservatively():
  assert covered(0, 0, 1) >= 0.94


def test_a_coefficient_is_that_of_least_squares():
  rng = np.random.default_rng(1)
  x = rng.normal(size=9)
  design = np.stack([x, np.ones(9)], 1)
  values = 2 * x[:, None] + 1 + 0.1 * rng.normal(size=(9, 5))
  found = blocks.coefficient(values, design, 0)
  slope = np.polyfit(x, values.mean(1), 1)[0]
  assert found.value == pytest.approx(slope)
  low, high = found.interval(0.95)
  assert low < 2 < high


def test_power_is_the_share_of_studies_that_decide():
  rng = np.random.default_rng(2)
  values = 1.2 + rng.normal(size=(20_000, 5))
  _, low, _, _ = statistics.mean_interval(values, 0.95)
  expected = blocks.power(1.2, 1 / np.sqrt(5), 4.0, 0.95)
  assert (low > 0).mean() == pytest.approx(expected, abs=0.01)


def test_the_jackknife_of_a_mean_is_the_mean():
  values = np.arange(10.0).reshape(2, 5)
  without = (values.sum(1, keepdims=True) - values) / 4
  found = blocks.leave_one_out(values.mean(1), without)
  assert found == pytest.approx(values)


def test_hits_tell_what_images_do_to_the_spread_of_networks():
  config = Config(num_bootstrap=100)
  variance, noise = [], []
  for seed in range(12):
    study = ladder.draw(
      ladder.World(sigma=0.0, sigma_small=0.0), seed, config, ""
    )
    rows = Analyses(study, config)["outcomes"].sort("architecture", "seed")
    accuracy = rows["val_accuracy"].to_numpy().reshape(-1, 5)
    places = rows["row"].to_numpy().reshape(-1, 5)
    squares, freedom = blocks.spread(accuracy)
    variance.append(squares / freedom)
    noise.append(blocks.image_noise(Hits.of(study.hits), places))
  assert np.mean(noise) == pytest.approx(np.mean(variance), rel=0.15)


def test_spread_is_shown_only_with_enough_seeds():
  rng = np.random.default_rng(3)

  def shown(sigma, seeds):
    accuracy = 0.95 + sigma * rng.normal(size=(3, seeds))
    group = blocks.Networks(accuracy, np.full(accuracy.shape, -1), 1e6)
    return blocks.spread_shown([group], NONE, 0.02, 0.025)

  assert shown(0.005, 10) == (True, False)
  assert shown(0.08, 10) == (False, True)
  assert shown(0.018, 2) == (False, False)
  one = np.full((1, 1), 0.9)
  group = blocks.Networks(one, np.full((1, 1), -1), 100)
  assert blocks.spread_shown([group], NONE, 0.02, 0.025) == (False, False)
