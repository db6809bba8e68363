"""Turns charts into Vega-Lite, and into SVG in this process."""

from typing import Any

from minarch_jax.report import drawing, theme
from minarch_jax.report.entries import Drawing


def spec(figure: Drawing) -> dict[str, Any]:
  """Describes a figure in Vega-Lite."""
  return figure.chart.to_dict(validate=False) | {
    "config": theme.style(),
    "datasets": {theme.ROWS.name: figure.rows},
  }


def svg(name: str, figure: Drawing) -> str:
  """Draws a figure; the same figure and name give the same bytes."""
  return drawing.svg(name, spec(figure))
