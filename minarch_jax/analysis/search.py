"""Sequential search of P_min: what to train next, from what was trained."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import hits, minimal, statistics, tables
from minarch_jax.analysis.outcomes import judged_without_curves
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
  known = _known(networks, candidates, config, max_trainings)
  if known.counts[known.order[-1]] < min(FIRST_SEEDS, config.num_seeds):
    return _begin(known)
  unconfirmed = _unconfirmed(known)
  if known.width <= relative_width and not unconfirmed:
    return _step(known, {}, f"the interval is narrower than {relative_width:g}")
  # First a bracket of neighbouring sizes, then an end below it that is surely
  # too small: only then does the bootstrap say which sizes need more seeds.
  return _bisect(known) or _reach_below(known) or _add_seeds(known, unconfirmed)


class _Known(NamedTuple):
  """What a search goes by.

  Attributes:
    order: candidates by size.
    candidates: their parameter counts.
    seeds: seeds trained of each.
    grid: the trained ones, as P_min is estimated from them.
    found: the row of `minimal_parameters` on them.
    config: thresholds and seeds.
    max_trainings: most networks to train in all; None = no limit.
  """

  order: list[str]
  candidates: Mapping[str, int]
  seeds: Mapping[str, set[int]]
  grid: minimal.Grid
  found: dict[str, Any]
  config: Config
  max_trainings: int | None

  @property
  def counts(self) -> dict[str, int]:
    return {name: len(held) for name, held in self.seeds.items()}

  @property
  def width(self) -> float:
    return _width(self.found)


def _known(
  networks: pl.DataFrame,
  candidates: Mapping[str, int],
  config: Config,
  max_trainings: int | None,
) -> _Known:
  order = sorted(candidates, key=lambda name: (candidates[name], name))
  seeds: dict[str, set[int]] = {name: set() for name in order}
  for name, seed in networks.select("architecture", "seed").iter_rows():
    seeds[name].add(seed)
  grid = minimal.grid(judged_without_curves(networks, config), config)
  found = minimal.p_min(grid, hits.NONE, config)
  return _Known(order, candidates, seeds, grid, found, config, max_trainings)


def _step(
  known: _Known, wanted: Mapping[str, int], reason: str, after: int = 0
) -> Step:
  """Asks for the missing seeds of architectures.

  Args:
    known: what was trained.
    wanted: how many seeds each architecture shall have in all.
    reason: why these.
    after: about how many trainings will follow, at most.
  """
  config, trained = known.config, sum(known.counts.values())
  trainings = []
  for name, number in wanted.items():
    missing = [s for s in config.seeds if s not in known.seeds[name]]
    count = max(0, min(number, config.num_seeds) - known.counts[name])
    trainings += [(name, seed) for seed in missing[:count]]
  limit = known.max_trainings
  if limit is not None and trained + len(trainings) > limit:
    trainings = []
    reason = f"the next round would exceed {limit} trainings"
  left = max(len(trainings), after) if trainings else 0
  return Step(
    trainings, not trainings, reason, known.found, known.width, trained, left
  )


def _begin(known: _Known) -> Step:
  order = known.order
  names = (order[-1], order[(len(order) - 1) // 2])
  after = FIRST_SEEDS * (2 + _bisections(len(order))) + CONFIRMED
  wanted = dict.fromkeys(names, FIRST_SEEDS)
  return _step(known, wanted, "plateau and middle", after)


def _unconfirmed(known: _Known) -> list[str]:
  """The plateau and the ends of the bracket, where they lack a third seed."""
  needed = min(FIRST_SEEDS + 1, known.config.num_seeds)
  names = sorted({*_ends(known), known.order[-1]})
  return [name for name in names if known.counts[name] < needed]


def _bisect(known: _Known) -> Step | None:
  inside = _untrained(known)
  if not inside:
    return None
  sizes = np.log([known.candidates[name] for name in inside])
  ends = np.log(_bracket(known))
  nearest = inside[int(np.argmin(np.abs(sizes - ends.mean())))]
  return _step(
    known,
    {nearest: FIRST_SEEDS},
    f"bisection, untrained sizes left: {len(inside)}",
    FIRST_SEEDS * _bisections(len(inside)) + CONFIRMED,
  )


def _reach_below(known: _Known) -> Step | None:
  name = _anchor(known)
  if name is None:
    return None
  return _step(
    known, {name: FIRST_SEEDS}, "no trained size is surely too small"
  )


def _add_seeds(known: _Known, unconfirmed: list[str]) -> Step:
  """Adds a seed wherever the interval of P_min is not decided yet."""
  fit = minimal.replicates(known.grid, hits.NONE, known.config, None)
  open_ = _straddled(known.grid, fit, known.config)
  counts, most = known.counts, known.config.num_seeds
  names = {*open_, known.order[-1]}
  left = sum(max(0, most - counts[name]) for name in names)

  def another(names):
    return {name: counts[name] + 1 for name in names}

  if unconfirmed:
    reason = "a third seed at the boundary"
    return _step(known, another(unconfirmed), reason, left)
  if len(open_) <= 2:
    return _step(known, {}, "the interval is one step of the grid")
  more = sorted(name for name in names if counts[name] < most)
  if not more:
    return _step(known, {}, "every size in the interval has all its seeds")
  reason = f"the interval straddles {len(open_)} sizes"
  return _step(known, another(more), reason, left)


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


def _bracket(known: _Known) -> tuple[float, float]:
  """Sizes between which the boundary is, half a step beyond an open end."""
  found, sizes = known.found, [known.candidates[n] for n in known.order]
  low, high = sizes[0], sizes[-1]
  if found["status"] == "above grid":
    return high, high
  return (
    found["p_below"] or low / 2,
    found["p_min"] or (low if found["p_below"] is None else high),
  )


def _untrained(known: _Known) -> list[str]:
  """Untrained candidates inside the bracket, by size."""
  found, sizes, counts = known.found, known.candidates, known.counts
  if found["status"] in ("above grid", "one seed", "no data"):
    return []
  low = found["p_below"] or 0
  good = [n for n in known.order if counts[n] and sizes[n] > low]
  high = found["p_min"] or sizes[good[0]]
  return [n for n in known.order if not counts[n] and low < sizes[n] < high]


def _anchor(known: _Known) -> str | None:
  """The candidate to try below all trained ones while the interval is open
  there: about half the smallest, to be surely not good enough."""
  sizes, counts = known.candidates, known.counts
  least = min(sizes[name] for name in known.order if counts[name])
  below = [name for name in known.order if sizes[name] < least]
  if known.found["p_min_low"] is not None or not below:
    return None
  return min(below, key=lambda n: (abs(math.log(2 * sizes[n] / least)), n))


def _ends(known: _Known) -> list[str]:
  """The architectures at both ends of the bracket."""
  found, sizes = known.found, known.candidates
  ends = {found["p_below"], found["p_min"]}
  if found["status"] == "below grid":
    ends.add(sizes[known.order[0]])
  return [name for name in known.order if sizes[name] in ends]


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
