"""What a report reports: records, every analysis of them, provenance."""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any, NamedTuple

import polars as pl

from minarch_jax import analysis, architectures
from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax.analysis import statistics

# Analyses of tables that only `experiments.sensitivity` leaves.
LAYERED: dict[str, Callable[..., pl.DataFrame]] = {
  "sensitivity": analysis.layer_sensitivity,
  "overlap": analysis.mask_overlap,
}

REGIMES = ("unstable", "learning", "overfitting")


class Reading(NamedTuple):
  """Records, the tables the analyses made of them, and where they come from.

  `tables` maps the name of each file in report/tables to its frame; `study` is
  study.json; `datasets` is ordered by falling best accuracy, that is by
  growing difficulty, and `families` as METHOD.md names them.
  """

  records: records_lib.Records
  config: config_lib.Config
  study: dict[str, Any]
  tables: dict[str, pl.DataFrame]
  summary: Sequence[str]
  datasets: tuple[str, ...]
  families: tuple[str, ...]


def by_difficulty(networks: pl.DataFrame) -> tuple[str, ...]:
  """Orders data sets by falling best validation accuracy."""
  best = networks.group_by("dataset").agg(pl.max("val_accuracy"))
  return tuple(
    best.sort("val_accuracy", "dataset", descending=[True, False])["dataset"]
  )


def analyse(
  records: records_lib.Records,
  config: config_lib.Config,
  study: dict[str, Any],
  layered: Mapping[str, pl.DataFrame] | None = None,
) -> Reading:
  """Runs every analysis of the records.

  Args:
    records: the tables that every study leaves.
    config: thresholds.
    study: study.json.
    layered: the tables named in `LAYERED`, where they were measured.

  Raises:
    ConfigError: there are no networks in the records.
  """
  if records.networks.is_empty():
    raise config_lib.ConfigError(
      "the records hold no trained network; run "
      "`python -m experiments.study` with the same --out first"
    )
  records, notes = analysis.one_recipe(records)
  tables = analysis.analyse(records, config)
  summary = analysis.summary(records, config, **tables)
  labels, sizes = tables["regimes"], tables["minimal_parameters"]
  tables["regime_counts"] = regime_counts(labels)
  tables["selected"] = selected(records.networks, sizes, config.confidence)
  for name, rows in (layered or {}).items():
    if not rows.is_empty():
      tables[name] = LAYERED[name](records, rows, config)
  if study.get("packs"):
    tables["packs"] = listed(study["packs"])
    tables["stages"] = stages(tables["packs"])
  return Reading(
    records,
    config,
    study,
    tables,
    (*notes, *summary),
    by_difficulty(records.networks),
    in_order(records.networks["family"].unique().to_list()),
  )


def listed(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
  """Makes a table of a list in study.json; nested values become JSON."""
  plain = (str, int, float, bool, type(None))
  return pl.DataFrame(
    [
      {
        name: value if isinstance(value, plain) else json.dumps(value)
        for name, value in row.items()
      }
      for row in rows
    ],
    infer_schema_length=None,
  )


def stages(packs: pl.DataFrame) -> pl.DataFrame:
  """Adds up the times of the packs of each stage."""
  times = [name for name in packs.columns if name.endswith("_seconds")]
  if "stage" not in packs.columns:
    return pl.DataFrame()
  return packs.group_by("stage", maintain_order=True).agg(
    pl.len().alias("packs"), pl.col(times).sum()
  )


def in_order(families: Sequence[str]) -> tuple[str, ...]:
  """Orders families as METHOD.md names them, others after."""
  known = tuple(architectures.FAMILIES)
  return tuple(
    sorted(families, key=lambda f: (known.index(f) if f in known else 9, f))
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
    .join(pl.DataFrame({"regime": list(REGIMES)}), how="cross")
  )
  for column, name in names.items():
    counts = regimes.group_by(*keys, regime=column).agg(pl.len().alias(name))
    every = every.join(
      counts, on=[*keys, "regime"], how="left", maintain_order="left"
    )
  return every.with_columns(pl.col(*names.values()).fill_null(0))


def selected(
  networks: pl.DataFrame, minimal: pl.DataFrame, confidence: float
) -> pl.DataFrame:
  """Gives the accuracy of the networks that validation selected.

  Per data set and family: the architecture of the highest plateau and the
  smallest reliable one. Test accuracy is read here, after the choice.
  """
  roles = {
    "plateau_architecture": "most accurate",
    "architecture": "smallest reliable",
  }
  chosen = (
    minimal.unpivot(
      on=list(roles),
      index=["dataset", "family"],
      variable_name="role",
      value_name="chosen",
    )
    .rename({"chosen": "architecture"})
    .drop_nulls("architecture")
    .with_columns(pl.col("role").replace(roles))
  )
  keys = ["dataset", "architecture", "params"]
  for split in ("val", "test"):
    column = f"{split}_accuracy"
    means = mean_interval(networks, keys, column, confidence).select(
      *keys,
      pl.col("n").alias("n_seeds"),
      pl.col("mean").alias(column),
      pl.col("low").clip(0, 1).alias(f"{column}_low"),
      pl.col("high").clip(0, 1).alias(f"{column}_high"),
    )
    on = [key for key in (*keys, "n_seeds") if key in chosen.columns]
    chosen = chosen.join(means, on=on, how="left", maintain_order="left")
  return chosen.sort("dataset", "family", "role", maintain_order=True)


def mean_interval(
  frame: pl.DataFrame, keys: Sequence[str], column: str, confidence: float
) -> pl.DataFrame:
  """Means of groups with Student's t intervals, seeds being the sample.

  Returns:
    `keys`, mean, low, high, n; low and high are null for a single value.
  """
  grouped = frame.group_by(keys, maintain_order=True).agg(
    mean=pl.col(column).mean(),
    half=pl.col(column).std() / pl.len().sqrt(),
    n=pl.len().cast(pl.Int64),
  )
  level = (1 + confidence) / 2
  quantile = pl.Series(
    statistics.t_quantile(grouped["n"].to_numpy() - 1, level)
  )
  half = grouped["half"] * quantile.fill_nan(None)
  return grouped.with_columns(
    low=pl.col("mean") - half, high=pl.col("mean") + half
  ).drop("half")


def seeds(frame: pl.DataFrame) -> str:
  """Says how many seeds the rows of a table rest on."""
  low, high = frame["n_seeds"].min(), frame["n_seeds"].max()
  if high == 1:
    return "1 seed each, hence no intervals"
  return f"{low if low == high else f'{low} to {high}'} seeds each"


def points(fraction: float) -> str:
  """Writes a difference of accuracies in percentage points."""
  value = f"{100 * fraction:g}"
  return f"{value} point{'' if value == '1' else 's'}"


class Figure(NamedTuple):
  """A chart, the rows it draws, its title and caption.

  The caption says n, the kind of interval and the thresholds.
  """

  title: str
  chart: Any
  caption: str
  rows: list[dict[str, Any]]
