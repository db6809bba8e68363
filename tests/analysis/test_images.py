"""Intervals hold for new seeds and new images; no variance is no certainty."""

import itertools

import numpy as np
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import statistics
from minarch_jax.config import Config
from tests.analysis import items, simulated

CONFIG = Config(num_bootstrap=300)


def test_no_loss_in_any_image_has_the_bound_of_the_rule_of_three():
  n, mean, deviation = statistics.moments(np.zeros(5))
  three = 3 / 144
  p = statistics.one_sided_p(mean, deviation, n, three, 144)
  assert p == pytest.approx(0.05, abs=0.002)
  _, low, high, _ = statistics.mean_interval(np.zeros(5), 0.9, images=144)
  assert high == -low == pytest.approx(three, abs=0.0002)


def test_equal_drops_of_nothing_are_not_free_on_few_images():
  def free(images):
    whole = simulated.compressed({0.0: [0.95] * 5, 0.5: [0.95] * 5})
    networks = whole.networks.with_columns(num_validation=images)
    records = whole._replace(networks=networks)
    return analysis.pruning_phases(records, CONFIG)["shown_free"][0]

  assert free(144) == 0.0  # up to 2.1 points may be lost
  assert free(360) == 0.5


def test_seeds_alone_are_students_t():
  values = np.array([0.9, 0.92, 0.97])
  n, mean, deviation = statistics.moments(values)
  error, freedom = statistics.standard_error(mean, deviation, n)
  assert error == pytest.approx(deviation / np.sqrt(3)) and freedom == 2


def test_image_noise_in_the_spread_of_seeds_is_not_counted_twice():
  drawn = statistics.image_variance(0.9, 100)
  error, _ = statistics.standard_error(0.9, np.sqrt(drawn), 5, 100)
  assert error**2 == pytest.approx(drawn)
  error, _ = statistics.standard_error(0.9, 1.0, 5, 100)
  assert error**2 == pytest.approx(drawn + (1 - drawn) / 5)


POPULATIONS = {
  "agreeing seeds": items.Population(),
  "rounded, nothing lost": items.Population(loss=0.0, churn=0.1),
  "much lost": items.Population(loss=0.3, churn=0.4),
  "few misses": items.Population(skill=2.3),
  "seeds differ": items.Population(skill=1.1, spread=0.1),
}


def covered(population, studies, seeds, images):
  """Shares of 95 % intervals of accuracy and of its loss that hold the truth,
  with images as a source of error and without."""
  rng = np.random.default_rng(seeds * images)
  before, after = (
    hits.mean(-1) for hits in population.play(studies, seeds, images, rng)
  )
  shares = {}
  for name, values, truth in (
    ("accuracy", before, population.accuracy()),
    ("drop", before - after, population.drop()),
  ):
    for known in (images, None):
      _, low, high, _ = statistics.mean_interval(values, 0.95, images=known)
      held = (low <= truth) & (truth <= high)
      shares[name if known else f"{name} by seeds alone"] = held.mean()
  return shares


@pytest.mark.parametrize("population", POPULATIONS)
def test_intervals_cover_new_seeds_on_new_images(population):
  found = covered(POPULATIONS[population], 100, 5, 144)
  assert min(found["accuracy"], found["drop"]) >= 0.92, found
  assert found["accuracy by seeds alone"] < 0.9, found


@pytest.mark.slow
@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize(
  ("images", "seeds"), list(itertools.product((144, 360, 1438), (5, 10, 20)))
)
def test_intervals_cover_in_400_studies(population, images, seeds):
  """Conservative: how much of the spread over seeds is image noise, and how
  many images differ to both sides, needs the hits of single images."""
  found = covered(POPULATIONS[population], 400, seeds, images)
  assert min(found["accuracy"], found["drop"]) >= 0.92, found
