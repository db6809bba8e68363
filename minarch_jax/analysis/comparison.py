"""Comparison of two sets of records: paired differences with intervals."""

import numpy as np
import polars as pl

from minarch_jax import registries
from minarch_jax.analysis import statistics, tables
from minarch_jax.config import Config

ACCURACIES = ("val_accuracy", "test_accuracy")
METRICS = (*ACCURACIES, "val_loss", "train_loss", "seconds")


def compare(
  records_a: tables.Records,
  records_b: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  metric: str = "val_accuracy",
) -> pl.DataFrame:
  """Compares two optimizers, code versions or machines, network by network.

  Networks are paired by data set, architecture and seed (same data order and
  initial weights).

  Args:
    records_a: one set of records.
    records_b: the other; differences are b - a.
    config: `equivalence_margin` (for accuracies) and `confidence`.
    metric: a column of `networks`, one of `METRICS`.

  Returns:
    One row per architecture, per data set (architecture '') and overall (data
    set ''): a, b, difference, low, high, n (pairs of seeds; architectures
    where there are several), p_adjusted (two-sided, Benjamini-Hochberg over
    the architectures), p_equivalent (two one-sided tests at the margin; null
    for metrics that are not accuracies). The interval over several
    architectures is a BCa bootstrap of their mean differences (Student's for
    fewer than 10).

  Raises:
    ValueError: unknown metric, or the records share no network.
  """
  if metric not in METRICS:
    raise ValueError(
      f"metric {metric!r} is not one of {', '.join(METRICS)}"
      f"{registries.nearest(metric, METRICS)}"
    )
  keys = ("dataset", "family", "architecture", "params", "seed")
  (a, _), (b, _) = tables.one_recipe(records_a), tables.one_recipe(records_b)
  pairs = (
    a.networks.select(*keys, pl.col(metric).alias("a"))
    .join(
      b.networks.select(*keys, pl.col(metric).alias("b")), on=keys, how="inner"
    )
    .drop_nulls(["a", "b"])
    .with_columns(difference=pl.col("b") - pl.col("a"))
  )
  if not len(pairs):
    raise ValueError(
      "the two sets of records share no (data set, architecture, seed) with "
      f"a finite {metric}; compare studies of one grid and one seed range"
    )
  by = ("dataset", "family", "architecture", "params")
  pivot = tables.Pivot(pairs, by)
  matrix = pivot.means("difference")
  means = pairs.group_by(by).agg(pl.col("a", "b").mean())
  margin = config.equivalence_margin if metric in ACCURACIES else np.nan
  mean, low, high, n = statistics.mean_interval(matrix, config.confidence)
  _, _, deviation = statistics.moments(matrix)
  p = np.where(n > 1, statistics.two_sided_p(mean, deviation, n), np.nan)
  rows = pivot.groups.join(means, on=by, how="left", maintain_order="left")
  single = rows.with_columns(
    difference=pl.Series(mean),
    low=pl.Series(low),
    high=pl.Series(high),
    n=pl.Series(n, dtype=pl.Int64),
    p_adjusted=pl.Series(statistics.adjusted(p)),
    p_equivalent=pl.Series(_equivalence(mean, deviation, n, margin)),
  )
  sums = [
    _together(single.filter(pl.col("dataset") == name), name, margin, config)
    for name in single["dataset"].unique().sort()
  ]
  if len(sums) > 1:
    sums.append(_together(single, "", margin, config))
  frame = pl.concat([single, *sums], how="diagonal_relaxed").fill_nan(None)
  return tables.with_thresholds(
    frame.with_columns(metric=pl.lit(metric)),
    config,
    *("equivalence_margin", "confidence"),
  )


def _equivalence(mean, deviation, n, margin: float) -> np.ndarray:
  p = statistics.tost(mean, deviation, n, margin)
  return np.where((n > 1) & np.isfinite(margin), p, np.nan)


def _together(
  rows: pl.DataFrame, dataset: str, margin: float, config: Config
) -> pl.DataFrame:
  """One row for several architectures, which are its sample."""
  values = rows["difference"].to_numpy()
  mean, low, high, n = statistics.mean_interval(values, config.confidence)
  _, _, deviation = statistics.moments(values)
  if n >= 10:
    _, low, high = statistics.bca(
      (values,),
      np.mean,
      config.confidence,
      config.num_bootstrap,
      statistics.generator("compare", values.tolist()),
    )
  return pl.DataFrame(
    {
      "dataset": [dataset],
      "family": [""],
      "architecture": [""],
      "a": [rows["a"].mean()],
      "b": [rows["b"].mean()],
      "difference": [float(mean)],
      "low": [float(low)],
      "high": [float(high)],
      "n": [int(n)],
      "p_equivalent": [float(_equivalence(mean, deviation, n, margin))],
    }
  )
