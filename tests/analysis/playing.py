"""Worlds of known truth, played many times with grids begun at random."""

import dataclasses

import numpy as np

from tests.analysis import simulated

ONE = {"datasets": ("easy",), "plateaus": (0.97,), "families": ("dnn",)}
LEAN = {
  "quant_granularities": ("channel",),
  "criterion_factor": (("magnitude", 1.0),),
  "scope_factor": (("global", 1.0),),
  "schedule_factor": (("oneshot", 1.0),),
  "num_epochs": 20,
}


def shifted(world, rng):
  """The world with its grid begun somewhere else within one step."""
  low, high = world.decades
  step = (high - low) / (world.num_architectures / world.matched)
  offset = rng.uniform(-0.5, 0.5) * step
  return dataclasses.replace(world, decades=(low + offset, high + offset))


def play(studies, **changes):
  for i in range(studies):
    rng = np.random.default_rng(i)
    world = shifted(simulated.World(**{**ONE, **LEAN, **changes}), rng)
    yield world, simulated.draw(world, 1000 + i)


def holds(low, truth, high):
  return (low is None or low <= truth) and (high is None or truth <= high)
