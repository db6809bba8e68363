"""The figure of the claims: a forest plot."""

from collections.abc import Callable
import textwrap
from typing import Any

import altair as alt
import polars as pl

from minarch_jax.report import cells, theme
from minarch_jax.report.entries import Drawing, Figure
from minarch_jax.report.reading import Reading

_WIDTH, _HEIGHT, _MARGIN = 300, 40, 260  # of the panel and a row, in pixels
_WORDS = 42  # characters of a line
_FAR = 10.0  # half-widths; what lies beyond is drawn there


def claims(reading: Reading) -> Drawing | None:
  """Draws which way the evidence on each claim points, and how far."""
  table = reading.tables["claims"]
  if table.is_empty():
    return None
  frame = table.with_columns(
    *_scaled(), words=_texts(table, _words), numbers=_texts(table, _numbers)
  ).select("claim", "verdict", "words", "numbers", "at", "from", "to")
  x = alt.X(
    "at:Q",
    title="contradicted \u2190 half-widths of the interval \u2192 supported",
    axis=alt.Axis(values=[-10, -3, -1, 0, 1, 3, 10], format="d"),
    scale=alt.Scale(type="symlog", domain=[-_FAR, _FAR], nice=False),
  )
  y = alt.Y("claim:N", title=None, axis=None, sort=frame["claim"].to_list())
  colour = theme.colour("verdict", theme.VERDICTS)
  base = alt.Chart().encode(y=y)
  text = {"align": "left", "lineBreak": "|", "lineHeight": 13, "fontSize": 11}
  layers = [
    alt.Chart()
    .mark_rule(strokeDash=[3, 3], color=theme.GREY)
    .encode(x=alt.XDatum(0)),
    base.mark_rule(strokeWidth=2).encode(
      x=alt.X("from:Q"), x2=alt.X2("to:Q"), color=colour
    ),
    base.mark_point(size=70).encode(
      x=x, color=colour, shape=theme.shape("verdict", theme.VERDICTS)
    ),
    base.mark_text(**text, dy=-6).encode(
      x=alt.XValue(-_MARGIN), text=alt.Text("words:N")
    ),
    base.mark_text(**text, dy=-6).encode(
      x=alt.XValue(_WIDTH + 14), text=alt.Text("numbers:N")
    ),
  ]
  chart = alt.layer(
    *layers, data=theme.ROWS, width=_WIDTH, height=_HEIGHT * len(frame)
  )
  return Drawing(
    "The claims",
    chart,
    "How far the effect of each claim lies from the limit on which its verdict "
    "turns (dashed), in half-widths of its "
    f"{reading.config.confidence:.0%} interval; beyond {_FAR:g} at the edge. "
    "An interval wholly to the right supports the claim, wholly to the left "
    "contradicts it. At the right the effect itself, its interval and limit.",
    theme.rows(frame),
  )


def _scaled() -> list[pl.Expr]:
  """The effect and its interval, towards what the claim says."""
  half = (pl.col("high") - pl.col("low")) / 2
  sign = pl.when("below").then(-1.0).otherwise(1.0)
  at, low, high = (
    (sign * (pl.col(name) - pl.col("limit")) / half)
    .fill_nan(None)
    .clip(-_FAR, _FAR)
    for name in ("effect", "low", "high")
  )
  return [at.alias("at"), low.alias("from"), high.alias("to")]


def _texts(
  table: pl.DataFrame, write: Callable[[dict[str, Any]], str]
) -> pl.Series:
  return pl.Series([write(row) for row in table.iter_rows(named=True)])


def _words(row: dict[str, Any]) -> str:
  return "|".join(textwrap.wrap(f"{row['claim']}  {row['statement']}", _WORDS))


def _numbers(row: dict[str, Any]) -> str:
  if row["effect"] is None:
    return f"{row['verdict']}|not measured"
  effect, low, high, limit = (
    cells.written(row[name], "number")
    for name in ("effect", "low", "high", "limit")
  )
  side = "below" if row["below"] else "above"
  return (
    f"{row['verdict']}: {effect} [{low}, {high}]|{side} {limit} {row['unit']}"
  )


CLAIMS = Figure("claims", claims)
