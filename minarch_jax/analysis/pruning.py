"""Pruning phases along sparsity: free, graceful, collapse; redundancy."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import special

from minarch_jax import records as records_lib
from minarch_jax.analysis import hits as hits_lib
from minarch_jax.analysis import monotone, statistics, tables
from minarch_jax.analysis.outcomes import judged_without_curves
from minarch_jax.config import Config

Array = np.ndarray
SETTING = ("criterion", "scope", "granularity", "schedule")
LEAST = 500  # replicates, so that images are resampled where seeds are few
GROUP = (*tables.ARCHITECTURE, *SETTING)
THRESHOLDS = ("free_margin", "collapse_share", "confidence")


class Drops(NamedTuple):
  """Losses of accuracy along sparsity, paired with the same seed's dense.

  Attributes:
    groups: [G] rows of `GROUP`.
    sparsities: [K] increasing; the first is 0.
    dense: [G, S] accuracy at sparsity 0.
    drop: [G, S, K] dense minus pruned accuracy, nan = missing.
    chance: [G] 1 / C.
    images: what images add to mean drops, [G, K].
  """

  groups: pl.DataFrame
  sparsities: Array
  dense: Array
  drop: Array
  chance: Array
  images: statistics.Images


def pruning_phases(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  control: str = records_lib.NONE,
) -> pl.DataFrame:
  """Finds where pruning stops being free and where accuracy collapses.

  The definitions: report/method.md#pruning-phases.

  Drops are against the same seed at sparsity 0 (equally retrained, where the
  schedule retrains). Redundancy is an estimate: the sparsity at which the mean
  drop, fitted increasing (isotonic regression) and linear between sparsities,
  reaches `free_margin`. A sparsity is shown to be free when the mean drop is
  shown to be below the margin: one-sided t-test over seeds and images at
  `confidence`, in order of sparsity until the first failure, so the chance of a
  false `free` does not grow with the grid. Collapse begins where
  `collapse_share` of the accuracy above chance is lost in the mean.

  The intervals are bootstrapped over seeds and images: where the fitted drop
  passes the margin, and where the mean passes the collapse. Between two
  sparsities of the grid the place is anywhere, so on a coarse grid they are
  wider than noise. Seeds that did not learn have nothing to lose and are left
  out.

  Args:
    records: the tables.
    config: thresholds.
    control: `none` for the real masks, or the name of a control.

  Returns:
    One row per architecture and setting: redundancy (the end of the grid where
    the margin is not reached; null for fewer than two seeds), shown_free (the
    largest sparsity shown to be free), collapse_at (null = never in the grid),
    and intervals; a null collapse_high means beyond the grid.
  """
  return phase_table(pruning_drops(records, config, control=control), config)


def phase_table(drops: Drops, config: Config) -> pl.DataFrame:
  """The table of `pruning_phases`, from its drops."""
  columns = {name: [] for name in _COLUMNS}
  size = max(
    1, 2_000_000 // max(1, drops.drop[0].size if len(drops.drop) else 1)
  )
  size = max(1, size // LEAST)
  for begin in range(0, len(drops.drop), size):
    part = slice(begin, begin + size)
    found = phases(
      drops.sparsities,
      drops.dense[part],
      drops.drop[part],
      drops.chance[part],
      drops.images[part],
      config,
    )
    for name in _COLUMNS:
      columns[name].append(found[name])
  frame = drops.groups.with_columns(
    pl.Series(
      name,
      np.concatenate(values) if values else np.empty(0),
      dtype=pl.Int64 if name == "n_seeds" else pl.Float64,
    )
    for name, values in columns.items()
  ).with_columns(
    pl.col(name).replace([np.nan, np.inf], None)
    for name in _COLUMNS
    if name != "n_seeds"
  )
  return tables.with_thresholds(frame, config, *THRESHOLDS)


_COLUMNS = (
  "n_seeds",
  "redundancy",
  "redundancy_low",
  "redundancy_high",
  "shown_free",
  "collapse_at",
  "collapse_low",
  "collapse_high",
)


def learned(records: tables.Records, config: Config) -> pl.DataFrame:
  """The networks that did not fail: keys, chance and label-free facts."""
  return (
    judged_without_curves(records.networks, config)
    .filter(~pl.col("failed"))
    .select(*tables.NETWORK, "chance", "num_validation", "fold")
  )


def pruning_drops(
  records: tables.Records, config: Config, *, control: str = records_lib.NONE
) -> Drops:
  """Arranges the 32-bit compression rows as drops against sparsity 0."""
  records, _ = tables.one_recipe(records)
  whole = records.compression.filter(tables.AS_TRAINED)
  networks = learned(records, config)
  real, rows = (
    tables.under(whole, name).join(networks, on=tables.NETWORK, how="inner")
    for name in (records_lib.NONE, control)
  )
  hits = hits_lib.Hits.of(records.hits)
  rows = _beside_dense(rows, real.filter(pl.col("sparsity") == 0), hits)
  sparsities = np.unique(
    np.append(rows["sparsity"].to_numpy(), 0.0) if len(rows) else [0.0]
  )
  pivot = tables.Pivot(rows, GROUP)
  groups, reference = pivot.groups, pivot.means("dense")
  place = (
    pivot.group,
    pivot.seed,
    np.searchsorted(sparsities, rows["sparsity"].to_numpy()),
  )
  drop = np.full((*reference.shape, len(sparsities)), np.nan)
  drop[place] = (rows["dense"] - rows["val_accuracy"]).to_numpy()
  drop[..., 0] = np.where(np.isnan(reference), np.nan, 0.0)
  row = np.full(drop.shape, -1)
  row[place] = rows["row"].to_numpy()
  base = pivot.numbers("base")
  row[..., 0] = base
  chance = groups.join(
    rows.group_by(GROUP).agg(pl.col("chance").first()),
    on=GROUP,
    how="left",
    maintain_order="left",
  )["chance"].to_numpy()
  images = hits.images_of(
    np.swapaxes(drop, 1, 2),
    np.swapaxes(row, 1, 2),
    np.broadcast_to(base[:, None], np.swapaxes(drop, 1, 2).shape),
    tables.images_of(groups, rows),
    pivot.numbers("fold")[:, None],
  )
  return Drops(groups, sparsities, reference, drop, chance, images)


def _beside_dense(
  rows: pl.DataFrame, dense: pl.DataFrame, hits: hits_lib.Hits
) -> pl.DataFrame:
  """Adds the accuracy of the same seed at sparsity 0 under the same setting, or
  else the same schedule (dense), and where the hits of both stand (row, base);
  leaves out rows that have none."""
  rows, dense = (
    frame.with_columns(row=pl.Series(hits.rows(frame), dtype=pl.Int64))
    for frame in (rows, dense)
  )
  for name, by in (("exact", SETTING), ("same", ("schedule",))):
    keys = [*tables.NETWORK, *by]
    found = dense.group_by(keys).agg(
      pl.col("val_accuracy").mean().alias(name),
      pl.col("row").first().alias(f"{name}_row"),
    )
    rows = rows.join(found, on=keys, how="left")
  return rows.with_columns(
    dense=pl.coalesce("exact", "same"),
    base=pl.coalesce("exact_row", "same_row"),
  ).drop_nulls("dense")


def phases(
  sparsities: Array,
  dense: Array,
  drop: Array,
  chance: Array,
  images: statistics.Images,
  config: Config,
) -> dict[str, Array]:
  """Finds the phases of many settings at once; nan = cannot be said.

  Args:
    sparsities: [K].
    dense: [G, S].
    drop: [G, S, K].
    chance: [G].
    images: what images add, [G, K].
    config: thresholds.

  Returns:
    A dictionary of arrays [G], named as the columns of `pruning_phases`.
  """
  along = np.swapaxes(drop, 1, 2)
  n, mean, deviation = statistics.moments(along)
  seeds = (~np.isnan(dense)).sum(1)
  level = _filled(dense) - chance[:, None]
  # Tested in order of sparsity up to the first failure: a fixed sequence, so
  # every test keeps its own level.
  p = statistics.one_sided_p(mean, deviation, n, config.free_margin, images)
  shown = (p < 1 - config.confidence) | (sparsities == 0)
  free, _ = bracket(sparsities, shown, n > 0)
  lost = config.collapse_share * level.mean(1)
  _, collapse = bracket(sparsities, mean <= lost[:, None] + tables.TIE, n > 0)
  result = {
    "n_seeds": seeds,
    "redundancy": crossing(sparsities, mean, n, config.free_margin),
    "shown_free": free,
    "collapse_at": collapse,
  }
  low, high, low_end, high_end = _intervals(
    sparsities, along, dense, chance, images, config
  )
  # An estimate belongs to its interval, wherever resampling puts that.
  result["redundancy_low"] = np.fmin(low, result["redundancy"])
  result["redundancy_high"] = np.fmax(high, result["redundancy"])
  result["collapse_low"] = low_end
  result["collapse_high"] = high_end
  for name in ("redundancy", "redundancy_low", "redundancy_high", "shown_free"):
    result[name] = np.where(seeds > 1, result[name], np.nan)
  return result


def fitted(mean: Array, weight: Array) -> Array:
  """Fits mean drops [..., K] increasing along sparsity; weight 0 = missing.

  Accuracy that comes back at a larger sparsity is noise, or no reason to call
  the smaller one free.
  """
  present = np.broadcast_to(weight > 0, mean.shape)
  order = np.where(present, np.arange(mean.shape[-1]), 0)
  order = np.maximum.accumulate(order, axis=-1)
  filled = np.nan_to_num(np.take_along_axis(mean, order, -1))
  weight = np.where(present, weight, 1e-9)
  shape = (-1, mean.shape[-1])
  return monotone.isotonic(
    filled.reshape(shape), weight.reshape(shape)
  ).reshape(mean.shape)


def crossing(
  sparsities: Array, mean: Array, weight: Array, margin: float
) -> Array:
  """Where fitted mean drops [G, K] reach the margin, [G]."""
  rising = fitted(mean, weight)
  last, after = bracket(sparsities, rising <= margin + tables.TIE, weight > 0)
  level = np.full(len(mean), margin)
  return interpolated(sparsities, rising, level, last, after)


def bracket(
  sparsities: Array, good: Array, present: Array
) -> tuple[Array, Array]:
  """Largest sparsity before the first that is present and not good, and that
  one (inf when there is none); over the last axis."""
  bad = present & ~good
  first = np.where(bad.any(-1), np.argmax(bad, -1), bad.shape[-1])
  before = present & (np.arange(bad.shape[-1]) < first[..., None])
  last = np.where(before, sparsities, -np.inf).max(-1)
  after = np.append(sparsities, np.inf)[first]
  return np.where(np.isfinite(last), last, np.nan), after


def interpolated(
  sparsities: Array, mean: Array, level: Array, last: Array, after: Array
) -> Array:
  """Sparsity in [last, after] where the mean drop, linear between, is level;
  `last` where the grid ends before."""
  index = np.searchsorted(sparsities, np.nan_to_num(last))[:, None]
  other = np.searchsorted(sparsities, np.where(np.isinf(after), 0, after))
  low = np.take_along_axis(mean, index, 1)[:, 0]
  high = np.take_along_axis(mean, other[:, None], 1)[:, 0]
  with np.errstate(invalid="ignore", divide="ignore"):
    share = np.clip((level - low) / (high - low), 0, 1)
    inside = last + share * (after - last)
  return np.where(np.isinf(after) | ~np.isfinite(inside), last, inside)


def _filled(dense: Array) -> Array:
  """Fills missing seeds by the mean, so that averages ignore them."""
  _, mean, _ = statistics.moments(dense)
  return np.where(np.isnan(dense), mean[:, None], dense)


def _intervals(
  sparsities: Array,
  along: Array,
  dense: Array,
  chance: Array,
  images: statistics.Images,
  config: Config,
) -> tuple[Array, Array, Array, Array]:
  """Bootstrap bounds of redundancy and collapse over seeds and images, each
  [G]."""
  num_groups, _, num_seeds = along.shape
  nothing = np.full(num_groups, np.nan)
  if num_seeds < 2 or not num_groups:
    return nothing, nothing, nothing, nothing
  rng = statistics.generator("pruning", sparsities.tolist(), num_seeds)
  counts, probabilities = statistics.resamples(
    num_seeds, config.num_bootstrap, rng, at_least=LEAST
  )
  means = _resampled_means(along, counts)
  means += _image_noise(along, images, len(counts), rng)
  level = _filled(dense).mean(1)[:, None] - chance[:, None]
  measured = ~np.isnan(along)
  there = np.any(measured, axis=-1)[:, None]
  there = np.broadcast_to(there, means.shape)
  tail = (1 - config.confidence) / 2
  # Redundancy has a last sparsity, 1, even where the grid ends before it does;
  # a collapse that the grid does not reach stays open.
  weight = np.broadcast_to(measured.sum(-1)[:, None], means.shape)
  last, after = bracket(
    sparsities,
    fitted(means, weight) <= config.free_margin + tables.TIE,
    there,
  )
  spread = statistics.within(last, np.where(np.isinf(after), 1.0, after), rng)
  low = statistics.quantile(spread, probabilities, tail)
  high = statistics.quantile(spread, probabilities, 1 - tail)
  lost = (config.collapse_share * level)[..., None]
  last, after = bracket(sparsities, means <= lost + tables.TIE, there)
  spread = statistics.within(last, after, rng)
  low_end = statistics.quantile(spread, probabilities, tail)
  high_end = statistics.quantile(after, probabilities, 1 - tail)
  alone = measured.any(1).sum(1) < 2  # one seed has no interval
  low, high, low_end, high_end = (
    np.where(alone, np.nan, bound) for bound in (low, high, low_end, high_end)
  )
  return low, high, low_end, high_end


def _resampled_means(along: Array, counts: Array) -> Array:
  """Mean drops [G, B, K] of the seeds drawn `counts` [B, S] times.

  Seeds that miss a sparsity [G, K, S] count where they were measured.
  """
  present = (~np.isnan(along)).astype(float)
  n = present.sum(-1)
  mean = np.nansum(along, -1) / np.maximum(n, 1)
  centred = np.where(present > 0, along - mean[..., None], 0.0)
  weight = np.maximum(np.tensordot(present, counts, (2, 1)), 1e-9)
  # A bootstrapped mean of n seeds varies too little by (n - 1) / n.
  factor = np.sqrt(n / np.maximum(n - 1, 1))
  shift = np.tensordot(centred, counts, (2, 1)) / weight
  return np.swapaxes(mean[..., None] + factor[..., None] * shift, 1, 2)


def located(drops: Drops, rows: pl.DataFrame) -> tuple[pl.DataFrame, Array]:
  """Rows of `pruning_phases` with the number of each in `drops`."""
  found = rows.join(
    drops.groups.with_row_index("_row"),
    on=list(GROUP),
    how="inner",
    maintain_order="left",
  )
  return found.drop("_row"), found["_row"].to_numpy()


class Largest(NamedTuple):
  """The largest redundancy of several settings, [low, high] around it."""

  redundancy: float
  low: float
  high: float


def largest(
  drops: Drops, chosen: Array, high: Array, config: Config
) -> Largest:
  """Estimates the largest redundancy, corrected for being a maximum.

  The largest of many estimates is too large even where all are equal in truth,
  because noise has a part in the choice. So half of the seeds choose the
  setting and the other half measure what it is, averaged over ways to halve
  them: seeds that did not choose are as good or bad for the chosen one as for
  any. (What is estimated is the redundancy of the one chosen, which is at most
  the largest.) Images are shared by the halves: their luck stays in, and in
  the bounds. The lower bound repeats the tests of `shown_free` at a level
  corrected (Bonferroni) for all settings; the upper is the largest upper bound
  of any, which holds for the largest without correction.

  Args:
    drops: of many settings.
    chosen: [N] rows of them to look at, at least one.
    high: [N] upper bounds of their redundancies.
    config: thresholds.
  """
  along = np.swapaxes(drops.drop[chosen], 1, 2)
  count, mean, deviation = statistics.moments(along)
  p = statistics.one_sided_p(
    mean, deviation, count, config.free_margin, drops.images[chosen]
  )
  level = (1 - config.confidence) / 2 / len(chosen)
  shown = (p < level) | (drops.sparsities == 0)
  free, _ = bracket(drops.sparsities, shown, count > 0)
  low, most = float(np.nanmax(free)), float(np.nanmax(high))
  estimates = []
  for half in halves(along.shape[-1]):
    one, other = (
      crossing(drops.sparsities, mean, count, config.free_margin)
      for count, mean, _ in map(
        statistics.moments, (along[..., half], along[..., ~half])
      )
    )
    one = np.where(np.isnan(other) | np.isnan(one), -np.inf, one)
    estimates.append(other[np.argmax(one)])
  value = float(np.nanmean(estimates)) if estimates else math.nan
  return Largest(float(np.clip(value, low, most)), low, most)


HALVINGS = 40


def halves(num_seeds: int) -> list[Array]:
  """Ways to choose half of the seeds (the larger one): all, or some."""
  size = num_seeds - num_seeds // 2
  if num_seeds < 2:
    return []
  if math.comb(num_seeds, size) <= HALVINGS:
    picks = list(itertools.combinations(range(num_seeds), size))
  else:
    rng = statistics.generator("halves", num_seeds)
    picks = [rng.permutation(num_seeds)[:size] for _ in range(HALVINGS)]
  return [np.isin(np.arange(num_seeds), pick) for pick in picks]


def _image_noise(
  along: Array, images: statistics.Images, num: int, rng: np.random.Generator
) -> Array:
  """What other images would add to resampled mean drops, [G, B, K].

  With the resampled seeds it makes the variance of
  `statistics.standard_error`. Sparsities of one network, and all networks,
  see the same images: they move together.
  """
  n, mean, deviation = statistics.moments(along)
  error, _ = statistics.standard_error(mean, deviation, n, images)
  missing = np.maximum(error**2 - deviation**2 / np.maximum(n, 1), 0)
  missing[:, 0] = 0.0  # no pruning, no drop
  draws = special.ndtri((rng.permutation(num) + 0.5) / num)
  return draws[None, :, None] * np.sqrt(np.nan_to_num(missing))[:, None, :]


def redundancy_by_depth(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  phases: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Averages redundancy over architectures of one depth.

  Returns:
    dataset, family, depth, the setting, redundancy, redundancy_low,
    redundancy_high (Student interval over architectures), n_architectures.
  """
  if phases is None:
    phases = pruning_phases(records, config)
  by = ("dataset", "family", "depth", *SETTING)
  rows = []
  for key, group in (
    phases.drop_nulls("redundancy").sort(by).group_by(by, maintain_order=True)
  ):
    mean, low, high, n = statistics.mean_interval(
      group["redundancy"].to_numpy(), config.confidence
    )
    rows.append((*key, mean, max(low, 0.0), min(high, 1.0), int(n)))
  schema = {name: phases.schema[name] for name in by} | {
    **dict.fromkeys(
      ("redundancy", "redundancy_low", "redundancy_high"), pl.Float64
    ),
    "n_architectures": pl.Int64,
  }
  return pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
