"""What an entry of the report is: a table or a figure in a section.

An entry says everything about itself; one line of `registries.TABLES` or
`registries.FIGURES` puts it into the files and on the page.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import Analyses
from minarch_jax.report.reading import Reading


class Column(NamedTuple):
  """A shown column; `bounds` starts the names of its interval's columns.

  `form` is a key of `cells.FORMS`.
  """

  field: str
  title: str
  form: str = "text"
  bounds: str | None = None


class Table(NamedTuple):
  """A table: one CSV file, and a choice of its columns on the page.

  Attributes:
    section: a key of `sections.SECTIONS`.
    caption: a sentence.
    compute: makes the frame; None where its subject was not measured, so that
      there is no file either.
    columns: what the page shows; () = every column.
    tested: shows accuracy on test images, so that the page says beside it
      what the test split is.
  """

  section: str
  caption: str
  compute: Callable[[Analyses], pl.DataFrame | None]
  columns: tuple[Column, ...] = ()
  tested: bool = False


class Drawing(NamedTuple):
  """A chart, the rows it draws, its title and caption.

  The caption says n, the kind of interval and the thresholds.
  """

  title: str
  chart: Any
  caption: str
  rows: list[dict[str, Any]]


class Figure(NamedTuple):
  """A figure: `draw` returns None when the records have nothing to show."""

  section: str  # a key of `sections.SECTIONS`
  draw: Callable[[Reading], Drawing | None]
