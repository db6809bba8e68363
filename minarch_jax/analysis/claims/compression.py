"""Claims about compression: depth, redundancy, quantization damage."""

import math

import numpy as np
import polars as pl

from minarch_jax.analysis import pruning as pruning_lib
from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.claims import findings, matching
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config


def depth_resists(found: Evidence, config: Config) -> Finding:
  """C5: redundancy rises with depth, size held fixed.

  Spearman's partial correlation of redundancy with depth given params, ranks
  taken within (data set, family), with an interval over architectures.
  """
  unit, rests_on = "rank correlation", "pruning_phases: redundancy, stable only"
  by = list(tables.ARCHITECTURE)
  rows = (
    tables.primary(findings.primary(found["pruning_phases"]), ("schedule",))
    .filter(pl.col("n_seeds") > 1)
    .join(findings.stable(found).select(by), on=by, how="semi")
    .drop_nulls("redundancy")
    .sort(by)
  )
  groups = [
    (
      group["depth"].to_numpy(),
      group["redundancy"].to_numpy(),
      group["params"].to_numpy(),
    )
    for _, group in rows.group_by("dataset", "family", maintain_order=True)
    if len(group) >= 5 and group["depth"].n_unique() > 1
  ]
  if not groups:
    return findings.nothing(
      unit,
      rests_on,
      "no (data set, family) has five stable architectures of several depths, "
      "pruned with two seeds",
    )
  effect, low, high, n = statistics.partial_spearman(groups, config.confidence)
  verdict = findings.decided(low, high, 0.0)
  note = (
    findings.needed(effect, low, high, 0.0, n, "architectures")
    if verdict == findings.UNDECIDED
    else ""
  )
  return Finding(effect, low, high, n, verdict, unit, rests_on, note)


def redundancy_reached(found: Evidence, config: Config) -> Finding:
  """C6: some stable architecture loses `claimed_redundancy` for free.

  The effect is the largest redundancy, corrected for being a maximum, and its
  interval: `pruning.largest`.
  """
  unit = "sparsity"
  rests_on = "pruning_phases: redundancy, magnitude, stable only"
  by = list(tables.ARCHITECTURE)
  rows = (
    findings.primary(found["pruning_phases"])
    .join(findings.stable(found).select(by), on=by, how="semi")
    .drop_nulls("redundancy")
  )
  n = len(rows)
  if not n:
    return findings.nothing(
      unit, rests_on, "no stable architecture was pruned with two seeds"
    )
  best = rows.sort("redundancy", "params", descending=[True, False]).row(
    0, named=True
  )
  drops = found["drops"]
  rows, chosen = pruning_lib.located(drops, rows)
  effect, low, high = pruning_lib.largest(
    drops, chosen, rows["redundancy_high"].to_numpy(), config
  )
  claimed = config.claimed_redundancy
  verdict = (
    findings.SUPPORTED
    if low >= claimed - 1e-9
    else findings.CONTRADICTED
    if high < claimed
    else findings.UNDECIDED
  )
  note = f"{best['architecture']} on {best['dataset']}, {best['schedule']}"
  if verdict == findings.UNDECIDED:
    sparsities = drops.sparsities
    at = int(np.argmin(np.abs(sparsities - claimed)))
    images = drops.images[chosen, at]
    _, mean, deviation = statistics.moments(drops.drop[chosen][..., at])
    level = (1 - config.confidence) / 2 / n
    needed = _seeds_to_show(mean, deviation, config.free_margin, level, images)
    note += (
      f"; about {needed} seeds would show {sparsities[at]:.0%} to be free"
      if needed
      else f"; no number of seeds would show {sparsities[at]:.0%} to be free "
      f"on {found['outcomes']['num_validation'].min()} images"
    )
  return Finding(effect, low, high, n, verdict, unit, rests_on, note)


def _seeds_to_show(
  mean: np.ndarray,
  deviation: np.ndarray,
  margin: float,
  level: float,
  images: statistics.Images,
) -> int | None:
  """Seeds with which some drop, as it is now, would pass its t-test."""
  for n in range(2, 1001):
    p = statistics.one_sided_p(
      mean, deviation, np.full(len(mean), n), margin, images
    )
    if (p < level).any():
      return n
  return None


def _hardest_format(found: Evidence) -> pl.DataFrame:
  """Damages of stable architectures at the fewest bits, per channel where
  there is one: what fails anyway, or by luck, has less to lose."""
  by = list(tables.ARCHITECTURE)
  damage = found["quantization"]
  rows = damage.filter(pl.col("bits") == pl.col("bits").min())
  rows = tables.primary(rows, ("quant_granularity",)).drop_nulls("damage")
  return rows.join(
    findings.stable(found).select(by), on=by, how="semi", maintain_order="left"
  )


def small_suffer(found: Evidence, config: Config) -> Finding:
  """C7: damage falls as log10 P grows.

  Theil-Sen slope over stable architectures, sizes and damages centred within
  (data set, family). Centring costs every group one architecture: alone or in
  pairs they have no scatter, and would look certain.
  """
  unit = "accuracy per decade of params"
  rests_on = "quantization: damage at the fewest bits, stable only"
  size = pl.len().over("dataset", "family")
  rows = _hardest_format(found).filter(size > 2)
  groups = rows.select("dataset", "family").n_unique()
  if len(rows) - groups < 4:
    return findings.nothing(
      unit,
      rests_on,
      "no family has five quantized architectures that are stable",
    )
  centred = rows.with_columns(x=pl.col("params").log10()).with_columns(
    pl.col(name) - pl.col(name).median().over("dataset", "family")
    for name in ("x", "damage")
  )
  slope, low, high = statistics.theil_sen(
    centred["x"].to_numpy(), centred["damage"].to_numpy(), config.confidence
  )
  if not math.isfinite(low):
    return findings.nothing(unit, rests_on, "all architectures have one size")
  verdict = findings.decided(-high, -low, 0.0)
  note = f"{rows['bits'][0]} bits per {rows['quant_granularity'][0]}"
  if verdict == findings.UNDECIDED:
    note += "; " + findings.needed(
      slope, low, high, 0.0, len(rows), "architectures"
    )
  return Finding(slope, low, high, len(rows), verdict, unit, rests_on, note)


def hard_suffer(found: Evidence, config: Config) -> Finding:
  """C8: at matched size damage is larger on the harder data set.

  Data sets are ordered as the report orders them, by the best accuracy
  reached. Every stable architecture of an easier set is paired with a stable
  one of the same family matched in size on a harder set; pairs of one
  architecture are averaged, and the interval is over architectures and images.
  """
  unit = "accuracy"
  rests_on = "quantization: damage at the fewest bits, matched, stable only"
  rows = _hardest_format(found)
  order = tables.by_difficulty(found["outcomes"])
  if len(order) < 2:
    return findings.nothing(
      unit, rests_on, "one data set; a second, harder one would decide"
    )
  clusters: dict[tuple[str, str], list[float]] = {}
  for i, easy in enumerate(order):
    for hard in order[i + 1 :]:
      for family in rows["family"].unique().sort():
        own = rows.filter(pl.col("family") == family)
        a = own.filter(pl.col("dataset") == easy)
        b = own.filter(pl.col("dataset") == hard)
        for left, right in matching.matched(
          a["params"].to_numpy(), b["params"].to_numpy(), config.match_tolerance
        ):
          key = (family, a["architecture"][left])
          clusters.setdefault(key, []).append(
            b["damage"][right] - a["damage"][left]
          )
  values = np.array([np.mean(v) for _, v in sorted(clusters.items())])
  # Two sets of images, each of which all architectures share.
  sizes = (
    found["outcomes"].group_by("dataset").agg(pl.col("num_validation").max())
  )
  fewest = np.sort(sizes["num_validation"].to_numpy())[:2]
  images = 1 / (1 / fewest).sum()
  mean, low, high, n = statistics.mean_interval(
    values, config.confidence, images=images
  )
  if n < 2:
    return findings.nothing(
      unit,
      rests_on,
      "fewer than two stable architectures match in size across sets",
    )
  verdict = findings.decided(float(low), float(high), 0.0)
  note = " < ".join(order)
  if verdict == findings.UNDECIDED:
    note += "; " + findings.needed(
      float(mean), float(low), float(high), 0.0, int(n), "architectures"
    )
  return Finding(
    float(mean), float(low), float(high), int(n), verdict, unit, rests_on, note
  )
