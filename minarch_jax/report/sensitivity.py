"""Figures of single layers: what pruning one costs, what seeds agree on."""

from collections.abc import Sequence
import itertools
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from minarch_jax import records as records_lib
from minarch_jax.analysis import sensitivity as analysis
from minarch_jax.analysis import tables
from minarch_jax.report import reading as reading_lib
from minarch_jax.report import selection, theme
from minarch_jax.report.entries import Drawing, Figure
from minarch_jax.report.reading import Reading

MOST_PANELS = 6  # architectures of one family that are mapped
COLUMNS = 3
_CELL = (20, 15)  # width and height of a cell, in pixels
_TITLE = 35  # height of a map's title and the space above it


def sensitivity(reading: Reading) -> Drawing | None:
  """Maps the accuracy lost when one layer alone is pruned."""
  table = reading.tables.get("sensitivity")
  if table is None or table.is_empty():
    return None
  table = _primary(reading, table).filter(pl.col("sparsity") > 0)
  if table.is_empty():
    return None
  name = pl.format("{}, {}", "dataset", "architecture")
  frame = theme.heat(
    table.with_columns(
      panel=name if len(reading.datasets) > 1 else pl.col("architecture"),
      name=analysis.short("layer"),
    )
  )
  panels = [
    panel
    for family in reading.families
    for dataset in reading.datasets
    for panel in _spread(
      frame.filter(family=family, dataset=dataset),
      max(2, MOST_PANELS // len(reading.datasets)),
    )
  ]
  layers = {
    panel: frame.filter(panel=panel)
    .sort("number")["name"]
    .unique(maintain_order=True)
    for panel in panels
  }
  heights = [_TITLE + _CELL[1] * len(names) for names in layers.values()]
  width = _CELL[0] * frame["sparsity"].n_unique()
  columns = [
    alt.vconcat(
      *(
        _map(panel, layers[panel].to_list(), width, panel == part[-1])
        for panel in part
      ),
      spacing=8,
    )
    for part in balanced(panels, heights, COLUMNS)
  ]
  count = frame["panel"].n_unique()
  few = "" if len(panels) == count else f"{len(panels)} of "
  return Drawing(
    "Accuracy lost by pruning one layer alone",
    alt.hconcat(*columns, data=theme.ROWS, spacing=18),
    "Points of validation accuracy below the same seed's unpruned network, "
    f"mean over seeds ({reading_lib.seeds(table)}; intervals are in the "
    "table), when that layer alone is pruned and nothing is retrained. Layers "
    f"stand from the input to the output; {_rule(table)}; each layer keeps at "
    f"least one group. {few}{count} architectures.",
    theme.rows(frame.filter(pl.col("panel").is_in(panels))),
  )


def _primary(reading: Reading, table: pl.DataFrame) -> pl.DataFrame:
  """Keeps one criterion and granularity."""
  criterion = selection.chosen_criterion(reading, table)
  return tables.primary(table.filter(criterion=criterion), ("granularity",))


def _rule(table: pl.DataFrame) -> str:
  return "{} pruning, granularity {}".format(
    *table.select("criterion", "granularity").row(0)
  )


def _spread(frame: pl.DataFrame, most: int) -> list[str]:
  """Lists panels by size; where there are too many, some of all sizes."""
  panels = frame.sort("params", "panel")["panel"].unique(maintain_order=True)
  count = min(len(panels), most)
  return panels[
    np.linspace(0, len(panels) - 1, count).round().astype(int)
  ].to_list()


def balanced(
  panels: Sequence[str], heights: Sequence[int], count: int
) -> list[list[str]]:
  """Cuts panels, in order, into so many columns that the tallest is short."""
  ends = range(1, len(panels))
  cuts = itertools.combinations(ends, min(count, len(panels)) - 1)
  parts = [list(itertools.pairwise([0, *cut, len(panels)])) for cut in cuts]
  best = min(parts, key=lambda part: max(sum(heights[a:b]) for a, b in part))
  return [list(panels[a:b]) for a, b in best]


def _map(panel: str, names: list[str], width: int, axis: bool) -> Any:
  """Draws one architecture; `axis` says whether sparsities are labelled."""
  chart = alt.Chart().transform_filter(alt.datum.panel == panel)
  # A tick before a number would read as a minus.
  y = alt.Y("name:N", title=None, sort=names).axis(ticks=False, labelPadding=4)
  layers = theme.heat_map(chart, y, theme.SPARSITY if axis else None)
  return alt.layer(
    *layers,
    title=alt.Title(panel, frame="group"),
    width=width,
    height=_CELL[1] * len(names),
  )


def overlap(reading: Reading) -> Drawing | None:
  """Draws how far the masks of two seeds agree, and what chance would give."""
  table = reading.tables.get("overlap")
  if table is None or table.is_empty():
    return None
  table = _primary(reading, table).filter(
    pl.col("sparsity") > 0, layer=records_lib.ALL_LAYERS
  )
  if table.is_empty():
    return None
  depths = theme.depths(table["depth"].to_list())
  frame = table.with_columns(
    pl.col("depth").cast(pl.String),
    # A logarithmic axis has no place for 0.
    pl.col("overlap", "overlap_low", "chance", "shuffled").clip(1e-3),
    layer=pl.lit("found"),
    note=pl.format(
      "{}, sparsity {}: overlap {}, by chance {}",
      "architecture",
      "sparsity",
      pl.col("overlap").round(3),
      pl.col("chance").round(3),
    ),
  )
  where = ["dataset", "family", "sparsity"]
  chance = frame.group_by(where).agg(pl.mean("chance")).sort(where)
  chance = chance.with_columns(layer=pl.lit("chance"))
  x = theme.sparsity_x()
  least = frame.select(pl.min("overlap", "overlap_low", "chance")).row(0)
  low = max(min(value for value in least if value is not None) / 1.1, 0.01)
  y_scale = alt.Scale(type="log", domain=[low, 1], nice=False, clamp=True)
  y = alt.Y(
    "overlap:Q",
    title="overlap of masks",
    axis=alt.Axis(values=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], format="~g"),
    scale=y_scale,
  )
  colour = theme.colour("depth", depths)
  layers = [
    theme.only("chance")
    .mark_line(color=theme.GREY, strokeWidth=1.6, strokeDash=[6, 3])
    .encode(x=x, y=alt.Y("chance:Q", scale=y_scale)),
    theme.only("found")
    .mark_line(strokeWidth=1, strokeDash=[2, 2])
    .encode(
      x=x,
      y=alt.Y("shuffled:Q", scale=y_scale),
      color=colour,
      detail=alt.Detail("architecture:N"),
    ),
    theme.only("found")
    .mark_rule(strokeWidth=1.2, opacity=0.6, clip=True)
    .encode(
      x=x,
      y=alt.Y("overlap_low:Q", scale=y_scale),
      y2=alt.Y2("overlap_high:Q"),
      color=colour,
    ),
    theme.only("found")
    .mark_line(strokeWidth=1.4)
    .encode(x=x, y=y, color=colour, detail=alt.Detail("architecture:N")),
    theme.only("found")
    .mark_point(aria=True, size=28)
    .encode(
      x=x,
      y=y,
      color=colour,
      shape=theme.shape("depth", depths),
      description=alt.Description("note:N"),
    ),
  ]
  chart, drawn = theme.panels(
    [chance, frame],
    layers,
    ("family", reading.families),
    ("dataset", reading.datasets),
    height=210,
  )
  return Drawing(
    "Overlap of the masks of two seeds",
    chart,
    "Kept by both divided by kept by either (Jaccard), mean over the pairs of "
    f"seeds ({reading_lib.seeds(table)}), one line per architecture; bars: "
    f"{reading.config.confidence:.0%} intervals, seeds being the sample. "
    f"{_rule(table).capitalize()}, global scope. Dashed: random masks of that "
    "sparsity, d / (2 \u2212 d) where a fraction d is kept. Dotted: the masks "
    "shuffled within their layers: what agreeing on how much each layer keeps, "
    "but not on which weights, would give.",
    drawn,
  )


SENSITIVITY = Figure("pruning", sensitivity)
OVERLAP = Figure("pruning", overlap)
