"""Regimes of architectures, and where along the parameter axis they change."""

from collections.abc import Sequence
import dataclasses

import numpy as np
import polars as pl

from minarch_jax.analysis import monotone, statistics, tables
from minarch_jax.analysis.outcomes import judged, known_outcomes
from minarch_jax.config import Config

LABELS = ("unstable", "learning", "overfitting")
STABLE = pl.col("label") != "unstable"
THRESHOLDS = (
  "eps_sigma",
  "max_failed",
  "chance_level",
  "chance_margin",
  "overfit_rise",
  "confidence",
)


def regimes(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  outcomes: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Labels every architecture unstable, learning or overfitting.

  The probabilities are over seeds, with Wilson intervals: a seed is unstable
  when it failed, overfitting when its validation loss rose, learning
  otherwise. The label (report/method.md#regimes) also calls unstable what
  varies too much over seeds. `label_halved` and `label_doubled` use every
  threshold of the label halved and doubled.

  Args:
    records: the tables.
    config: thresholds; those used are columns of the result.
    outcomes: what `outcomes.outcomes` returns, to save a pass over curves.

  Returns:
    One row per architecture, sorted by data set, family and params.
  """
  rows = known_outcomes(records, config, outcomes)
  frame = label(rows, config)
  for name, factor in (("label_halved", 0.5), ("label_doubled", 2.0)):
    other = scaled(config, factor)
    moved = label(judged(rows, other), other)
    frame = frame.join(
      moved.select(*tables.ARCHITECTURE, pl.col("label").alias(name)),
      on=tables.ARCHITECTURE,
      how="left",
      maintain_order="left",
    )
  for name in LABELS:
    low, high = statistics.wilson(
      frame[f"n_{name}"].to_numpy(),
      frame["n_seeds"].to_numpy(),
      config.confidence,
    )
    frame = frame.with_columns(
      (pl.col(f"n_{name}") / pl.col("n_seeds")).alias(f"p_{name}"),
      pl.Series(f"p_{name}_low", low),
      pl.Series(f"p_{name}_high", high),
    )
  return tables.with_thresholds(
    frame.drop(*(f"n_{name}" for name in LABELS)), config, *THRESHOLDS
  )


def label(rows: pl.DataFrame, config: Config) -> pl.DataFrame:
  """Counts outcomes per architecture and applies the label's rule."""
  over = pl.col("overfits").fill_null(False) & ~pl.col("failed")
  frame = (
    rows.group_by(tables.ARCHITECTURE)
    .agg(
      n_seeds=pl.len(),
      mean_accuracy=pl.col("val_accuracy").mean(),
      sigma=pl.col("val_accuracy").var() - pl.col("image_noise").first(),
      mean_test_accuracy=pl.col("test_accuracy").mean(),
      diverged=pl.col("diverged").sum(),
      stuck=pl.col("stuck").sum(),
      n_unstable=pl.col("failed").sum(),
      n_overfitting=over.sum(),
      without_curve=pl.col("overfits").is_null().sum()
      - pl.col("diverged").sum(),
    )
    .sort("dataset", "family", "params", "architecture")
    .with_columns(
      n_learning=pl.col("n_seeds")
      - pl.col("n_unstable")
      - pl.col("n_overfitting"),
      sigma=pl.col("sigma").clip(0).sqrt(),
    )
    .with_columns(
      high_variance=pl.col("sigma").fill_null(0) > config.eps_sigma,
    )
  )
  failed = pl.col("n_unstable") / pl.col("n_seeds") > config.max_failed
  return frame.with_columns(
    label=pl.when(failed | pl.col("high_variance"))
    .then(pl.lit("unstable"))
    .when(2 * pl.col("n_overfitting") > pl.col("n_seeds"))
    .then(pl.lit("overfitting"))
    .otherwise(pl.lit("learning"))
  )


def scaled(config: Config, factor: float) -> Config:
  """Multiplies every threshold of the labels, keeping shares at most 1."""
  names = THRESHOLDS[:-1]
  changes = {
    name: min(1.0, getattr(config, name) * factor)
    if name != "overfit_rise"
    else config.overfit_rise * factor
    for name in names
  }
  return dataclasses.replace(config, **changes)


def regime_boundaries(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  by: Sequence[str] = ("dataset", "family"),
  outcomes: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Finds where along log P one regime gives way to the next.

  Logistic in log P, with likelihood-ratio intervals: `unstable|learning` is
  the size at which an architecture is as likely as not labelled unstable,
  `learning|overfitting` the size at which half of the seeds of stable
  architectures overfit. Few architectures make the intervals conservative.

  Args:
    records: the tables.
    config: thresholds.
    by: groups, any of dataset, family, depth.
    outcomes: as in `regimes`.

  Returns:
    The columns of `by`, boundary, p, p_low, p_high (null = open side),
    n_architectures, status (bracketed, below grid, above grid).
  """
  labels = label(known_outcomes(records, config, outcomes), config)
  rows = []
  for key, group in labels.sort(by).group_by(by, maintain_order=True):
    stable = group.select(STABLE).to_series().to_numpy()
    seeds = group["n_seeds"].to_numpy().astype(float)
    over = group["n_overfitting"].to_numpy().astype(float)
    x = np.log10(group["params"].to_numpy())
    for name, used, beyond, trials in (
      ("unstable|learning", stable | True, stable * 1.0, np.ones(len(x))),
      ("learning|overfitting", stable, over, seeds),
    ):
      place = monotone.threshold(
        x[used], beyond[used], trials[used], 0.5, config.confidence
      )
      rows.append(
        {
          **dict(zip(by, key, strict=True)),
          "boundary": name,
          **monotone.located(*place, x[used]),
          "n_architectures": int(used.sum()),
        }
      )
  schema = {name: labels.schema[name] for name in by} | {
    "boundary": pl.String,
    **{name: pl.Float64 for name in ("p", "p_low", "p_high")},
    "status": pl.String,
    "n_architectures": pl.Int64,
  }
  return tables.with_thresholds(
    pl.DataFrame(rows, schema=schema), config, *THRESHOLDS
  )


def regime_counts(regimes: pl.DataFrame) -> pl.DataFrame:
  """Counts architectures per regime under the thresholds, halved, doubled."""
  names = {
    "label_halved": "halved",
    "label": "as_set",
    "label_doubled": "doubled",
  }
  keys = ["dataset", "family"]
  every = (
    regimes.select(keys)
    .unique(maintain_order=True)
    .join(pl.DataFrame({"regime": list(LABELS)}), how="cross")
  )
  for column, name in names.items():
    counts = regimes.group_by(*keys, regime=column).agg(pl.len().alias(name))
    every = every.join(
      counts, on=[*keys, "regime"], how="left", maintain_order="left"
    )
  return every.with_columns(pl.col(*names.values()).fill_null(0))
