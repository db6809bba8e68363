"""Values as readers see them."""

import dataclasses

import polars as pl
import polars.testing
import pytest

from minarch_jax.report import cells, page
from tests.report import studies


@pytest.mark.parametrize(
  ("value", "form", "text"),
  [
    (None, "count", "\u2013"),
    (float("inf"), "count", "\u2013"),
    (12345.0, "count", "12,345"),
    (0.97123, "percent", "97.1"),
    (-0.0123, "points", "\u22121.23"),
    (0.5, "sparsity", "0.50"),
    ("dnn:8-8", "text", "dnn:8-8"),
    (True, "flag", "yes"),
  ],
)
def test_values_are_written_for_readers(value, form, text):
  assert cells.written(value, form) == text


def test_a_long_table_is_cut_and_says_so(found):
  regimes = found.tables["regimes"]
  many = pl.concat([regimes] * (cells.MOST_ROWS // len(regimes) + 1))
  long = dataclasses.replace(found, tables={**found.tables, "regimes": many})
  assert len(studies.shown(long, "regimes").rows) == cells.MOST_ROWS
  assert f"of {len(many)} rows; all are in the CSV" in page.render(long, {}, {})
