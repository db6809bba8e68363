"""Records as the estimators want them."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from minarch_jax.analysis import tables
from tests.analysis import simulated


def test_one_recipe_keeps_the_larger_and_says_so():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  other = records._replace(
    networks=records.networks.head(7).with_columns(run_id=pl.lit("other"))
  )
  both = type(records)(
    *(pl.concat([a, b]) for a, b in zip(records, other, strict=True))
  )
  kept, notes = tables.one_recipe(both)
  assert len(kept.networks) == len(records.networks)
  assert len(notes) == 1 and "easy" in notes[0] and "1 other" in notes[0]
  assert tables.one_recipe(records) == (records, [])


def test_size_classes_begin_where_the_tolerance_ends():
  params = np.array([100, 105, 110, 111, 200, 219])
  assert tables.size_classes(params, 0.1).tolist() == [0, 0, 0, 1, 2, 2]


def test_mean_interval_is_students_and_null_for_one_value():
  frame = pl.DataFrame(
    {
      "k": [1, 1, 1, 2],
      "val_accuracy": [0.90, 0.92, 0.97, 0.5],
      "fold": [0] * 4,
    }
  )
  # So many images have no error of their own.
  frame = frame.with_columns(num_validation=pl.lit(10**12))
  many, single = tables.mean_interval(frame, ["k"], "val", 0.95).to_dicts()
  expected = stats.t.interval(0.95, 2, 0.93, stats.sem([0.90, 0.92, 0.97]))
  assert (many["low"], many["high"]) == pytest.approx(expected)
  assert (many["mean"], many["n"]) == (pytest.approx(0.93), 3)
  assert single == {"k": 2, "mean": 0.5, "n": 1, "low": None, "high": None}
