"""Figures of few bits: damage, damage beside sparsity, accuracy in bytes."""

import altair as alt
import polars as pl

from minarch_jax import analysis
from minarch_jax.analysis import tables
from minarch_jax.report import reading as reading_lib
from minarch_jax.report import selection, theme
from minarch_jax.report.entries import Drawing, Figure
from minarch_jax.report.reading import Reading


def damage(reading: Reading) -> Drawing | None:
  """Draws the accuracy lost to few bits against size, by data set."""
  table = reading.tables["quantization"]
  table = table.drop_nulls("damage")
  if table.is_empty():
    return None
  table = tables.primary(table, ("quant_granularity",))
  granularity = table["quant_granularity"][0]
  known = theme.precisions(table["bits"].to_list())
  count = table.select("dataset", "architecture").n_unique()
  table = table.join(reading.shown, on=["dataset", "architecture"], how="semi")
  frame = table.with_columns(
    pl.col("bits").cast(pl.String),
    layer=pl.lit("damage"),
    note=theme.note(
      "{}: {} parameters, {} bits: {} points",
      "architecture",
      "params",
      "bits",
      (pl.col("damage") * 100).round(2),
    ),
  )
  x = theme.params_x(table)
  bits = theme.colour("bits", known)
  zero = frame.select("dataset", "family").unique(maintain_order=True)
  zero = zero.with_columns(damage=0.0, layer=pl.lit("zero"))
  y = theme.points_y("damage", "accuracy lost (points)")
  light = theme.lightness(len(table))
  layers = [
    theme.only("zero").mark_rule(color=theme.GREY).encode(y=y),
    theme.only("damage")
    .mark_rule(strokeWidth=1.2, opacity=0.6 * light)
    .encode(
      x=x, y=alt.Y("damage_low:Q"), y2=alt.Y2("damage_high:Q"), color=bits
    ),
    theme.only("damage")
    .mark_point(aria=True, size=45 * light)
    .encode(
      x=x,
      y=y,
      color=bits,
      shape=theme.shape("bits", known),
      description=alt.Description("note:N"),
    ),
  ]
  chart, drawn = theme.panels(
    [zero, frame],
    layers,
    ("family", reading.families),
    ("dataset", reading.datasets),
    height=170,
  )
  level = reading.config.confidence
  return Drawing(
    "Accuracy lost to few bits, by size and data set",
    chart,
    "Damage: validation accuracy at 32 bits minus accuracy at fewer, paired "
    f"by seed; bars: {level:.0%} intervals of "
    f"{reading_lib.drawn(table, count)}, {reading_lib.seeds(table)}. "
    "Weights only, rounded after training without retraining, one scale per "
    f"{granularity}, sparsity 0.",
    drawn,
  )


def surface(reading: Reading) -> Drawing | None:
  """Draws the accuracy left at every sparsity and bits as a map."""
  if reading.records.compression.is_empty():
    return None
  rows, criterion, scope = selection.primary(reading)
  rows = selection.finest(rows.filter(criterion=criterion))
  if rows["bits"].min() == 32:
    return None
  where = ["dataset", "family", "schedule", "sparsity", "bits"]
  keys = ["dataset", "family", "schedule", "architecture", "seed"]
  dense = rows.filter(sparsity=0.0, bits=32).select(*keys, dense="val_accuracy")
  frame = (
    rows.join(dense, on=keys)
    .group_by(where)
    .agg(lost=(pl.col("dense") - pl.col("val_accuracy")).mean())
    .sort(where)
  )
  combined = rows.filter(pl.col("bits") < 32)
  schedule = selection.in_order(combined)[-1]
  frame = theme.heat(frame.filter(schedule=schedule))
  bits = sorted(set(frame["bits"]), reverse=True)
  y = alt.Y("bits:O", title="bits", sort=bits)
  layers = theme.heat_map(theme.only("cell"), y)
  chart, drawn = theme.panels(
    [frame],
    layers,
    ("family", reading.families),
    ("dataset", reading.datasets),
    height=24 * len(bits),
  )
  return Drawing(
    "Accuracy lost to sparsity and few bits together",
    chart,
    "Points of validation accuracy below the dense 32-bit network of the same "
    "seed and schedule, mean over the architectures that are not unstable "
    f"({selection.architectures(combined.filter(schedule=schedule))}). "
    f"{criterion.capitalize()} pruning, {scope} scope, "
    "then weights rounded.",
    drawn,
  )


def _front(points: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
  """Keeps the points no smaller point of the same group is as accurate as."""
  ordered = points.sort(
    [*keys, "bytes", "mean"], descending=[False] * (len(keys) + 1) + [True]
  )
  best = pl.col("mean").cum_max().shift(1).over(keys)
  return ordered.filter(best.is_null() | (pl.col("mean") > best))


def pareto(reading: Reading) -> Drawing | None:
  """Draws the best accuracy that fits into so many bytes, at each bits."""
  if reading.records.compression.is_empty():
    return None
  rows = analysis.plain(analysis.under(reading.records.compression)).filter(
    pl.col("bytes") > 0
  )
  where = ["dataset", "family", "architecture", "params", "criterion", "scope"]
  where += ["schedule", "sparsity", "bits", "quant_granularity"]
  points = rows.group_by(where).agg(
    mean=pl.mean("val_accuracy"),
    bytes=pl.mean("bytes"),
    n_seeds=pl.len(),
  )
  groups = ["dataset", "family", "bits"]
  fronts = _front(points.sort(where), groups).with_columns(
    pl.col("bits").cast(pl.String),
    pl.col("mean").pipe(theme.to_error),
    layer=pl.lit("front"),
    note=theme.note(
      "{}, sparsity {}, {} bits, {}: {} bytes, {} %",
      "architecture",
      "sparsity",
      "bits",
      pl.col("schedule").replace(selection.SCHEDULES),
      pl.col("bytes").round(0).cast(pl.Int64),
      (pl.col("mean") * 100).round(1),
    ),
  )
  known = theme.precisions(points["bits"].to_list())
  x = theme.log_x("bytes", "bytes", fronts["bytes"].to_list())
  y = theme.accuracy_y("mean", fronts["mean"].to_list())
  layers = [
    theme.only("front")
    .mark_line(interpolate="step-after", strokeWidth=1.6)
    .encode(x=x, y=y, color=theme.colour("bits", known)),
    theme.only("front")
    .mark_point(aria=True, size=30)
    .encode(
      x=x,
      y=y,
      color=theme.colour("bits", known),
      shape=theme.shape("bits", known),
      description=alt.Description("note:N"),
    ),
  ]
  chart, drawn = theme.panels(
    [fronts],
    layers,
    ("family", reading.families),
    ("dataset", reading.datasets),
    height=210,
  )
  return Drawing(
    "Accuracy against bytes: the Pareto fronts",
    chart,
    f"Best mean validation accuracy over seeds ({reading_lib.seeds(points)}) "
    f"among all of {len(points):,} configurations "
    "(architecture, criterion, scope, schedule, sparsity, bits) that take at "
    "most so many bytes, one front for each bits. Chosen and drawn on the same "
    "validation images, so slightly optimistic.",
    drawn,
  )


DAMAGE = Figure("quantization", damage)
SURFACE = Figure("together", surface)
PARETO = Figure("together", pareto)
