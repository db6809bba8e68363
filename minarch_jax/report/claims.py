"""The figure of the claims: every effect with its interval, in its own unit."""

import textwrap
from typing import Any

import altair as alt
import polars as pl

from minarch_jax.report import theme
from minarch_jax.report.entries import Drawing, Figure
from minarch_jax.report.reading import Reading

_WIDTH, _HEIGHT, _MARGIN, _WORDS = 380, 22, 300, 52  # pixels x 3, characters


def claims(reading: Reading) -> Drawing | None:
  """Draws the effect of each claim with its interval and verdict."""
  table = reading.tables["claims"]
  if table.is_empty():
    return None
  words = [_words(row) for row in table.iter_rows(named=True)]
  frame = table.select(
    "effect", "low", "high", "limit", "verdict"
  ).with_columns(words=pl.Series(words))
  x = alt.X(
    "effect:Q",
    title=None,
    axis=alt.Axis(tickCount=6, format="~g", labelFontSize=10, domain=True),
    scale=alt.Scale(zero=True, nice=False, padding=14),
  )
  colour = theme.colour("verdict", theme.VERDICTS).legend(None)
  base = alt.Chart()
  layers = [
    base.mark_rule(strokeDash=[3, 3], color=theme.GREY).encode(
      x=alt.X("limit:Q")
    ),
    base.mark_rule(strokeWidth=2).encode(
      x=alt.X("low:Q"), x2=alt.X2("high:Q"), color=colour
    ),
    base.mark_point(size=70).encode(
      x=x,
      color=colour,
      shape=theme.shape("verdict", theme.VERDICTS).legend(None),
    ),
    base.mark_text(align="left", fontSize=12).encode(
      x=alt.XValue(_WIDTH + 14), text=alt.Text("verdict:N"), color=colour
    ),
    base.mark_text(
      align="left", lineBreak="|", lineHeight=13, fontSize=11
    ).encode(x=alt.XValue(-_MARGIN), text=alt.Text("words:N")),
  ]
  chart = (
    alt.layer(
      *layers,
      data=theme.ROWS,
      width=_WIDTH,
      height=_HEIGHT,
      view=alt.ViewConfig(stroke=None),
    )
    .facet(
      row=alt.Row("words:N", sort=words, header=None),
      spacing=6,
    )
    .resolve_scale(x="independent")
  )
  return Drawing(
    "The claims",
    chart,
    "Effect of each claim with its "
    f"{reading.config.confidence:.0%} interval, each in its own unit; "
    "colour and shape: verdict, which turns on the dashed line. "
    "Definitions, n and what each rests on are in the table.",
    theme.rows(frame),
  )


def _words(row: dict[str, Any]) -> str:
  lines = textwrap.wrap(f"{row['claim']}  {row['statement']}", _WORDS)
  return "|".join([*lines, f"in {row['unit']}"])


CLAIMS = Figure("claims", claims)
