"""Figures of pruning: accuracy and redundancy along sparsity, by depth."""

import altair as alt
import polars as pl

from minarch_jax.analysis import tables
from minarch_jax.report import reading as reading_lib
from minarch_jax.report import selection, theme
from minarch_jax.report.entries import Drawing, Figure
from minarch_jax.report.reading import Reading


def sparsity(reading: Reading) -> Drawing | None:
  """Draws accuracy against sparsity by depth, with random pruning beside."""
  if reading.records.compression.is_empty():
    return None
  rows, criterion, scope = selection.primary(reading)
  rows = rows.filter(bits=32)
  where = ["dataset", "family", "schedule", "criterion", "depth", "sparsity"]
  per_seed = rows.group_by([*where, "seed"]).agg(pl.mean("val_accuracy"))
  per_seed = tables.with_folds(per_seed, reading.records.networks)
  level = reading.config.confidence
  means = tables.mean_interval(
    per_seed.sort([*where, "seed"]), where, "val", level
  )
  means = selection.rows_of(reading, means).with_columns(
    pl.col("mean", "low", "high").pipe(theme.to_error),
    pl.col("depth").cast(pl.String),
    layer=pl.when(pl.col("criterion") == criterion)
    .then(pl.lit("criterion"))
    .otherwise(pl.lit(tables.RANDOM)),
    note=pl.format(
      "{}, depth {}, sparsity {}: {} %",
      "family",
      "depth",
      "sparsity",
      (pl.col("mean") * 100).round(1),
    ),
  )
  x = theme.sparsity_x()
  y = theme.accuracy_y("mean", [*means["mean"]])
  depth = theme.colour("depth", theme.depths(rows["depth"].to_list()))
  depth_shape = theme.shape("depth", theme.depths(rows["depth"].to_list()))
  layers = [
    theme.only("criterion")
    .mark_area(opacity=0.15, clip=True)
    .encode(x=x, y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), color=depth),
    theme.only(tables.RANDOM)
    .mark_line(strokeWidth=1, strokeDash=[3, 3])
    .encode(x=x, y=y, color=depth),
    theme.only("criterion")
    .mark_line(strokeWidth=1.6)
    .encode(x=x, y=y, color=depth),
    theme.only("criterion")
    .mark_point(aria=True, size=28)
    .encode(
      x=x,
      y=y,
      color=depth,
      shape=depth_shape,
      description=alt.Description("note:N"),
    ),
  ]
  chart, drawn = theme.panels(
    [means],
    layers,
    ("family", reading.families),
    ("panel", selection.panels(reading, means)),
    height=170,
  )
  return Drawing(
    "Accuracy against sparsity, by depth",
    chart,
    f"Solid: {criterion} pruning, {scope} scope, mean over the architectures "
    f"of a depth that are not unstable ({selection.architectures(rows)}); "
    f"band: {level:.0%} Student t interval over seeds. Dashed: random pruning "
    "at the same sparsity, the control. One-shot networks are not retrained; "
    "fine-tuned ones are, for equal steps at every sparsity, 0 included. "
    "32 bits.",
    drawn,
  )


def redundancy(reading: Reading) -> Drawing | None:
  """Draws redundancy of each architecture against its size, by depth."""
  phases = reading.tables["pruning_phases"]
  if phases.is_empty():
    return None
  _, criterion, scope = selection.primary(reading)
  phases = tables.primary(phases, ("granularity",))
  phases = phases.filter(criterion=criterion, scope=scope)
  phases = phases.drop_nulls("redundancy")
  if phases.is_empty():
    return None
  named = theme.depths(phases["depth"].to_list())
  count = phases.select("dataset", "architecture").n_unique()
  phases = phases.join(
    reading.shown, on=["dataset", "architecture"], how="semi"
  )
  frame = selection.rows_of(reading, phases).with_columns(
    pl.col("depth").cast(pl.String),
    layer=pl.lit("redundancy"),
    note=theme.note(
      "{}: {} parameters, redundancy {} [{}, {}]",
      "architecture",
      "params",
      *(
        pl.col(f"redundancy{end}").round(2).cast(pl.String).fill_null("?")
        for end in ("", "_low", "_high")
      ),
    ),
  )
  x = theme.params_x(phases)
  y = alt.Y("redundancy:Q", title="redundancy (sparsity)").scale(domain=[0, 1])
  depth = theme.colour("depth", named)
  light = theme.lightness(len(phases))
  layers = [
    theme.only("redundancy")
    .mark_rule(strokeWidth=1.2, opacity=0.6 * light)
    .encode(
      x=x,
      y=alt.Y("redundancy_low:Q"),
      y2=alt.Y2("redundancy_high:Q"),
      color=depth,
    ),
    theme.only("redundancy")
    .mark_point(aria=True, size=45 * light)
    .encode(
      x=x,
      y=y,
      color=depth,
      shape=theme.shape("depth", named),
      description=alt.Description("note:N"),
    ),
  ]
  chart, drawn = theme.panels(
    [frame],
    layers,
    ("family", reading.families),
    ("panel", selection.panels(reading, frame)),
    height=150,
  )
  config = reading.config
  return Drawing(
    "Redundancy by depth and size",
    chart,
    "Redundancy: the sparsity at which the mean drop in accuracy reaches "
    f"{reading_lib.points(config.free_margin)}. One mark for each of "
    f"{reading_lib.drawn(phases, count)}, {reading_lib.seeds(phases)}; bars: "
    f"{config.confidence:.0%} intervals over seeds and images. "
    f"{criterion.capitalize()} pruning, "
    f"{scope} scope, 32 bits. Compare depths at equal params.",
    drawn,
  )


SPARSITY = Figure("pruning", sparsity)
REDUNDANCY = Figure("pruning", redundancy)
