"""C6: can an architecture lose 60 % of its weights, chosen before looking?"""

import numpy as np
import polars as pl

from minarch_jax import records
from minarch_jax.analysis import pruning as pruning_lib
from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.claims import blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config

UNIT = "sparsity"
CONFIRMED = findings.Question(
  UNIT,
  "pruning_phases of the arm confirmation: redundancy, magnitude",
  "the architecture of each family with the largest redundancy, on fresh "
  "seeds; level shared over families",
)
SEARCHED = findings.Question(
  UNIT,
  "pruning_phases: redundancy, magnitude, stable only",
  "all stable architectures; level shared over all of them",
)


def redundancy_reached(found: Evidence, config: Config) -> Finding:
  """Some architecture loses `claimed_redundancy` of its weights for free.

  Per family the most redundant architecture of the main arm is tested on fresh
  seeds, each at a level shared over families; contradicted where all of them
  are shown to lose more. Without fresh seeds all stable architectures are
  tested, at a level shared over all.
  """
  arm = found.arm(records.CONFIRMATION)
  chosen = _chosen(found, arm)
  if len(chosen):
    return _confirmed(found, arm, chosen, config)
  return _searched(found, config)


def _chosen(found: Evidence, arm: Evidence) -> pl.DataFrame:
  """Per (data set, family) the architecture with fresh seeds that is the most
  redundant on the main arm: its row of `pruning_phases` of the fresh."""
  by = list(tables.ARCHITECTURE)
  main = (
    tables.primary(findings.primary(found["pruning_phases"]), ("schedule",))
    .drop_nulls("redundancy")
    .select(*by, known="redundancy")
  )
  fresh = tables.primary(
    findings.primary(arm["pruning_phases"]), ("schedule",)
  ).drop_nulls("redundancy")
  return (
    fresh.join(main, on=by, how="inner")
    .sort("known", *by, descending=[True] + [False] * len(by))
    .unique(["dataset", "family"], keep="first", maintain_order=True)
  )


def _verdict(low: float, high: float, claimed: float) -> str:
  """Supported where what is claimed is shown to be free."""
  if low >= claimed - tables.TIE:
    return findings.SUPPORTED
  return findings.CONTRADICTED if high < claimed else findings.UNDECIDED


def _confirmed(
  found: Evidence, arm: Evidence, chosen: pl.DataFrame, config: Config
) -> Finding:
  claimed = config.claimed_redundancy
  level = (1 - config.confidence) / 2 / len(chosen)
  strict = pruning_lib.phase_table(
    arm["drops"], config.replace(confidence=1 - level)
  )
  by = [*tables.ARCHITECTURE, *pruning_lib.SETTING]
  free = chosen.join(
    strict.select(*by, strict="shown_free"), on=by, maintain_order="left"
  )["strict"]
  low = float(free.max() or 0)  # pyright: ignore
  high = float(chosen["redundancy_high"].max() or 1)  # pyright: ignore
  verdict = _verdict(low, high, claimed)
  best = chosen.row(0, named=True)
  note = "; ".join(
    f"{row['architecture']} on {row['dataset']} {row['redundancy']:.0%} "
    f"({row['known']:.0%} on the seeds that chose it)"
    for row in chosen.iter_rows(named=True)
  )
  now, then = (
    _power(arm, chosen, claimed, level, more, config) for more in (1.0, 2.0)
  )
  if verdict == findings.UNDECIDED:
    what = f"one that loses nothing at {claimed:.0%}"
    note += "; " + findings.remedy(now, then, what, "--design=full")
  effect = float(np.clip(best["redundancy"], low, max(low, high)))
  return Finding(
    effect,
    low,
    max(low, high),
    int(chosen["n_seeds"].sum()),
    verdict,
    *CONFIRMED,
    now,
    note,
  )


def _power(
  arm: Evidence,
  chosen: pl.DataFrame,
  claimed: float,
  level: float,
  more: float,
  config: Config,
) -> float:
  """Power to show some family free that loses nothing at all."""
  drops = arm["drops"]
  _, rows = pruning_lib.located(drops, chosen)
  at = int(np.argmin(np.abs(drops.sparsities - claimed)))
  n, _, deviation = statistics.moments(drops.drop[rows][..., at])
  misses = 1.0
  for count, spread in zip(n, deviation, strict=True):
    if count > 1:
      misses *= 1 - blocks.power(
        config.free_margin,
        float(spread) / np.sqrt(count * more),
        float(count - 1),
        1 - 2 * level,
      )
  return 1 - misses


def _searched(found: Evidence, config: Config) -> Finding:
  """Today's seeds choose and decide: `pruning.largest`."""
  by = list(tables.ARCHITECTURE)
  rows = (
    findings.primary(found["pruning_phases"])
    .join(findings.stable(found).select(by), on=by, how="semi")
    .drop_nulls("redundancy")
  )
  if not len(rows):
    return findings.nothing(
      SEARCHED, "no stable architecture was pruned with two seeds"
    )
  best = rows.sort("redundancy", "params", descending=[True, False]).row(
    0, named=True
  )
  rows, chosen = pruning_lib.located(found["drops"], rows)
  effect, low, high = pruning_lib.largest(
    found["drops"], chosen, rows["redundancy_high"].to_numpy(), config
  )
  verdict = _verdict(low, high, config.claimed_redundancy)
  note = f"{best['architecture']} on {best['dataset']}, {best['schedule']}"
  if verdict == findings.UNDECIDED:
    note += "; fresh seeds of it would decide (the arm confirmation)"
  return Finding(effect, low, high, len(rows), verdict, *SEARCHED, note=note)
