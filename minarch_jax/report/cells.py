"""How the rows of a table are written for readers of the page."""

from collections.abc import Callable, Collection, Mapping
import math
from typing import Any, NamedTuple

import polars as pl

from minarch_jax.report import method
from minarch_jax.report.entries import Column, Table

MOST_ROWS = 400  # more rows than this are only in the CSV file


class Cell(NamedTuple):
  """What is read, what a sort by its column compares, its CSS class, what it
  links to, and the network that it names."""

  text: str
  key: str
  kind: str
  href: str = ""
  network: str = ""


class Shown(NamedTuple):
  """A table ready for the page."""

  name: str
  caption: str
  heads: tuple[Cell, ...]
  rows: tuple[tuple[Cell, ...], ...]
  total: int
  tested: bool


def _number(value: float) -> str:
  return f"{value:.3g}"


FORMS: dict[str, Callable[[Any], str]] = {
  "text": str,
  "words": str,
  "count": lambda value: f"{value:,.0f}",
  "number": _number,
  "percent": lambda value: f"{100 * value:.1f}",
  "points": lambda value: f"{100 * value:.2f}",
  "sparsity": lambda value: f"{value:.2f}",
  "share": lambda value: f"{value:.3f}",
  "epochs": lambda value: f"{value:.1f}",
  "figure": str,  # its name: a link to it
  "claim": str,  # its name: a link to what it means
  "flag": lambda value: "yes" if value else "",
}


def shown(
  name: str, table: Table, frame: pl.DataFrame, figures: Collection[str] = ()
) -> Shown:
  """Prepares a table for the page.

  Args:
    name: of its CSV file.
    table: which columns are shown.
    frame: its rows.
    figures: names of the figures on the page, which rows may link to.
  """
  columns = [
    column
    for column in table.columns or _every(frame)
    if column.field in frame.columns
    and (column.form != "text" or frame[column.field].count())
  ]
  rows = tuple(
    tuple(_cell(row, column, figures) for column in columns)
    for row in frame.head(MOST_ROWS).iter_rows(named=True)
  )
  return Shown(
    name,
    table.caption,
    tuple(Cell(c.title, "", _kind(c, "")) for c in columns),
    rows,
    len(frame),
    table.tested,
  )


def _every(frame: pl.DataFrame) -> tuple[Column, ...]:
  return tuple(
    Column(field, field.replace("_", " "), _form(dtype))
    for field, dtype in frame.schema.items()
  )


def _form(dtype: pl.DataType) -> str:
  if dtype.is_integer():
    return "count"
  return "number" if dtype.is_float() else "text"


def written(value: Any, form: str) -> str:
  """Writes one value; a dash for what is not known."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return "\u2013"
  text = FORMS[form](value)
  if not isinstance(value, str) and not text.strip("-0."):
    text = text.removeprefix("-")  # a rounded zero has no sign
  return text if isinstance(value, str) else text.replace("-", "\u2212")


def _cell(
  row: Mapping[str, Any], column: Column, figures: Collection[str]
) -> Cell:
  value = row[column.field]
  text = written(value, column.form)
  if column.bounds is not None:
    low, high = (row.get(f"{column.bounds}{end}") for end in ("low", "high"))
    if not (low is None and high is None):
      bounds = (written(bound, column.form) for bound in (low, high))
      text += " [{}, {}]".format(*bounds)
  return Cell(
    text,
    "" if value is None else str(value),
    _kind(column, text),
    _href(value, column.form, figures),
    f"{row['dataset']} {value}"
    if column.field == "architecture" and value is not None and "dataset" in row
    else "",
  )


def _href(value: Any, form: str, figures: Collection[str]) -> str:
  if form == "figure" and value in figures:
    return f"#figure-{value}"
  return method.link(value) if form == "claim" else ""


def _kind(column: Column, text: str) -> str:
  if column.form == "words":
    return "wrap"
  if column.form not in ("text", "flag", "figure", "claim"):
    return "n"
  return "long" if len(text) > 40 else ""
