"""The sequential search finds what the full grid finds, with a third of it."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import search
from minarch_jax.config import Config
from tests.analysis import playing, simulated

CONFIG = Config(num_bootstrap=400)


def searched(networks, config, relative_width=0.1):
  """Plays the search on networks that a full grid would have trained."""
  candidates = dict(networks.select("architecture", "params").iter_rows())
  done = networks.clear()
  widths = []
  while True:
    step = search.next_trainings(
      done, candidates, config, relative_width=relative_width
    )
    widths.append(step.width)
    if step.done:
      return step, widths
    wanted = pl.DataFrame(
      step.trainings, schema=["architecture", "seed"], orient="row"
    )
    new = networks.join(wanted, on=["architecture", "seed"], how="semi")
    assert len(new) == len(step.trainings), step.trainings
    assert not len(new.join(done, on=["architecture", "seed"], how="semi"))
    done = pl.concat([done, new])


def width(row, sizes):
  """Width of an interval in log P; an open side ends with the grid."""
  low, high = row["p_min_low"], row["p_min_high"]
  return np.log((high or sizes.max()) / (low or sizes.min()))


def search_outcomes(studies, **changes):
  shares, covered, ratios = [], [], []
  for world, records in playing.play(studies, num_architectures=32, **changes):
    config = dataclasses.replace(CONFIG, num_seeds=world.num_seeds)
    step, _ = searched(records.networks, config)
    full = analysis.minimal_parameters(records, config).row(0, named=True)
    truth = simulated.true_p_min(world, "easy", "dnn")
    found = step.found
    covered.append(
      playing.holds(found["p_min_low"], truth, found["p_min_high"])
    )
    shares.append(step.trained / len(records.networks))
    sizes = records.networks["params"]
    ratios.append(width(found, sizes) / width(full, sizes))
  return np.array(shares), np.mean(covered), np.array(ratios)


def test_search_needs_a_third_of_the_grid():
  shares, covered, ratios = search_outcomes(10)
  assert shares.mean() <= 1 / 3 and covered >= 0.7
  assert np.median(ratios) <= 1.5


@pytest.mark.slow
def test_search_covers_in_200_studies():
  shares, covered, ratios = search_outcomes(200)
  assert shares.max() <= 1 / 3 and 0.9 <= covered, (shares.max(), covered)
  assert np.median(ratios) <= 1.25, np.median(ratios)


def grid_of(world=None):
  world = world or simulated.World(
    **playing.ONE, **playing.LEAN, num_architectures=32
  )
  return simulated.draw(world, 0).networks


def test_search_is_pure_and_resumes():
  networks = grid_of()
  one, widths = searched(networks, CONFIG)
  other, _ = searched(networks, CONFIG)
  assert one == other
  assert widths[-1] < np.inf and widths[0] == np.inf


def test_search_stops_when_the_grid_says_no_more():
  quiet = simulated.World(
    **playing.ONE, **playing.LEAN, num_architectures=32, sigma=0.001
  )
  step, _ = searched(grid_of(quiet), CONFIG)
  assert step.reason == "the interval is one step of the grid"
  assert step.trained <= 24
  wide, _ = searched(grid_of(quiet), CONFIG, relative_width=1.0)
  assert wide.trained <= step.trained and wide.width <= 1.0


@pytest.mark.parametrize(
  ("decades", "status"),
  [((0.5, 2.0), "below grid"), ((-3.0, -1.0), "above grid")],
)
def test_search_ends_where_the_grid_does_not_reach(decades, status):
  networks = grid_of(
    simulated.World(
      **playing.ONE, **playing.LEAN, num_architectures=32, decades=decades
    )
  )
  step, _ = searched(networks, CONFIG)
  assert step.found["status"] == status
  assert step.trained <= len(networks) / 3


def test_search_refuses_what_it_cannot_use():
  networks = grid_of()
  with pytest.raises(ValueError, match="no candidate"):
    search.next_trainings(networks, {}, CONFIG, relative_width=0.1)
  with pytest.raises(ValueError, match="relative_width=0"):
    search.next_trainings(networks, {"dnn:1": 5}, CONFIG, relative_width=0)
  with pytest.raises(ValueError, match="not among the candidates"):
    search.next_trainings(networks, {"dnn:1": 5}, CONFIG, relative_width=0.1)


def test_seeds_with_gaps_become_sweeps_of_neighbours():
  step = search.Step(
    [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 2)],
    *(False, "", {}, 1.0, 0, 0),
  )
  runs = [(r.architectures, list(r.seeds)) for r in search.sweeps(step, CONFIG)]
  assert runs == [(("a", "b"), [0, 1]), (("c",), [0]), (("c",), [2])]


def test_missing_seeds_are_filled_before_new_ones():
  networks = simulated.handmade({10: [0.9] * 5, 1000: [0.9] * 5}).networks
  held = networks.filter(
    (networks["params"] == 1000) & networks["seed"].is_in([0, 3])
  )
  step = search.next_trainings(
    held,
    {"dnn:10": 10, "dnn:1000": 1000},
    dataclasses.replace(CONFIG, num_seeds=5),
    relative_width=0.1,
  )
  asked = set(step.trainings)
  assert not asked & {("dnn:1000", 0), ("dnn:1000", 3)}
