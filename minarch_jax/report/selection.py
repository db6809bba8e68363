"""Which compression rows a figure shows, and into which panels they go."""

import polars as pl

from minarch_jax import analysis
from minarch_jax.analysis import tables
from minarch_jax.analysis.regimes import STABLE
from minarch_jax.report.reading import Reading

SCHEDULES = {
  "oneshot": "one-shot",
  "finetune": "fine-tuned",
  "iterative": "iterative",
  "gradual": "gradual",
}


def primary(reading: Reading) -> tuple[pl.DataFrame, str, str]:
  """Stable networks' rows of the criterion and scope the figures show.

  One granularity, weights only, as integers. The rows of random pruning stay,
  as the control; networks labelled unstable go, unless nothing else is there:
  they have no accuracy to lose.
  """
  rows = analysis.plain(analysis.under(reading.records.compression))
  rows = tables.primary(rows, ("granularity",))
  criterion = chosen_criterion(reading, rows)
  scope = tables.preferred(rows, "scope", reading.config.scopes)
  labels = reading.tables["regimes"].select("dataset", "architecture", "label")
  rows = rows.filter(
    pl.col("criterion").is_in([criterion, tables.RANDOM]), scope=scope
  ).join(labels, on=["dataset", "architecture"], how="left")
  stable = rows.filter(STABLE)
  return (stable if len(stable) else rows), criterion, scope


def chosen_criterion(reading: Reading, rows: pl.DataFrame) -> str:
  """The criterion that the figures show; random only where it is alone."""
  ranked = rows.filter(tables.RANKED)
  return tables.preferred(
    ranked if len(ranked) else rows, "criterion", reading.config.criteria
  )


def architectures(rows: pl.DataFrame) -> str:
  """Says how many architectures each schedule rests on."""
  counts = dict(
    rows.group_by("schedule")
    .agg(pl.struct("dataset", "architecture").n_unique())
    .iter_rows()
  )
  return ", ".join(
    f"{counts[name]} architecture{'' if counts[name] == 1 else 's'} {words}"
    for name, words in SCHEDULES.items()
    if name in counts
  )


def finest(rows: pl.DataFrame) -> pl.DataFrame:
  """Keeps one quantization granularity: per channel where there is one."""
  whole = pl.col("quant_granularity") == "none"
  rounded = tables.primary(rows.filter(~whole), ("quant_granularity",))
  if rounded.is_empty():
    return rows
  kept = rounded["quant_granularity"][0]
  return rows.filter(whole | (pl.col("quant_granularity") == kept))


def in_order(rows: pl.DataFrame) -> list[str]:
  present = set(rows["schedule"])
  return [name for name in SCHEDULES if name in present]


def rows_of(reading: Reading, frame: pl.DataFrame) -> pl.DataFrame:
  """Adds `panel`, the row of panels: schedule, after data set if several."""
  schedule = pl.col("schedule").replace(SCHEDULES)
  if len(reading.datasets) == 1:
    return frame.with_columns(panel=schedule)
  return frame.with_columns(panel=pl.format("{}, {}", "dataset", schedule))


def panels(reading: Reading, frame: pl.DataFrame) -> list[str]:
  schedules = [SCHEDULES[name] for name in in_order(frame)]
  if len(reading.datasets) == 1:
    return schedules
  return [f"{d}, {s}" for d in reading.datasets for s in schedules]
