"""Turns a chart into SVG, PNG and PDF, without a browser."""

import itertools
import re

import vl_convert

from minarch_jax.report import theme
from minarch_jax.report.entries import Drawing

FORMATS = ("svg", "png", "pdf")
_PNG_SCALE = 2.0


def svg(name: str, figure: Drawing) -> str:
  """Draws a figure; the same figure and name give the same bytes.

  The renderer numbers clip paths through the life of the process, so they are
  renumbered here, under `name`: several figures can then share one page.
  """
  spec = figure.chart.to_dict(validate=False) | {
    "config": theme.style(),
    "datasets": {theme.ROWS.name: figure.rows},
  }
  text = vl_convert.vegalite_to_svg(spec)
  numbers: dict[str, int] = {}
  counter = itertools.count()

  def renumbered(match: re.Match[str]) -> str:
    old = match.group(2)
    if old not in numbers:
      numbers[old] = next(counter)
    return f"{match.group(1)}{name}-{numbers[old]}"

  return re.sub(r'((?:id="|url\(#))((?:clip|gradient_?)\d+)', renumbered, text)


# Resources of a PDF page, one a line, which the converter writes in an order
# that changes from run to run. Sorting keeps every byte offset.
_RESOURCES = re.compile(rb"(?:^ +/[a-z]+\d+ \d+ 0 R\n){2,}", re.MULTILINE)


def _sorted_lines(match: re.Match[bytes]) -> bytes:
  return b"".join(sorted(match.group().splitlines(keepends=True)))


def encoded(svg: str) -> dict[str, bytes]:
  """Converts a figure to every format of `FORMATS`, always to equal bytes."""
  return {
    "svg": svg.encode(),
    "png": vl_convert.svg_to_png(svg, scale=_PNG_SCALE),
    "pdf": _RESOURCES.sub(_sorted_lines, vl_convert.svg_to_pdf(svg)),
  }
