"""Did pruning beat its controls? Paired differences, per family and sparsity.

What a pruned network reaches says little alone: random weights removed, the
found mask shuffled within each layer, the mask on new weights, or a dense
network of as many parameters trained as long may reach it too (Blalock et al.
2020, arXiv 2003.03033; Frankle et al. 2021, arXiv 2009.08576).
"""

from collections.abc import Iterator
import math

import numpy as np
import polars as pl

from minarch_jax.analysis import hits, pruning, statistics, tables
from minarch_jax.config import Config

# The control `random` is the criterion of that name: records hold it as one.
CONTROLS = ("small_dense", "reinit", "shuffled", tables.RANDOM)
BETTER, WORSE, UNDECIDED = "pruning better", "control better", "undecided"
GROUP = ("dataset", "family", "control", *pruning.SETTING, "sparsity")


def control_differences(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> pl.DataFrame:
  """Compares pruned networks with the controls of the same architecture, seed,
  schedule and sparsity, at 32 bits.

  The interval is over architectures or over seeds, whichever is the wider, and
  over images: all are samples. Seeds that did not learn dense say nothing and
  are left out.

  Returns:
    One row per data set, family, control, pruning setting and sparsity > 0:
    pruned, other (mean accuracies), difference = pruned - other with low and
    high, n_architectures, n_seeds, p_adjusted (two-sided, Benjamini-Hochberg
    over the table), step_ratio (training steps of the control per step of the
    pruned network: 1 where budgets are equal), verdict (pruning better,
    control better, undecided), and the confidence.
  """
  pairs = paired(records, config)
  rows = [
    {**dict(zip(GROUP, key, strict=True)), **_compared(group, config)}
    for key, group in pairs.sort(
      pl.col("control").cast(pl.Enum(CONTROLS)), *GROUP
    ).group_by(GROUP, maintain_order=True)
  ]
  schema = {name: pairs.schema[name] for name in GROUP} | {
    **dict.fromkeys(("pruned", "other", "difference", "low", "high"), _F),
    **dict.fromkeys(("n_architectures", "n_seeds"), pl.Int64),
    **dict.fromkeys(("p", "step_ratio"), _F),
  }
  frame = pl.DataFrame(rows, schema=schema)
  p = statistics.adjusted(frame["p"].fill_null(np.nan).to_numpy())
  alpha = 1 - config.confidence
  sure = pl.col("p_adjusted") < alpha
  return tables.with_thresholds(
    frame.drop("p")
    .with_columns(p_adjusted=pl.Series(p, dtype=pl.Float64).fill_nan(None))
    .with_columns(
      verdict=pl.when(sure & (pl.col("low") > 0))
      .then(pl.lit(BETTER))
      .when(sure & (pl.col("high") < 0))
      .then(pl.lit(WORSE))
      .otherwise(pl.lit(UNDECIDED))
    ),
    config,
    "confidence",
  )


_F = pl.Float64


def paired(records: tables.Records, config: Config) -> pl.DataFrame:
  """Puts every pruned network beside its controls.

  A control that does not depend on the criterion, scope or granularity may be
  recorded under any of them: it serves all for which there is no own row.

  Returns:
    `GROUP`, architecture, seed, pruned, other, step_ratio.
  """
  records, _ = tables.one_recipe(records)
  rows = records.compression.filter(
    tables.AS_TRAINED & (pl.col("sparsity") > 0)
  ).join(
    pruning.learned(records, config).drop("chance"),
    on=tables.NETWORK,
    how="inner",
  )
  real = tables.under(rows)
  pruned = real.filter(tables.RANKED).select(
    *tables.NETWORK,
    "family",
    *pruning.SETTING,
    "sparsity",
    pl.col("val_accuracy").alias("pruned"),
    "steps",
    "num_validation",
    "fold",
  )
  return pl.concat(
    [_empty(pruned)]
    + [_beside(pruned, name, other) for name, other in _controls(rows, real)]
  )


def _controls(
  rows: pl.DataFrame, real: pl.DataFrame
) -> Iterator[tuple[str, pl.DataFrame]]:
  for name in CONTROLS:
    if name == tables.RANDOM:
      yield name, real.filter(~tables.RANKED)
    else:
      yield name, tables.under(rows, name)


def _beside(
  pruned: pl.DataFrame, name: str, other: pl.DataFrame
) -> pl.DataFrame:
  own = [*tables.NETWORK, "schedule", "sparsity"]
  value = {"other": pl.col("val_accuracy"), "steps_other": pl.col("steps")}

  def looked_up(keys, mark):
    means = other.group_by(keys).agg(
      e.mean().alias(f"{n}_{mark}") for n, e in value.items()
    )
    return pruned.select(keys).join(
      means, on=keys, how="left", maintain_order="left"
    )

  full = [*own, "criterion", "scope", "granularity"]
  near = [*own, "scope", "granularity"]
  found = pl.concat(
    [
      pruned,
      *(
        looked_up(keys, mark).drop(keys)
        for mark, keys in (("a", full), ("b", near), ("c", own))
      ),
    ],
    how="horizontal",
  )
  return (
    found.with_columns(
      control=pl.lit(name),
      **{n: pl.coalesce(f"{n}_a", f"{n}_b", f"{n}_c") for n in value},
    )
    .drop_nulls(["pruned", "other"])
    .with_columns(step_ratio=pl.col("steps_other") / pl.col("steps"))
    .select(_empty(pruned).columns)
  )


def _empty(pruned: pl.DataFrame) -> pl.DataFrame:
  kinds = pruned.schema | {
    "control": pl.String,
    **dict.fromkeys(("other", "step_ratio"), pl.Float64),
  }
  names = (*GROUP, "architecture", "seed", "num_validation", "fold")
  names = (*names, "pruned", "other", "step_ratio")
  return pl.DataFrame(schema={name: kinds[name] for name in names})


def _compared(group: pl.DataFrame, config: Config) -> dict:
  pivot = tables.Pivot(
    group.with_columns(difference=pl.col("pruned") - pl.col("other")),
    ("architecture",),
  )
  seeds, matrix = pivot.seeds, pivot.means("difference")
  filled = np.where(
    np.isnan(matrix), np.nanmean(matrix, 1, keepdims=True), matrix
  )
  # Networks of one seed see the same images, and so do seeds of one fold.
  number = float(group["num_validation"].max())  # pyright: ignore
  folds = dict(group.select("seed", "fold").iter_rows())
  fold = np.array([folds[seed] for seed in seeds])
  one = statistics.image_variance(filled.mean(), number)
  drawn = one * hits.overlap_of(fold)
  by_architecture = statistics.Images(drawn, drawn)
  by_seed = hits.from_numbers(filled.mean(), number, fold, np.array(len(seeds)))
  samples = [
    (sample, images)
    for sample, images in (
      (filled.mean(1), by_architecture),
      (filled.mean(0), by_seed),
    )
    if len(sample) > 1
  ]
  ends, p = [(math.nan, math.nan)], [math.nan]
  if samples:
    found = [
      statistics.mean_interval(sample, config.confidence, images=images)
      for sample, images in samples
    ]
    ends = [(float(low), float(high)) for _, low, high, _ in found]
    p = [_p_value(*sample) for sample in samples]
  widest = max(range(len(ends)), key=lambda i: ends[i][1] - ends[i][0])
  low, high = (None if math.isnan(end) else end for end in ends[widest])
  return {
    "pruned": group["pruned"].mean(),
    "other": group["other"].mean(),
    "difference": float(filled.mean()),
    "low": low,
    "high": high,
    "n_architectures": matrix.shape[0],
    "n_seeds": matrix.shape[1],
    "p": None if math.isnan(p[widest]) else p[widest],
    "step_ratio": group["step_ratio"].mean(),
  }


def _p_value(sample: np.ndarray, images: statistics.Images) -> float:
  n, mean, deviation = statistics.moments(sample)
  return float(statistics.two_sided_p(mean, deviation, n, images))
