"""What became of each network, from its curve."""

import polars as pl
import pytest

from minarch_jax.analysis.outcomes import loss_rises
from tests.analysis import simulated

GOOD = [0.96, 0.97, 0.965, 0.97, 0.96]


def test_curves_of_unequal_length_are_all_judged():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  cut = records.curves.filter((pl.col("epoch") <= 20) | (pl.col("seed") != 2))
  rises = loss_rises(cut)
  assert len(rises) == len(loss_rises(records.curves))


def test_two_rows_of_one_epoch_are_refused():
  records = simulated.handmade({100: GOOD}, losses=[0.9, 0.5])
  with pytest.raises(ValueError, match="share one network and epoch"):
    loss_rises(pl.concat([records.curves, records.curves]))
