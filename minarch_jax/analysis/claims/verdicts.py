"""The paper's claims C1-C8, each one row: effect, interval, n, verdict."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import tables
from minarch_jax.analysis.claims import (
  depth,
  existence,
  invariance,
  phases,
  redundancy,
  rounding,
  threshold,
)
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config

Test = Callable[[Evidence, Config], Finding]


class Claim(NamedTuple):
  """A claim, its test, the name of the figure that shows it, and the effect on
  which the verdict turns: a number, or the threshold that holds it. The claim
  says that the effect is above it, or else `below`."""

  statement: str
  test: Test
  figure: str
  limit: float | str = 0.0
  below: bool = False


def judge(found: Evidence, config: Config) -> pl.DataFrame:
  """Judges every claim; the columns are those of `analyses.claims`."""
  rows = [_row(name, claim, found, config) for name, claim in CLAIMS.items()]
  return tables.with_thresholds(
    pl.DataFrame(rows, schema=_SCHEMA),
    config,
    *("governing_share", "equivalence_margin", "match_tolerance"),
    *("eps_accuracy", "eps_sigma", "max_failed", "sharp_decades"),
    *("depth_effect", "collapse_share", "claimed_redundancy", "free_margin"),
    *("damage_effect", "confidence"),
  )


_NUMBERS = ("effect", "low", "high", "power")
_SCHEMA = (
  dict.fromkeys(("claim", "statement"), pl.String)
  | dict.fromkeys(("effect", "low", "high", "limit", "power"), pl.Float64)
  | {"below": pl.Boolean, "n": pl.Int64}
  | dict.fromkeys(("verdict", "unit", "figure", "rests_on"), pl.String)
  | dict.fromkeys(("design", "note"), pl.String)
)


def _row(
  name: str, claim: Claim, found: Evidence, config: Config
) -> dict[str, Any]:
  row = claim.test(found, config)._asdict()
  for key in _NUMBERS:
    if row[key] is not None and not math.isfinite(row[key]):
      row[key] = None
  limit = claim.limit
  return row | {
    "claim": name,
    "statement": claim.statement,
    "figure": claim.figure,
    "limit": getattr(config, limit) if isinstance(limit, str) else limit,
    "below": claim.below,
  }


CLAIMS: dict[str, Claim] = {
  "C1": Claim(
    "performance is largely invariant to architecture",
    invariance.invariance,
    "accuracy",
    "governing_share",
  ),
  "C2": Claim(
    "there are three regimes", existence.three_regimes, "accuracy", 0.5
  ),
  "C3": Claim(
    "stable learning has a minimal parameter count",
    threshold.minimal_count,
    "accuracy",
    "sharp_decades",
    below=True,
  ),
  "C4": Claim(
    "convergence and pruning have distinct phases",
    phases.distinct_phases,
    "phases",
    0.5,
  ),
  "C5": Claim(
    "deeper networks resist pruning better",
    depth.depth_resists,
    "redundancy",
  ),
  "C6": Claim(
    "redundancy reaches 60 %",
    redundancy.redundancy_reached,
    "redundancy",
    "claimed_redundancy",
  ),
  "C7": Claim(
    "quantization hurts small models more",
    rounding.small_suffer,
    "damage",
    below=True,
  ),
  "C8": Claim(
    "quantization hurts harder data sets more",
    rounding.hard_suffer,
    "damage",
  ),
}
