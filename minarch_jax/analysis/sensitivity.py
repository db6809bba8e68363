"""Which layers can be pruned, and whether seeds agree on the weights kept."""

import numpy as np
import polars as pl

from minarch_jax import registries
from minarch_jax.analysis import hits, pruning, statistics, tables
from minarch_jax.config import Config

LAYER = (
  *tables.ARCHITECTURE,
  *("criterion", "granularity", "number", "layer", "groups", "sparsity"),
)
_ORDER = (
  *("dataset", "family", "params", "architecture", "criterion"),
  *("granularity", "number", "sparsity"),
)


def layer_sensitivity(
  records: tables.Records,
  rows: pl.DataFrame,
  config: Config = tables.DEFAULTS,
) -> pl.DataFrame:
  """Averages the accuracy lost by pruning one layer alone over seeds.

  Paired with the same seed's unpruned network. Seeds that did not learn have
  nothing to lose and are left out.

  Args:
    records: the tables, for what was learned.
    rows: the table `sensitivity`.
    config: thresholds.

  Returns:
    One row per architecture, layer (from the input to the output) and
    sparsity: n_seeds, accuracy, lost, lost_low, lost_high (over seeds and
    images, null for one seed).
  """
  learned = _learned(records, config)
  rows = rows.join(learned, on=tables.NETWORK, how="semi")
  keys = [*tables.NETWORK, "criterion", "granularity", "layer"]
  dense = rows.filter(pl.col("sparsity") == 0).select(
    *keys, dense="val_accuracy"
  )
  rows = rows.join(dense, on=keys, how="inner").with_columns(
    lost=pl.col("dense") - pl.col("val_accuracy")
  )
  rows = tables.with_folds(rows, records.networks)
  pivot = tables.Pivot(rows, LAYER)
  groups, lost = pivot.groups, pivot.means("lost")
  n, mean, _ = statistics.moments(lost)
  fold = pivot.numbers("fold")
  images = hits.from_numbers(mean, tables.images_of(groups, rows), fold, n)
  mean, low, high, n = statistics.mean_interval(
    lost, config.confidence, images=images
  )
  return _finished(
    groups,
    config,
    n_seeds=n,
    accuracy=statistics.moments(pivot.means("val_accuracy"))[1],
    lost=mean,
    lost_low=low,
    lost_high=high,
  )


def mask_overlap(
  records: tables.Records,
  rows: pl.DataFrame,
  config: Config = tables.DEFAULTS,
) -> pl.DataFrame:
  """Averages the overlap of masks over all pairs of seeds that learned.

  Pairs share seeds, so seeds are the sample of the interval (jackknife).

  Args:
    records: the tables, for what was learned.
    rows: the table `overlap`.
    config: thresholds.

  Returns:
    One row per architecture, layer ("all" = the network, last) and sparsity:
    n_seeds, n_pairs, overlap, overlap_low, overlap_high (null below three
    seeds), chance (of random masks of that sparsity) and shuffled (of the
    masks shuffled within their layers).
  """
  learned = _learned(records, config)
  others = learned.rename({"seed": "other"})
  rows = rows.join(learned, on=tables.NETWORK, how="semi").join(
    others, on=others.columns, how="semi"
  )
  groups, matrix = _pair_matrix(rows)
  mean, low, high, n = statistics.pair_interval(matrix, config.confidence)
  return _finished(
    groups.select(LAYER),
    config,
    n_seeds=n,
    n_pairs=groups["n_pairs"],
    overlap=mean,
    overlap_low=np.maximum(low, 0),
    overlap_high=np.minimum(high, 1),
    chance=groups["chance"],
    shuffled=groups["shuffled"],
  )


def _learned(records: tables.Records, config: Config) -> pl.DataFrame:
  kept, _ = tables.one_recipe(records)
  return pruning.learned(kept, config).select(tables.NETWORK)


def _pair_matrix(rows: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
  """Arranges pairs of seeds as symmetric matrices [G, S, S], nan = none."""
  groups = (
    rows.group_by(LAYER)
    .agg(pl.len().alias("n_pairs"), pl.mean("chance", "shuffled"))
    .sort(LAYER)
  )
  seeds = np.union1d(rows["seed"].to_numpy(), rows["other"].to_numpy())
  matrix = np.full((len(groups), len(seeds), len(seeds)), np.nan)
  numbers = groups.select(LAYER).with_row_index("_group")
  group = rows.select(LAYER).join(
    numbers, on=LAYER, how="left", maintain_order="left"
  )["_group"]
  a, b = (
    np.searchsorted(seeds, rows[name].to_numpy()) for name in ("seed", "other")
  )
  matrix[group.to_numpy(), a, b] = rows["overlap"].to_numpy()
  matrix[group.to_numpy(), b, a] = rows["overlap"].to_numpy()
  return groups, matrix


def _finished(groups: pl.DataFrame, config: Config, **columns) -> pl.DataFrame:
  """Adds columns, orders layers from the input on, records the level."""
  frame = groups.with_columns(
    pl.Series(name, values, dtype=pl.Int64 if name[:2] == "n_" else pl.Float64)
    for name, values in columns.items()
  )
  return tables.with_thresholds(
    frame.fill_nan(None).sort(_ORDER), config, "confidence"
  )


def short(column: str) -> pl.Expr:
  """Names a layer without the last name of its leaf."""
  return pl.col(column).str.replace(f"/({'|'.join(registries.WEIGHTS)})$", "")


def by_sparsity(frame: pl.DataFrame, value: str) -> pl.DataFrame:
  """Arranges means of single layers with a column per sparsity."""
  wide = frame.pivot("sparsity", index=["architecture", "layer"], values=value)
  return wide.with_columns(short("layer"))
