"""Axes, panels and rows of every figure."""

import itertools

import polars as pl
import polars.testing
import pytest

from minarch_jax.report import theme


def test_panels_hold_every_combination_in_order():
  frame = pl.DataFrame(
    {"family": ["cnn", "vit"], "dataset": ["a", "b"], "layer": ["p", "p"]}
  )
  chart, rows = theme.panels(
    [frame],
    [theme.only("p").mark_point()],
    ("family", ["dnn", "cnn", "vit"]),
    ("dataset", ["b", "a"]),
  )
  cells = {(row["family"], row["dataset"]) for row in rows}
  assert cells == set(itertools.product(["cnn", "vit"], ["a", "b"]))
  facet = chart.to_dict(validate=True)["facet"]
  assert facet["column"]["sort"] == ["cnn", "vit"]
  assert facet["row"]["sort"] == ["b", "a"]


def test_rows_hold_what_json_can():
  frame = pl.DataFrame({"x": [0.5, float("nan"), float("inf")], "n": [1, 2, 3]})
  assert [row["x"] for row in theme.rows(frame)] == [0.5, None, None]


@pytest.mark.parametrize("low", [1.0, 7.0, 85.0, 612.0])
@pytest.mark.parametrize("ratio", [1.01, 1.7, 9.0, 120.0, 1e4, 1e9])
def test_log_ticks_are_few_ordered_and_inside(low, ratio):
  ticks = theme.log_ticks(low, low * ratio)
  assert ticks == sorted(set(ticks))
  assert 1 <= len(ticks) <= 6
  assert all(low <= tick <= low * ratio for tick in ticks)
  assert len(ticks) >= 3 or ratio < 5
