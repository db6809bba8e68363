"""The paper's claims C1-C8, each one row: effect, interval, n, verdict."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import convergence as convergence_lib
from minarch_jax.analysis import minimal as minimal_lib
from minarch_jax.analysis import pruning as pruning_lib
from minarch_jax.analysis import quantization as quantization_lib
from minarch_jax.analysis import tables
from minarch_jax.analysis.claims import compression, learning
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.analysis.outcomes import outcomes
from minarch_jax.analysis.regimes import regimes
from minarch_jax.config import Config

Test = Callable[[Evidence, Config], Finding]


class Claim(NamedTuple):
  statement: str
  test: Test
  figure: str


def evidence(records: tables.Records, config: Config, **known: Any) -> Evidence:
  """Runs the analyses that claims rest on; `known` frames are not run again."""
  records, _ = tables.one_recipe(records)

  def frame(name, make):
    return known[name] if known.get(name) is not None else make()

  judged = frame("outcomes", lambda: outcomes(records, config))
  drops = pruning_lib.pruning_drops(records, config)
  return Evidence(
    judged,
    frame(
      "regimes",
      lambda: regimes(records, config, outcomes=judged),
    ),
    frame(
      "minimal_parameters",
      lambda: minimal_lib.minimal_parameters(records, config, outcomes=judged),
    ),
    frame(
      "convergence_phases",
      lambda: convergence_lib.convergence_phases(records, config),
    ),
    frame(
      "pruning_phases",
      lambda: pruning_lib.pruning_phases(records, config),
    ),
    frame(
      "quantization",
      lambda: quantization_lib.quantization_damage(records, config),
    ),
    drops,
  )


def claims(
  records: tables.Records, config: Config = tables.DEFAULTS, **known: Any
) -> pl.DataFrame:
  """Judges the eight claims of METHOD.md on these records.

  A verdict is `supported` or `contradicted` only when the whole interval lies
  on that side of what the claim says; else `undecided`, and the note says how
  many seeds would decide it, or what else is missing.

  Args:
    records: the tables.
    config: thresholds.
    **known: frames already computed, by the names of `analysis.analyse`.

  Returns:
    claim, statement, effect, low, high, n, verdict, unit, figure, rests_on,
    note, and the thresholds used.
  """
  found = evidence(records, config, **known)
  rows = []
  for name, claim in CLAIMS.items():
    finding = claim.test(found, config)
    numbers = {
      key: value if value is not None and math.isfinite(value) else None
      for key, value in zip(("effect", "low", "high"), finding[:3], strict=True)
    }
    rows.append(
      {
        "claim": name,
        "statement": claim.statement,
        **numbers,
        "n": finding.n,
        "verdict": finding.verdict,
        "unit": finding.unit,
        "figure": claim.figure,
        "rests_on": finding.rests_on,
        "note": finding.note,
      }
    )
  schema = {
    name: pl.Float64
    if name in ("effect", "low", "high")
    else pl.Int64
    if name == "n"
    else pl.String
    for name in (rows[0] if rows else ())
  }
  return tables.with_thresholds(
    pl.DataFrame(rows, schema=schema),
    config,
    *("equivalence_margin", "match_tolerance", "regime_share"),
    *("claimed_redundancy", "free_margin", "confidence"),
  )


CLAIMS: dict[str, Claim] = {
  "C1": Claim(
    "performance is largely invariant to architecture",
    learning.invariance,
    "accuracy",
  ),
  "C2": Claim("there are three regimes", learning.three_regimes, "accuracy"),
  "C3": Claim(
    "stable learning has a minimal parameter count",
    learning.minimal_count,
    "accuracy",
  ),
  "C4": Claim(
    "convergence and pruning have distinct phases",
    learning.distinct_phases,
    "phases",
  ),
  "C5": Claim(
    "deeper networks resist pruning better",
    compression.depth_resists,
    "redundancy",
  ),
  "C6": Claim(
    "redundancy reaches 60 %",
    compression.redundancy_reached,
    "redundancy",
  ),
  "C7": Claim(
    "quantization hurts small models more",
    compression.small_suffer,
    "damage",
  ),
  "C8": Claim(
    "quantization hurts harder data sets more",
    compression.hard_suffer,
    "damage",
  ),
}
