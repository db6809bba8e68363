"""What a claim is judged from, and what a finding about it says."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import tables
from minarch_jax.analysis.regimes import STABLE

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED)


Evidence = Mapping[str, Any]  # results by name, as `analyses.Analyses` has them


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


def needed(
  effect: float,
  low: float,
  high: float,
  boundary: float,
  now: int,
  what: str = "seeds",
) -> str:
  """Says how many seeds would decide, if the effect stayed as it is.

  Intervals narrow as one over the root of their sample, which are seeds for
  some claims and `what="architectures"` for others.
  """
  half, distance = (high - low) / 2, abs(effect - boundary)
  if not all(map(math.isfinite, (half, distance))) or now < 1:
    return f"at least 2 {what} are needed to say anything"
  if distance == 0:
    return f"no number of {what} decides an effect that is exactly at the limit"
  count = math.ceil(now * (half / distance) ** 2)
  if count > 1000:
    return f"more than 1000 {what} would be needed to decide"
  return f"about {max(count, now + 1)} {what} would decide ({now} now)"


def num_seeds(found: Evidence) -> int:
  return int(found["regimes"]["n_seeds"].max() or 0)  # pyright: ignore


def stable(found: Evidence) -> pl.DataFrame:
  return found["regimes"].filter(STABLE)


def nothing(unit: str, rests_on: str, note: str) -> Finding:
  return Finding(None, None, None, 0, UNDECIDED, unit, rests_on, note)


def primary(pruning: pl.DataFrame) -> pl.DataFrame:
  """Magnitude, one scope (global where there is one), element-wise."""
  rows = pruning.filter(pl.col("criterion") == tables.FIRST["criterion"][0])
  if not len(rows):
    rows = pruning.filter(tables.RANKED)
  return tables.primary(rows, ("scope", "granularity"))
