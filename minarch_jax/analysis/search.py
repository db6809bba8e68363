"""Sequential search of P_min: what to train next, from what was trained."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import judgement, minimal, statistics, tables
from minarch_jax.config import Config

FIRST_SEEDS = 2  # the fewest that have a standard deviation


class Step(NamedTuple):
  """What to train next, and what is known so far.

  Attributes:
    trainings: (architecture, seed) pairs; none when done.
    done: nothing more is worth training.
    reason: why these trainings, or why done.
    found: the row of `minimal_parameters` on what was trained.
    width: (p_min_high - p_min_low) / p_min; inf while a side is open.
    trained: networks trained so far.
  """

  trainings: list[tuple[str, int]]
  done: bool
  reason: str
  found: dict[str, Any]
  width: float
  trained: int


def next_trainings(
  networks: pl.DataFrame,
  candidates: Mapping[str, int],
  config: Config = tables.DEFAULTS,
  *,
  relative_width: float,
) -> Step:
  """Decides what to train next to locate P_min of one family on one data set.

  Bisection on log P: the largest candidate gives the plateau; then the middle
  of the bracket (largest size not good enough, smallest good enough) is
  trained with two seeds until no candidate is left inside. Then the sizes
  that the bootstrap interval straddles, and the plateau, get one more seed at
  a time, up to `config.num_seeds`, until the interval is one bracket of the
  grid or narrower than `relative_width`.

  A pure function of its arguments: resuming is calling it again.

  Args:
    networks: rows of `records.networks` trained so far; other architectures
      and data sets must be left out.
    candidates: parameter count of every architecture that may be trained.
    config: thresholds, seeds (`first_seed`, `num_seeds`).
    relative_width: the width at which to stop.

  Raises:
    ValueError: no candidates, a width that is not positive, or networks that
      are not candidates.
  """
  _check(networks, candidates, relative_width)
  order = sorted(candidates, key=lambda name: (candidates[name], name))
  rows = judgement.judged(
    networks.with_columns(
      rise=pl.lit(None, pl.Float64), falls=pl.lit(None, pl.Boolean)
    ),
    config,
  )
  counts = dict.fromkeys(order, 0)
  counts.update(rows["architecture"].value_counts().iter_rows())
  grid = minimal.grid(rows, config)
  found = minimal.p_min(grid, config)
  width = _width(found)

  def step(names, seeds, reason):
    trainings = [
      (name, config.first_seed + seed)
      for name in names
      for seed in range(counts[name], min(seeds(name), config.num_seeds))
    ]
    return Step(trainings, not trainings, reason, found, width, len(rows))

  def first(_):
    return FIRST_SEEDS

  def another(name):
    return counts[name] + 1

  top, middle = order[-1], order[(len(order) - 1) // 2]
  if counts[top] < min(FIRST_SEEDS, config.num_seeds):
    return step(dict.fromkeys((top, middle)), first, "plateau and middle")
  inside = _untrained(order, counts, found, candidates)
  if inside:
    sizes = np.log([candidates[name] for name in inside])
    ends = np.log(_bracket(order, found, candidates))
    nearest = inside[int(np.argmin(np.abs(sizes - ends.mean())))]
    return step(
      [nearest], first, f"bisection, untrained sizes left: {len(inside)}"
    )
  fit = minimal.replicates(grid, config, None)
  open_ = _straddled(grid, fit, config)
  confirm = [
    name
    for name in {*_ends(order, found, candidates), top}
    if counts[name] < min(FIRST_SEEDS + 1, config.num_seeds)
  ]
  if confirm:
    return step(sorted(confirm), another, "a third seed at the boundary")
  if width <= relative_width:
    return step([], first, f"the interval is narrower than {relative_width}")
  if len(open_) <= 2:
    return step([], first, "the interval is one step of the grid")
  more = [name for name in {*open_, top} if counts[name] < config.num_seeds]
  if not more:
    return step([], first, "every size in the interval has all its seeds")
  return step(
    sorted(more), another, f"the interval straddles {len(open_)} sizes"
  )


def _check(networks, candidates, relative_width: float) -> None:
  if not candidates:
    raise ValueError("no candidate architectures to search among")
  if not relative_width > 0:
    raise ValueError(
      f"relative_width={relative_width} is not positive; 0.5 stands for an "
      "interval half as wide as P_min"
    )
  strange = set(networks["architecture"]) - set(candidates)
  if strange:
    raise ValueError(
      f"networks {', '.join(sorted(strange)[:3])} are not among the "
      "candidates; filter the records to one family and data set"
    )


def _width(found: dict[str, Any]) -> float:
  ends = (found["p_min_low"], found["p_min"], found["p_min_high"])
  if None in ends:
    return np.inf
  low, middle, high = ends
  return (high - low) / middle


def _bracket(order, found, candidates) -> tuple[float, float]:
  """Sizes between which the boundary is, half a step beyond an open end."""
  low, high = candidates[order[0]], candidates[order[-1]]
  if found["status"] == "above grid":
    return high, high
  return (
    found["p_below"] or low / 2,
    found["p_min"] or (low if found["p_below"] is None else high),
  )


def _untrained(order, counts, found, candidates) -> list[str]:
  """Untrained candidates inside the bracket, by size."""
  if found["status"] in ("above grid", "one seed", "no data"):
    return []
  low = found["p_below"] or 0
  good = [n for n in order if counts[n] and candidates[n] > low]
  high = found["p_min"] or candidates[good[0]]
  return [n for n in order if not counts[n] and low < candidates[n] < high]


def _ends(order, found, candidates) -> list[str]:
  """The architectures at both ends of the bracket."""
  ends = {found["p_below"], found["p_min"]}
  if found["status"] == "below grid":
    ends.add(candidates[order[0]])
  return [name for name in order if candidates[name] in ends]


def _straddled(
  grid: minimal.Grid, fit: minimal.Fit, config: Config
) -> list[str]:
  """Trained architectures from the lowest to the highest plausible bracket."""
  if not len(fit.last_bad):
    return list(grid.names)
  tail = (1 - config.confidence) / 2
  low = statistics.quantile(fit.last_bad, fit.probabilities, tail)
  high = statistics.quantile(fit.first_good, fit.probabilities, 1 - tail)
  size = np.log10(grid.params.astype(float))
  return [
    name
    for name, x in zip(grid.names, size, strict=True)
    if low - 1e-12 <= x <= high + 1e-12
  ]
