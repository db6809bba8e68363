"""Figures of single layers."""

import dataclasses

import polars as pl
import polars.testing
import pytest

from minarch_jax import registries
from minarch_jax.report import export, reading
from minarch_jax.report import sensitivity as layers
from tests.report import studies


def test_the_map_holds_every_layer_from_the_input_to_the_output(found):
  figure = registries.FIGURES["sensitivity"].draw(found)
  svg = export.svg("sensitivity", figure)
  shown = sorted({row["panel"] for row in figure.rows})
  table = found.tables["sensitivity"]
  assert shown == sorted(set(table["architecture"]))
  assert all(name in svg for name in shown)
  below = [svg.index(text) for text in (">hidden_0<", ">output<")]
  assert below == sorted(below)
  # At sparsity 0.5 the second layer loses a third of 0.5 ** 4.
  cells = {
    (row["name"], row["sparsity"]): row["text"]
    for row in figure.rows
    if row["panel"] == shown[0]
  }
  assert cells["output", ".5"] == "2.1" and cells["hidden_0", ".9"] == "33"
  assert len(cells) == 4  # sparsity 0 loses nothing and is not drawn


def test_the_overlap_of_the_whole_stands_beside_chance(found):
  figure = registries.FIGURES["overlap"].draw(found)
  rows = [row for row in figure.rows if row["layer"] == "found"]
  assert {row["sparsity"] for row in rows} == {0.5, 0.9}
  assert len(rows) == 2 * found.tables["overlap"]["architecture"].n_unique()
  for row in figure.rows:
    if row["layer"] == "chance":
      density = 1 - row["sparsity"]
      assert row["chance"] == pytest.approx(density / (2 - density))


def test_a_map_of_many_architectures_shows_some_of_all_sizes():
  table = reading.analyse(
    studies.small(), studies.CONFIG, {}, studies.layered(studies.small())
  ).tables
  one = table["sensitivity"].filter(pl.col("family") == "dnn").head(1)
  many = pl.concat(
    one.with_columns(
      architecture=pl.lit(f"dnn:{i}"),
      params=pl.lit(i, pl.Int64),
      sparsity=pl.lit(0.5),
    )
    for i in range(1, 30)
  )
  full = reading.analyse(studies.small(), studies.CONFIG, {})
  figure = registries.FIGURES["sensitivity"].draw(
    dataclasses.replace(full, tables={**full.tables, "sensitivity": many})
  )
  shown = {row["panel"] for row in figure.rows}
  assert len(shown) == layers.MOST_PANELS and {"dnn:1", "dnn:29"} <= shown
  assert f"{layers.MOST_PANELS} of 29 architectures" in figure.caption


@pytest.mark.parametrize("count", [1, 2, 5])
def test_columns_keep_the_order_and_are_about_as_tall(count):
  panels, heights = list("abcde"), [50, 20, 20, 20, 60]
  parts = layers.balanced(panels, heights, count)
  assert sum(parts, []) == panels and len(parts) == count
  tallest = max(
    sum(heights[panels.index(panel)] for panel in part) for part in parts
  )
  assert tallest == {1: 170, 2: 90, 5: 60}[count]
