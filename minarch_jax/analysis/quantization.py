"""Quantization damage: accuracy lost at b bits, paired by seed.

Weights are rounded to symmetric integers over their whole range, activations
are as computed, unless a name says otherwise.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from minarch_jax.analysis import hits as hits_lib
from minarch_jax.analysis import pruning, statistics, tables
from minarch_jax.config import Config

FORMAT = ("bits", "quant_granularity", "quantizer", "activation_bits")

# What is rounded, each kind of rows apart from the others.
WEIGHTS = tables.COMPUTED & tables.INTEGER & ~tables.AS_TRAINED
ACTIVATIONS = ~tables.COMPUTED & tables.INTEGER
QUANTIZERS = tables.COMPUTED & ~tables.INTEGER


def paired_damage(
  records: tables.Records,
  config: Config,
  *,
  by: Sequence[str] = (),
  rounded: pl.Expr = WEIGHTS,
) -> pl.DataFrame:
  """Gives the damage of every seed: accuracy(32 bits) - accuracy(b bits).

  Args:
    records: the tables.
    config: thresholds that say which seeds learned; the others are left out.
    by: further columns that both accuracies share; () compares unpruned,
      not retrained networks.
    rounded: the rows that are compared with 32 bits.

  Returns:
    architecture columns, num_validation, fold, seed, `by`, the format, damage,
    and the rows of the hits that it is the difference of: base - row.
  """
  records, _ = tables.one_recipe(records)
  rows = tables.under(records.compression)
  if not by:
    first = "oneshot"
    rows = rows.filter(
      (pl.col("sparsity") == 0) & (pl.col("schedule") == first)
    )
  rows = rows.join(
    pruning.learned(records, config), on=tables.NETWORK, how="inner"
  )
  hits = hits_lib.Hits.of(records.hits)
  rows = rows.with_columns(row=pl.Series(hits.rows(rows), dtype=pl.Int64))
  keys = ("run_id", *tables.ARCHITECTURE, "num_validation", "fold", "seed", *by)
  dense = (
    rows.filter(tables.AS_TRAINED)
    .group_by(keys)
    .agg(dense=pl.col("val_accuracy").mean(), base=pl.col("row").first())
  )
  return (
    rows.filter(rounded)
    .group_by(*keys, *FORMAT)
    .agg(pl.col("val_accuracy").mean(), pl.col("row").first())
    .join(dense, on=keys, how="inner")
    .with_columns(damage=pl.col("dense") - pl.col("val_accuracy"))
    .drop("run_id", "dense", "val_accuracy")
    .sort(*tables.ARCHITECTURE, *by, *FORMAT, "seed")
  )


def quantization_damage(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> pl.DataFrame:
  """Averages quantization damage, with intervals over seeds and images.

  Post-training, unpruned: sparsity 0 and no retraining. Seeds that did not
  learn have nothing to lose and are left out.

  Returns:
    One row per architecture and format: n_seeds, damage, damage_low,
    damage_high (null for one seed), p_adjusted (two-sided t-test against no
    damage, Benjamini-Hochberg over the table).
  """
  return summarised(records, paired_damage(records, config), (), config)


def activation_damage(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> pl.DataFrame:
  """Averages the damage of rounding activations, and weights where bits < 32.

  Returns:
    As `quantization_damage`, for activation_bits < 32.
  """
  rows = paired_damage(records, config, rounded=ACTIVATIONS)
  return summarised(records, rows, (), config)


def quantizer_damage(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> pl.DataFrame:
  """Averages the damage of the other quantizers, each beside its bits.

  Returns:
    As `quantization_damage`, for number formats other than symmetric integers
    and integers over a narrower range.
  """
  rows = paired_damage(records, config, rounded=QUANTIZERS)
  return summarised(records, rows, (), config)


def summarised(
  records: tables.Records,
  rows: pl.DataFrame,
  by: Sequence[str],
  config: Config,
) -> pl.DataFrame:
  """Mean, interval and adjusted p-value of `damage` per group."""
  names = (*tables.ARCHITECTURE, *by, *FORMAT)
  pivot = tables.Pivot(rows, names)
  groups, matrix = pivot.groups, pivot.means("damage")
  row, base, fold = map(pivot.numbers, ("row", "base", "fold"))
  images = hits_lib.Hits.of(records.hits).images_of(
    matrix, row, base, tables.images_of(groups, rows), fold
  )
  mean, low, high, n = statistics.mean_interval(
    matrix, config.confidence, images=images
  )
  _, _, deviation = statistics.moments(matrix)
  p = statistics.two_sided_p(mean, deviation, n, images)
  p = np.where(n > 1, p, np.nan)
  frame = groups.with_columns(
    n_seeds=pl.Series(n, dtype=pl.Int64),
    damage=pl.Series(mean, dtype=pl.Float64),
    damage_low=pl.Series(low, dtype=pl.Float64),
    damage_high=pl.Series(high, dtype=pl.Float64),
    p_adjusted=pl.Series(statistics.adjusted(p), dtype=pl.Float64),
  ).fill_nan(None)
  return tables.with_thresholds(
    frame.sort("dataset", "family", "params", "architecture", *by, *FORMAT),
    config,
    "confidence",
  )


def damage_slopes(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  damage: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Fits damage against log10 P in every (data set, family, format).

  Returns:
    slope (accuracy per decade of parameters), slope_low, slope_high
    (Theil-Sen over architectures), n_architectures.
  """
  if damage is None:
    damage = quantization_damage(records, config)
  by = ("dataset", "family", *FORMAT)
  rows = []
  for key, group in damage.sort(by).group_by(by, maintain_order=True):
    slope = statistics.theil_sen(
      np.log10(group["params"].to_numpy()),
      group["damage"].to_numpy(),
      config.confidence,
    )
    rows.append((*key, *slope, len(group)))
  schema = {name: damage.schema[name] for name in by} | {
    **dict.fromkeys(("slope", "slope_low", "slope_high"), pl.Float64),
    "n_architectures": pl.Int64,
  }
  frame = pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)
  return tables.with_thresholds(frame, config, "confidence")


def joint_damage(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> pl.DataFrame:
  """Asks whether the damages of pruning and quantization add.

  Returns:
    One row per architecture, pruning setting, sparsity > 0 and format:
    damage (of quantization at that sparsity) with its interval, and
    interaction = damage at the sparsity - damage at sparsity 0, paired by
    seed, with its interval: 0 where the two damages add.
  """
  by = (*pruning.SETTING, "sparsity")
  rows = paired_damage(records, config, by=by)
  keys = (*tables.ARCHITECTURE, *pruning.SETTING, *FORMAT, "seed")
  dense = rows.filter(pl.col("sparsity") == 0).select(
    *keys, pl.col("damage").alias("alone")
  )
  pruned = rows.filter(pl.col("sparsity") > 0)
  frame = summarised(records, pruned, by, config)
  paired = pruned.join(dense, on=keys, how="inner").with_columns(
    damage=pl.col("damage") - pl.col("alone"),
    row=pl.lit(-1),  # no two networks' hits differ by a difference of damages
  )
  together = summarised(records, paired.drop("alone"), by, config)
  on = (*tables.ARCHITECTURE, *by, *FORMAT)
  return frame.drop("p_adjusted", "confidence").join(
    together.select(
      *on,
      pl.col("damage").alias("interaction"),
      pl.col("damage_low").alias("interaction_low"),
      pl.col("damage_high").alias("interaction_high"),
      "p_adjusted",
      "confidence",
    ),
    on=on,
    how="left",
    maintain_order="left",
  )
