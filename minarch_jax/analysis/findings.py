"""What a claim is judged from and what a judgement is."""

import math
from typing import NamedTuple

import polars as pl

from minarch_jax.analysis import pruning as pruning_lib

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


class Evidence(NamedTuple):
  """Everything the claims rest on; each frame as its analysis returns it."""

  outcomes: pl.DataFrame
  regimes: pl.DataFrame
  minimal: pl.DataFrame
  convergence: pl.DataFrame
  pruning: pl.DataFrame
  damage: pl.DataFrame
  drops: pruning_lib.Drops


class Finding(NamedTuple):
  """One claim judged. `note` says what limits it or would decide it."""

  effect: float | None
  low: float | None
  high: float | None
  n: int
  verdict: str
  unit: str
  rests_on: str
  note: str = ""


def decided(low: float, high: float, boundary: float) -> str:
  """Supported above the boundary, contradicted below, by the whole interval."""
  if low > boundary:
    return SUPPORTED
  return CONTRADICTED if high < boundary else UNDECIDED


def seeds_needed(
  effect: float, low: float, high: float, boundary: float, seeds: int
) -> str:
  """Says how many seeds would decide, if the effect stayed as it is.

  Intervals narrow as one over the root of the seeds.
  """
  half, distance = (high - low) / 2, abs(effect - boundary)
  if not all(map(math.isfinite, (half, distance))) or seeds < 1:
    return "at least 2 seeds are needed to say anything"
  if distance == 0:
    return "no number of seeds decides an effect that is exactly at the limit"
  needed = math.ceil(seeds * (half / distance) ** 2)
  if needed > 1000:
    return "more than 1000 seeds would be needed to decide"
  return f"about {max(needed, seeds + 1)} seeds would decide ({seeds} now)"


def num_seeds(found: Evidence) -> int:
  return int(found.regimes["n_seeds"].max() or 0)  # pyright: ignore


def stable(found: Evidence) -> pl.DataFrame:
  return found.regimes.filter(pl.col("label") != "unstable")


def nothing(unit: str, rests_on: str, note: str) -> Finding:
  return Finding(None, None, None, 0, UNDECIDED, unit, rests_on, note)


def primary(pruning: pl.DataFrame) -> pl.DataFrame:
  """Magnitude, one scope (global where there is one), element-wise."""
  rows = pruning.filter(pl.col("criterion") == "magnitude")
  if not len(rows):
    rows = pruning.filter(pl.col("criterion") != "random")
  for column, first in (("scope", "global"), ("granularity", "element")):
    values = rows[column].unique().sort().to_list()
    if values:
      kept = first if first in values else values[0]
      rows = rows.filter(pl.col(column) == kept)
  return rows
