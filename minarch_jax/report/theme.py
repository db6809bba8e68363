"""One look for every figure: colours, axes, panels; no data of its own.

Colours are those of Okabe and Ito (2008), told apart under every common colour
blindness; regimes and verdicts carry a shape as well, so print in grey works.
Charts name the classes of their encodings, alt.Y2("high:Q"), and are made with
their sizes: for a bare string Altair searches 13 ms, for `.properties` it
copies the chart.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import altair as alt
import polars as pl

from minarch_jax.report import drawing

BLACK, GREY, PALE = "#222222", "#8a8a8a", "#d4d4d4"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

# Category -> (colour, shape). The order is the order of every legend.
Categories = Mapping[str, tuple[str, str]]
REGIMES: Categories = {
  "unstable": (VERMILLION, "triangle-up"),
  "learning": (BLUE, "circle"),
  "overfitting": (PURPLE, "square"),
}
VERDICTS: Categories = {
  "supported": (BLUE, "circle"),
  "contradicted": (VERMILLION, "diamond"),
  "undecided": (GREY, "square"),
}
SPLITS: Categories = {
  "train": (ORANGE, "circle"),
  "validation": (BLUE, "circle"),
}
PHASES: Categories = {
  "chance": (PALE, "circle"),
  "rapid": (ORANGE, "circle"),
  "refinement": (SKY, "circle"),
  "saturation": (BLUE, "circle"),
}
BITS: Categories = {
  "32": (BLACK, "circle"),
  "16": (GREY, "circle"),
  "8": (BLUE, "square"),
  "6": (SKY, "square"),
  "5": (GREEN, "square"),
  "4": (ORANGE, "triangle-up"),
  "3": (PURPLE, "triangle-up"),
  "2": (VERMILLION, "diamond"),
  "1": ("#7f3b08", "diamond"),
}
_DEPTHS = ("#440154", "#3b6fb6", "#1f9e89", "#a0b82c", ORANGE, VERMILLION)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "stroke")

# Charts name their rows instead of holding them: Altair copies what it holds.
ROWS = alt.NamedData("rows")

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
PANELS_WIDTH = 780  # all panels of a row together, in pixels
ERROR_FLOOR = 5e-4  # the error an accuracy of 100 % is drawn at


def depths(values: Sequence[int]) -> Categories:
  """Gives each depth a colour, dark to light, and a shape."""
  return {
    str(depth): (_DEPTHS[i % len(_DEPTHS)], _SHAPES[i % len(_SHAPES)])
    for i, depth in enumerate(sorted(set(values)))
  }


def precisions(values: Sequence[int]) -> Categories:
  """The looks of the numbers of bits that occur."""
  return {bits: look for bits, look in BITS.items() if int(bits) in values}


def colour(
  field: str, known: Categories, title: str | None = None
) -> alt.Color:
  """Encodes a column of known categories by colour."""
  return alt.Color(
    f"{field}:N", legend=alt.Legend(title=title or field), sort=list(known)
  ).scale(domain=list(known), range=[c for c, _ in known.values()])


def shape(field: str, known: Categories, title: str | None = None) -> alt.Shape:
  """Encodes a column of known categories by the shape of points."""
  return alt.Shape(
    f"{field}:N", legend=alt.Legend(title=title or field), sort=list(known)
  ).scale(domain=list(known), range=[s for _, s in known.values()])


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Returns 3 to `most` round values inside [low, high] where there are some.

  Powers of ten where there are three of them, else 1-3 or 1-2-5 steps.
  """
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  ticks: list[float] = []
  for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
    every = [
      step * 10.0**power for power in range(first, last + 1) for step in steps
    ]
    ticks = [tick for tick in every if low <= tick <= high]
    if len(ticks) >= 3:
      break
  return ticks[:: math.ceil(len(ticks) / most)] if ticks else [low, high]


def log_x(field: str, title: str, values: Sequence[float | None]) -> alt.X:
  """Returns a logarithmic axis that spans the positive `values`, with room."""
  every = [value for value in values if value is not None and value > 0] or [1]
  low, high = min(every) / 1.4, max(every) * 1.4
  return alt.X(
    f"{field}:Q",
    title=title,
    axis=alt.Axis(values=log_ticks(low, high), format="~s"),
    scale=alt.Scale(type="log", domain=[low, high], nice=False, clamp=True),
  )


def params_x(frame: pl.DataFrame) -> alt.X:
  """Returns the axis of the parameter counts of a frame."""
  return log_x("params", "params (count)", frame["params"].to_list())


def sparsity_x() -> alt.X:
  """Returns the axis of sparsity, from 0 to 1."""
  return alt.X(
    "sparsity:Q",
    title=SPARSITY,
    axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1], format="~g"),
    scale=alt.Scale(domain=[-0.02, 1.02], nice=False),
  )


def to_error(accuracy: Any) -> Any:
  """Turns accuracy (number or polars expression) into 1 - accuracy >= 5e-4."""
  if isinstance(accuracy, pl.Expr):
    return (accuracy.neg() + 1).clip(ERROR_FLOOR, 1.0)
  return min(max(1 - accuracy, ERROR_FLOOR), 1.0)


_ACCURACIES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_FEW_ACCURACIES = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)  # low panels


def accuracy_y(
  field: str,
  errors: Sequence[float | None],
  title: str = "validation accuracy",
  few: bool = False,
) -> alt.Y:
  """Returns an axis of accuracy, logarithmic in the error 1 - accuracy.

  One point near the plateau is what a study is about, and invisible on a
  linear axis. The column holds errors (`to_error`); labels are accuracies.
  """
  every = [error for error in errors if error is not None] or [0.5]
  worst, best = min(1.0, max(every) * 1.05), max(min(every) / 1.2, ERROR_FLOOR)
  labels = _FEW_ACCURACIES if few else _ACCURACIES
  ticks = [1 - a for a in labels if best <= 1 - a <= worst]
  label = "format(1 - datum.value, datum.value < 0.0099 ? '.1%' : '.0%')"
  return alt.Y(
    f"{field}:Q",
    title=title,
    axis=alt.Axis(values=ticks or [worst, best], labelExpr=label),
    scale=alt.Scale(type="log", domain=[worst, best], nice=False, clamp=True),
  )


def points_y(field: str, title: str) -> alt.Y:
  """Returns an axis of accuracy differences, labelled in percentage points."""
  return alt.Y(
    f"{field}:Q",
    title=title,
    axis=alt.Axis(labelExpr="format(100 * datum.value, '~g')"),
    scale=alt.Scale(zero=True, nice=True),
  )


def heat(frame: pl.DataFrame) -> pl.DataFrame:
  """Adds what `heat_map` draws of cells with columns `sparsity` and `lost`.

  Loss is written in points, with as few digits as say it.
  """
  points = pl.col("lost") * 100
  short = {s: f"{s:g}".lstrip("0") or "0" for s in set(frame["sparsity"])}
  return frame.with_columns(
    pl.col("sparsity").replace_strict(short, return_dtype=pl.String),
    layer=pl.lit("cell"),
    text=pl.when(pl.col("lost").abs() < 0.0005)
    .then(pl.lit("0"))
    .when(pl.col("lost") < 0.0995)
    .then(points.round(1).cast(pl.String))
    .otherwise(points.round(0).cast(pl.Int64).cast(pl.String))
    .str.replace("-", "\u2212"),
    shown=pl.col("lost").clip(*_LOST),
  )


SPARSITY = "sparsity (fraction removed)"
_LOST = (0.001, 0.5)  # lost accuracy from the lightest colour to the darkest


def heat_map(
  chart: alt.Chart, y: alt.Y, title: str | None = SPARSITY
) -> list[Any]:
  """Returns the layers of a map of lost accuracy, logarithmic in colour.

  Args:
    chart: of rows that `heat` made.
    y: encodes the other side of the map.
    title: of the axis of sparsity; None leaves its labels out too.
  """
  axis = alt.Axis(labelAngle=0) if title is not None else None
  x = alt.X("sparsity:O", title=title, sort=None, axis=axis)
  fill = alt.Color("shown:Q", legend=None).scale(
    type="log", domain=list(_LOST), scheme="blues"
  )
  ink = alt.condition(
    "datum.lost > 0.06", alt.value("white"), alt.value("#222")
  )
  return [
    chart.mark_rect().encode(x=x, y=y, color=fill),
    chart.mark_text(fontSize=9).encode(
      x=x, y=y, text=alt.Text("text:N"), color=ink
    ),
  ]


def note(form: str, *values: Any) -> pl.Expr:
  """Says in words what a mark shows, and of which network, by `format`.

  The rows have the columns `dataset` and `architecture`.
  """
  return pl.format(
    form + drawing.STANDS_FOR + "{} {}", *values, "dataset", "architecture"
  )


def rows(*frames: pl.DataFrame) -> list[dict[str, Any]]:
  """Joins the frames of a figure's layers into the rows of one chart.

  Numbers that are not finite become null: JSON has no others.
  """
  frame = pl.concat(frames, how="diagonal_relaxed")
  numbers = pl.selectors.float()
  finite = pl.when(numbers.is_finite()).then(numbers)
  return frame.with_columns(finite).to_dicts()


def lightness(count: int) -> float:
  """Factor of the size and opacity of marks, so that many stay readable."""
  return 1.0 if count <= 150 else max(0.2, 150 / count)


def only(layer: str) -> alt.Chart:
  """Returns a chart of the rows whose column `layer` is `layer`."""
  return alt.Chart().transform_filter(alt.datum.layer == layer)


def panels(
  frames: Sequence[pl.DataFrame],
  layers: Sequence[Any],
  columns: tuple[str, Sequence[str]],
  lines: tuple[str, Sequence[str]],
  height: int = 210,
) -> tuple[Any, list[dict[str, Any]]]:
  """Repeats layers over the panels of a grid, which share their axes.

  Args:
    frames: the rows of all layers, told apart by the column `layer`.
    layers: charts without data, bottom first.
    columns: the field that gives the columns, and its values in order.
    lines: the same for the rows; a single row gets no header.
    height: of one panel, in pixels.

  Returns:
    The chart, and its rows.
  """
  across, down = (
    (field, [v for v in values if any(v in set(f[field]) for f in frames)])
    for field, values in (columns, lines)
  )
  # Vega-Lite mixes up the panels when one of the grid has no row at all.
  every = pl.DataFrame({across[0]: across[1]}).join(
    pl.DataFrame({down[0]: down[1]}), how="cross"
  )
  facets: dict[str, Any] = {
    "column": alt.Column(f"{across[0]}:N", sort=across[1], title=None)
  }
  if len(down[1]) > 1:
    facets["row"] = alt.Row(f"{down[0]}:N", sort=down[1], title=None)
  width = min(PANELS_WIDTH // max(1, len(across[1])), 420)
  chart = alt.layer(*layers, data=ROWS, width=width, height=height)
  return chart.facet(**facets, spacing=14), rows(every, *frames)


def style() -> dict[str, Any]:
  """Returns the Vega-Lite configuration of every figure.

  One weight of one font: a PDF numbers several fonts in random order.
  """
  text = {"font": FONT, "color": BLACK}
  return {
    "background": "white",
    "font": FONT,
    "view": {"stroke": "#b5b5b5"},
    "axis": {
      "labelFontSize": 11,
      "titleFontSize": 12,
      "titleFontWeight": "normal",
      "labelColor": BLACK,
      "titleColor": BLACK,
      "gridColor": "#ececec",
      "domain": False,  # the panel's frame is the line
      "tickColor": "#6b6b6b",
      "labelFlush": False,
      "titlePadding": 8,
    },
    "legend": {
      "labelFontSize": 11,
      "titleFontSize": 11,
      "titleFontWeight": "normal",
      "orient": "bottom",
      "symbolSize": 70,
      "symbolOpacity": 1,
      "titleOrient": "left",
      "titlePadding": 10,
    },
    "header": {
      "labelFontSize": 13,
      "labelFontWeight": "normal",
      "labelColor": BLACK,
    },
    "text": text,
    "title": text | {"fontSize": 13, "fontWeight": "normal", "anchor": "start"},
    "point": {"filled": True, "size": 45, "opacity": 1},
    "mark": {"aria": False},
  }
