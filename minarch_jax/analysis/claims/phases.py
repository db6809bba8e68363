"""C4: do learning and pruning have phases that differ?"""

import numpy as np
import polars as pl
from scipy import special

from minarch_jax.analysis import convergence as convergence_lib
from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.claims import findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config

CLEAR = 0.9  # share of architectures that a study should recognise
QUESTION = findings.Question(
  "share of architectures",
  "convergence_phases; pruning_phases",
  "per stable architecture: are the intervals of all phases above zero",
)


def distinct_phases(found: Evidence, config: Config) -> Finding:
  """In most stable architectures every phase has a length above zero.

  An architecture counts for the claim where every phase is shown to have a
  length: the intervals of rapid, refinement and saturation lie above 0 epochs,
  and in pruning (magnitude, global where there is one) that of redundancy
  above 0 and that of the collapse beyond it. It counts against the claim only
  where some phase is shown to have none: fewer than half an epoch, or less
  than the finest step between measured sparsities, by the whole interval.
  Where neither is shown, as with few seeds, it may be either: the lower bound
  of the share takes it as against, the upper as for.
  """
  rows = _learning_phases(found)
  pruned = _pruning_phases(found)
  both = rows.join(
    pruned, on=tables.ARCHITECTURE, how="left" if not len(pruned) else "inner"
  ).with_columns(
    pl.col("prunes").fill_null(True), pl.col("unpruned").fill_null(False)
  )
  n = len(both)
  if not n:
    return findings.nothing(
      QUESTION, "no stable architecture has two seeds with curves"
    )
  hits = int((both["learns"] & both["prunes"]).sum())
  misses = int((both["missing"] | both["unpruned"]).sum())
  low, _ = statistics.wilson(hits, n, config.confidence)
  _, high = statistics.wilson(n - misses, n, config.confidence)
  verdict = findings.decided(float(low), float(high), 0.5)
  note = (
    f"every phase shown in {hits}, one shown to have no length in {misses} "
    f"of {n} architectures; convergence {both['learns'].mean():.0%}"
  )
  note += (
    f", pruning {both['prunes'].mean():.0%}"
    if len(pruned)
    else "; no pruning records"
  )
  power = _power(n, config)
  if verdict == findings.UNDECIDED:
    note += (
      f"; a share of {CLEAR:.0%} is seen in {power:.0%} of such studies; more "
      "seeds (--design=full), finer sparsities or more architectures would "
      "decide"
    )
  interval = (hits / n, float(low), float(high))
  return Finding(*interval, n, verdict, *QUESTION, power, note)


def _power(n: int, config: Config) -> float:
  """Power to show that a share of `CLEAR` of n is more than half."""
  hits = np.arange(n + 1)
  low, _ = statistics.wilson(hits, np.full(n + 1, n), config.confidence)
  enough = np.flatnonzero(low > 0.5)
  if not len(enough):
    return 0.0
  return float(special.bdtrc(enough[0] - 1, n, CLEAR))


def _learning_phases(found: Evidence) -> pl.DataFrame:
  """Stable architectures: does every phase of learning have a length (learns),
  is one shown to have none (missing)?"""
  phases = convergence_lib.PHASES[1:]
  by = list(tables.ARCHITECTURE)
  return (
    findings.stable(found)
    .select(by)
    .join(found["convergence_phases"], on=by, how="inner")
    .filter(pl.col("n_left") > 1)
    .select(
      *by,
      learns=pl.all_horizontal(
        pl.col(f"{name}_low") > 0 for name in phases
      ).fill_null(False),
      missing=pl.any_horizontal(
        pl.col(f"{name}_high") < convergence_lib.RESOLUTION / 2
        for name in phases
      ).fill_null(False),
    )
  )


def _pruning_phases(found: Evidence) -> pl.DataFrame:
  """Does every phase of pruning have a length (prunes), is one shown to have
  none (unpruned)? Per architecture, over its schedules."""
  sparsities = found["drops"].sparsities
  step = float(np.diff(sparsities).min()) if len(sparsities) > 1 else 0.0
  free = pl.col("redundancy_low") > 0
  graceful = pl.col("collapse_low") > pl.col("redundancy_high")
  no_free = pl.col("redundancy_high") < step
  no_graceful = pl.col("collapse_high") - pl.col("redundancy_low") < step
  return (
    findings.primary(found["pruning_phases"])
    .drop_nulls(["redundancy_high", "collapse_low"])
    .group_by(tables.ARCHITECTURE)
    .agg(
      prunes=(free & graceful).all(),
      unpruned=(no_free | no_graceful).fill_null(False).any(),
    )
  )
