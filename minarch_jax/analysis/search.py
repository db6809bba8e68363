"""Sequential search of P_min: what to train next, from what was trained."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import minimal, statistics, tables
from minarch_jax.analysis.outcomes import judged
from minarch_jax.config import Config

FIRST_SEEDS = 2  # the fewest that have a standard deviation
CONFIRMED = 3  # the plateau and both ends of the bracket get a third seed


class Step(NamedTuple):
  """What to train next, and what is known so far.

  Attributes:
    trainings: (architecture, seed) pairs; none when done.
    done: nothing more is worth training.
    reason: why these trainings, or why done.
    found: the row of `minimal_parameters` on what was trained.
    width: (p_min_high - p_min_low) / p_min; inf while a side is open.
    trained: networks trained so far.
    remaining: about how many more trainings, at most, will be asked for.
  """

  trainings: list[tuple[str, int]]
  done: bool
  reason: str
  found: dict[str, Any]
  width: float
  trained: int
  remaining: int


def next_trainings(
  networks: pl.DataFrame,
  candidates: Mapping[str, int],
  config: Config = tables.DEFAULTS,
  *,
  relative_width: float,
  max_trainings: int | None = None,
) -> Step:
  """Decides what to train next to locate P_min of one family on one data set.

  Bisection on log P: the largest candidate gives the plateau; then the middle
  of the bracket (largest size not good enough, smallest good enough) is
  trained with two seeds until no candidate is left inside, and one below if
  the interval is open there. Then the sizes
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
    max_trainings: stop rather than exceed so many; None = the full grid.

  Raises:
    ValueError: no candidates, a width that is not positive, or networks that
      are not candidates.
  """
  _check(networks, candidates, relative_width)
  order = sorted(candidates, key=lambda name: (candidates[name], name))
  rows = judged(
    networks.with_columns(
      rise=pl.lit(None, pl.Float64), falls=pl.lit(None, pl.Boolean)
    ),
    config,
  )
  seeds: dict[str, set[int]] = {name: set() for name in order}
  for name, seed in rows.select("architecture", "seed").iter_rows():
    seeds[name].add(seed)
  counts = {name: len(held) for name, held in seeds.items()}
  grid = minimal.grid(rows, config)
  found = minimal.p_min(grid, config)
  width = _width(found)

  def step(names, number, reason, after=0):
    trainings = []
    for name in names:
      missing = [seed for seed in config.seeds if seed not in seeds[name]]
      wanted = max(0, min(number(name), config.num_seeds) - counts[name])
      trainings += [(name, seed) for seed in missing[:wanted]]
    if max_trainings is not None and len(rows) + len(trainings) > max_trainings:
      trainings = []
      reason = f"the next round would exceed {max_trainings} trainings"
    left = max(len(trainings), after) if trainings else 0
    return Step(trainings, not trainings, reason, found, width, len(rows), left)

  def first(_):
    return FIRST_SEEDS

  def another(name):
    return counts[name] + 1

  top, middle = order[-1], order[(len(order) - 1) // 2]
  if counts[top] < min(FIRST_SEEDS, config.num_seeds):
    after = FIRST_SEEDS * (2 + _bisections(len(order))) + CONFIRMED
    return step(
      dict.fromkeys((top, middle)), first, "plateau and middle", after
    )
  confirm = [
    name
    for name in sorted({*_ends(order, found, candidates), top})
    if counts[name] < min(FIRST_SEEDS + 1, config.num_seeds)
  ]
  if width <= relative_width and not confirm:
    return step([], first, f"the interval is narrower than {relative_width:g}")
  inside = _untrained(order, counts, found, candidates)
  if inside:
    sizes = np.log([candidates[name] for name in inside])
    ends = np.log(_bracket(order, found, candidates))
    nearest = inside[int(np.argmin(np.abs(sizes - ends.mean())))]
    return step(
      [nearest],
      first,
      f"bisection, untrained sizes left: {len(inside)}",
      FIRST_SEEDS * _bisections(len(inside)) + CONFIRMED,
    )
  anchor = _anchor(order, counts, found, candidates)
  if anchor:
    return step([anchor], first, "no trained size is surely too small")
  fit = minimal.replicates(grid, config, None)
  open_ = _straddled(grid, fit, config)
  left = sum(max(0, config.num_seeds - counts[n]) for n in {*open_, top})
  if confirm:
    return step(confirm, another, "a third seed at the boundary", left)
  if len(open_) <= 2:
    return step([], first, "the interval is one step of the grid")
  more = [name for name in {*open_, top} if counts[name] < config.num_seeds]
  if not more:
    return step([], first, "every size in the interval has all its seeds")
  return step(
    sorted(more), another, f"the interval straddles {len(open_)} sizes", left
  )


def _bisections(sizes: int) -> int:
  """Sizes that bisection tries among so many."""
  return math.ceil(math.log2(sizes + 1))


def sweeps(step: Step, config: Config) -> list[Config]:
  """Turns the trainings of a step into sweeps of neighbouring seeds."""
  wanted: dict[str, list[int]] = {}
  for name, seed in step.trainings:
    wanted.setdefault(name, []).append(seed)
  runs: dict[tuple[int, int], list[str]] = {}
  for name, held in wanted.items():
    while held:
      count = next(
        (i for i, s in enumerate(held) if s != held[0] + i), len(held)
      )
      runs.setdefault((held[0], count), []).append(name)
      held = held[count:]
  return [
    dataclasses.replace(
      config, architectures=tuple(names), first_seed=first, num_seeds=count
    )
    for (first, count), names in runs.items()
  ]


def progress(step: Step, seconds: float) -> str:
  """Says in one line how far a search is.

  Args:
    step: the step.
    seconds: what one training has taken so far; 0 = not known.
  """
  line = f"{step.trained:>4} trained  P_min {interval(step.found)}"
  if math.isfinite(step.width):
    line += f", relative width {step.width:.2f}"
  line += f"; {step.reason}"
  if step.done:
    return line
  line += f"; at most about {step.remaining} more"
  return line + (f" ({step.remaining * seconds:.0f} s)" if seconds else "")


def interval(found: Mapping[str, Any]) -> str:
  """Writes an estimate of P_min, or why there is none."""
  low, high = found["p_min_low"], found["p_min_high"]
  if found["p_min"] is None and low is None and high is None:
    return f"not bracketed ({found['status']})"
  ends = ("open" if end is None else f"{end:,.0f}" for end in (low, high))
  number = found["status"]
  if found["p_min"] is not None:
    number = f"{found['p_min']:,.0f}"
  return f"{number} [{', '.join(ends)}]"


def answer(step: Step, name: str, candidates: int, config: Config) -> str:
  """Says in one paragraph what a finished search found and what it cost.

  Args:
    step: the last step.
    name: what was searched.
    candidates: architectures of the full grid.
    config: thresholds and seeds of the full grid.
  """
  found, full = step.found, candidates * config.num_seeds
  text = f"{name}: "
  if found["p_min"] is None:
    text += f"P_min is {interval(found)} among {candidates} sizes."
  else:
    text += (
      f"P_min is {interval(found)} parameters at {config.confidence:.0%} "
      f"confidence; {found['architecture']} is the smallest of {candidates} "
      f"candidates from which on validation accuracy stays within "
      f"{config.eps_accuracy:g} of the plateau ({found['plateau']:.4f}, "
      f"{found['plateau_architecture']}) with a seed deviation of at most "
      f"{config.eps_sigma:g}."
    )
  return (
    f"{text} Stopped because {step.reason}, after {step.trained} trainings of "
    f"the {full} of the full grid ({step.trained / full:.0%})."
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


def _anchor(order, counts, found, candidates) -> str | None:
  """The candidate to try below all trained ones while the interval is open
  there: about half the smallest, to be surely not good enough."""
  least = min(candidates[name] for name in order if counts[name])
  below = [name for name in order if candidates[name] < least]
  if found["p_min_low"] is not None or not below:
    return None
  return min(below, key=lambda n: (abs(math.log(2 * candidates[n] / least)), n))


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
