"""Claims about learning: invariance, regimes, minimal size, phases."""

import math

import numpy as np
import polars as pl

from minarch_jax.analysis import convergence as convergence_lib
from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.claims import findings, matching
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.analysis.regimes import LABELS
from minarch_jax.config import Config


def invariance(found: Evidence, config: Config) -> Finding:
  """C1: every family and depth contrast at matched size is equivalent.

  Only architectures of at least P_min count: where networks fail
  is what C3 asks. Intersection-union of TOSTs, so no correction. Contradicted
  where a contrast lies beyond the margin (Bonferroni over contrasts), or most
  pairs do one by one (Benjamini-Hochberg). The effect is the largest contrast.
  Pairs whose true differences scatter beyond the margin are not called
  equivalent for averaging to zero.
  """
  unit, rests_on = "accuracy", "networks: pairs matched in params"
  margin, alpha = config.equivalence_margin, 1 - config.confidence
  contrasts = [
    c for c in _contrasts(found, config, alpha) if math.isfinite(c.low)
  ]
  if not contrasts:
    return findings.nothing(
      unit,
      rests_on,
      "no two families or depths have two pairs of architectures from P_min "
      f"on, matched in size within {config.match_tolerance:.0%}, with two "
      "seeds each; a denser or larger grid would decide, not more seeds",
    )
  strict = _contrasts(found, config, alpha / len(contrasts))
  outside = [c.name for c in strict if c.low > margin or c.high < -margin]
  worst = max(
    [c for c in contrasts if c.name in outside] or contrasts,
    key=lambda c: abs(c.mean),
  )
  beyond = np.concatenate([c.beyond for c in contrasts])
  differ = int((statistics.adjusted(beyond) < alpha).sum())
  verdict = findings.UNDECIDED
  if outside or 2 * differ > len(beyond):
    verdict = findings.CONTRADICTED
  elif all(c.p_equivalent < alpha and c.excess <= margin for c in contrasts):
    verdict = findings.SUPPORTED
  note = (
    f"largest of {len(contrasts)} contrasts: {worst.name}; {differ} of "
    f"{len(beyond)} pairs differ by more than the margin"
  )
  if verdict == findings.UNDECIDED:
    scatter = any(c.excess > margin for c in contrasts)
    note += "; " + (
      "pairs scatter: a denser grid would decide"
      if scatter
      else _seeds_needed(worst, margin, found)
    )
  interval = (worst.mean, worst.low, worst.high)
  return Finding(*interval, len(beyond), verdict, unit, rests_on, note)


def _contrasts(
  found: Evidence, config: Config, alpha: float
) -> list[matching.Contrast]:
  """Every contrast of shape at matched size, with intervals of level
  1 - alpha."""
  by = tables.ARCHITECTURE
  _, _, accuracy = tables.seed_matrix(found["outcomes"], by, "val_accuracy")
  labels = found["regimes"].sort(by)
  least = found["minimal_parameters"].select(
    "dataset",
    "family",
    least=pl.when(status="below grid").then(0.0).otherwise("p_min"),
  )
  learns = (
    labels.join(
      least, on=["dataset", "family"], how="left", maintain_order="left"
    )
    .select((pl.col("params") >= pl.col("least")).fill_null(False))
    .to_series()
  )
  return matching.contrasts(
    labels.filter(learns),
    accuracy[learns.to_numpy()],
    config.match_tolerance,
    config.equivalence_margin,
    1 - alpha,
    found["outcomes"]["num_validation"].min(),
  )


def _seeds_needed(
  worst: matching.Contrast, margin: float, found: Evidence
) -> str:
  now = findings.num_seeds(found)
  return findings.needed(abs(worst.mean), worst.low, worst.high, margin, now)


def three_regimes(found: Evidence, config: Config) -> Finding:
  """C2: each regime holds at least `regime_share` of the architectures.

  The effect is the share of the rarest regime, with its Wilson interval
  corrected (Bonferroni) for the choice among three.
  """
  unit, rests_on = "share of architectures", "regimes: label"
  n = len(found["regimes"])
  if not n:
    return findings.nothing(unit, rests_on, "no networks")
  counts = {
    name: int((found["regimes"]["label"] == name).sum()) for name in LABELS
  }
  rarest = min(counts, key=lambda name: counts[name])
  level = 1 - (1 - config.confidence) / 3
  low, high = (
    float(bound) for bound in statistics.wilson(counts[rarest], n, level)
  )
  shares = ", ".join(f"{name} {k / n:.0%}" for name, k in counts.items())
  verdict = findings.decided(low, high, config.regime_share)
  if findings.num_seeds(found) < 2:
    verdict = findings.UNDECIDED
    shares += "; one seed cannot show instability"
  elif verdict == findings.UNDECIDED:
    shares += "; " + findings.needed(
      counts[rarest] / n, low, high, config.regime_share, n, "architectures"
    )
  return Finding(
    counts[rarest] / n, low, high, n, verdict, unit, rests_on, shares
  )


def minimal_count(found: Evidence, config: Config) -> Finding:
  """C3: P_min has an interval bounded on both sides everywhere.

  Supported only if the seed deviation from P_min on is also shown to be at
  most `eps_sigma` (upper bound over the pooled sizes): a few seeds that agree
  by luck do not make learning stable. Contradicted only if in every (data set,
  family) some architecture is stable and yet the largest surely varies too
  much (no bootstrap replicate has a P_min inside the grid): then no size is
  the least from which on learning is stable. The effect is the share of
  groups whose P_min is bounded and shown.
  """
  unit = "share of (data set, family)"
  rests_on = "minimal_parameters: p_min_low, p_min_high"
  groups = found["minimal_parameters"]
  n = len(groups)
  if not n:
    return findings.nothing(unit, rests_on, "no networks")
  bounded = groups.filter(
    (pl.col("status") == "bracketed")
    & pl.col("p_min_low").is_not_null()
    & pl.col("p_min_high").is_not_null()
    & (pl.col("sigma_high") <= config.eps_sigma)
  )
  never = groups.filter(
    (pl.col("status") == "above grid") & pl.col("p_min_low").is_null()
  ).join(findings.stable(found), on=["dataset", "family"], how="semi")
  low, high = (
    float(b) for b in statistics.wilson(len(bounded), n, config.confidence)
  )
  verdict = findings.SUPPORTED if len(bounded) == n else findings.UNDECIDED
  if len(never) == n:
    verdict = findings.CONTRADICTED
  note = "; ".join(
    f"{row['dataset']} {row['family']} "
    + (f"{row['p_min']:,.0f}" if row["p_min"] else row["status"])
    for row in groups.head(12).iter_rows(named=True)
  )
  if verdict == findings.UNDECIDED:
    loose = groups.filter(
      (pl.col("status") == "bracketed")
      & (pl.col("sigma_high") > config.eps_sigma)
    )
    note += (
      "; a seed deviation is not yet shown below eps_sigma: add seeds"
      if len(loose)
      else "; not bracketed everywhere: extend the grid"
    )
  return Finding(len(bounded) / n, low, high, n, verdict, unit, rests_on, note)


def distinct_phases(found: Evidence, config: Config) -> Finding:
  """C4: in most stable architectures every phase has a length above zero.

  An architecture counts for the claim where every phase is shown to have a
  length: the intervals of rapid, refinement and saturation lie above 0 epochs,
  and in pruning (magnitude, global where there is one) that of redundancy
  above 0 and that of the collapse beyond it. It counts against the claim only
  where some phase is shown to have none: fewer than half an epoch, or less
  than the finest step between measured sparsities, by the whole interval.
  Where neither is shown, as with few seeds, it may be either: the lower bound
  of the share takes it as against, the upper as for.
  """
  unit = "share of architectures"
  rests_on = "convergence_phases; pruning_phases"
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
      unit, rests_on, "no stable architecture has two seeds with curves"
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
  if verdict == findings.UNDECIDED:
    note += "; more seeds, finer sparsities or more architectures would decide"
  interval = (hits / n, float(low), float(high))
  return Finding(*interval, n, verdict, unit, rests_on, note)


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
