"""Do cheap measurements early in training foretell the regime?"""

from typing import Any

import numpy as np
import polars as pl
import scipy

from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.outcomes import known_outcomes
from minarch_jax.analysis.regimes import label, THRESHOLDS
from minarch_jax.config import Config

PROBES = ("dead", "logit_scale", "gradient_norm", "sharpness", "loss")
# What is foretold, of which architectures.
OUTCOMES = {
  "unstable": ("unstable", ("unstable", "learning", "overfitting")),
  "overfitting": ("overfitting", ("learning", "overfitting")),
}


def probe_predictions(
  records: tables.Records,
  probes: pl.DataFrame,
  config: Config = tables.DEFAULTS,
  *,
  outcomes: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Asks how well each probe tells the architectures of a regime from others.

  The area under the ROC curve (AUC) is the chance that an architecture of the
  regime has the larger value, its seeds' median: 1 and 0 foretell perfectly,
  0.5 says nothing. Architectures are the sample of the interval, because seeds
  of one share a label. A value that is not finite counts as the largest. The
  rows of `params` ask the same of the size alone: a probe that does no better
  adds nothing to counting.

  Args:
    records: the tables, for the regimes that were reached.
    probes: rows of the table `probes`.
    config: thresholds.
    outcomes: as in `regimes`.

  Returns:
    One row per data set, family ('' = all), regime, step and probe: auc with
    auc_low and auc_high, n_regime, n_other (architectures), p_adjusted
    (two-sided rank test, Benjamini-Hochberg over the table), above_limit (for
    sharpness the share of those of the regime above 2 / learning rate) and
    verdict (foretells, undecided). Null where a side is empty.
  """
  outcomes = known_outcomes(records, config, outcomes)
  labels = label(outcomes, config).select(
    "dataset", "family", "architecture", "label"
  )
  values = medians(probes.filter(pl.col("run_id").is_in(_runs(outcomes))))
  joined = values.join(labels, on=["dataset", "family", "architecture"])
  both = pl.concat([joined, joined.with_columns(family=pl.lit(""))])
  rows = [
    {**dict(zip(_BY, key, strict=True)), **row}
    for key, group in both.sort(*_BY, "architecture").group_by(
      _BY, maintain_order=True
    )
    for row in _areas(group, config)
  ]
  frame = pl.DataFrame(rows, schema=_SCHEMA)
  p = statistics.adjusted(frame["p"].fill_null(np.nan).to_numpy())
  beyond = (pl.col("auc_low") > 0.5) | (pl.col("auc_high") < 0.5)
  sure = pl.col("p_adjusted") < 1 - config.confidence
  return tables.with_thresholds(
    frame.drop("p")
    .with_columns(p_adjusted=pl.Series(p, dtype=pl.Float64).fill_nan(None))
    .with_columns(
      verdict=pl.when(beyond & sure)
      .then(pl.lit("foretells"))
      .otherwise(pl.lit("undecided"))
    ),
    config,
    *THRESHOLDS,
  )


_BY = ("dataset", "family", "step", "probe")
_F = pl.Float64
_SCHEMA = (
  {"dataset": pl.String, "family": pl.String, "step": pl.Int64}
  | {"probe": pl.String, "regime": pl.String}
  | dict.fromkeys(("auc", "auc_low", "auc_high"), _F)
  | dict.fromkeys(("n_regime", "n_other"), pl.Int64)
  | {"above_limit": _F, "p": _F}
)


def _runs(outcomes: pl.DataFrame) -> pl.Series:
  return outcomes["run_id"].unique().implode()


def medians(probes: pl.DataFrame) -> pl.DataFrame:
  """One value per architecture, step and probe: the median over seeds.

  Returns:
    dataset, family, architecture, step, probe, value, above (share of seeds
    above `limit`, sharpness only).
  """
  by = ["dataset", "family", "architecture", "step"]
  largest = probes.with_columns(pl.col(PROBES).fill_null(np.inf))
  sizes = pl.col("params").cast(pl.Float64)
  long = largest.with_columns(params=sizes).unpivot(
    on=[*PROBES, "params"],
    index=[*by, "seed", "limit"],
    variable_name="probe",
  )
  over = (pl.col("value") > pl.col("limit")).mean()
  return (
    long.group_by(*by, "probe")
    .agg(value=pl.col("value").median(), above=over)
    .with_columns(above=pl.when(probe="sharpness").then("above"))
    .sort(*by, "probe")
  )


def _areas(group: pl.DataFrame, config: Config):
  for regime, (name, among) in OUTCOMES.items():
    rows = group.filter(pl.col("label").is_in(among))
    is_it = (rows["label"] == name).to_numpy()
    value = rows["value"].to_numpy()
    one, other = value[is_it], value[~is_it]
    row = {"regime": regime, "n_regime": len(one), "n_other": len(other)}
    if len(one) and len(other):
      test: Any = scipy.stats.mannwhitneyu(one, other, alternative="two-sided")
      auc = float(test.statistic) / (len(one) * len(other))
      low, high = statistics.auc_interval(
        auc, len(one), len(other), config.confidence
      )
      row |= {"auc": auc, "auc_low": low, "auc_high": high}
      row |= {"p": float(test.pvalue)}
      row |= {"above_limit": rows.filter(is_it)["above"].mean()}
    yield row
