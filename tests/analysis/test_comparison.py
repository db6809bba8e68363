"""Two sets of records, network by network."""

import numpy as np
import polars as pl
import pytest

from minarch_jax import analysis
from minarch_jax.config import Config

CONFIG = Config(num_bootstrap=300)


def test_records_equal_themselves(study):
  frame = analysis.compare(study, study, CONFIG)
  assert (frame["difference"] == 0).all() and (frame["low"] == 0).all()
  overall = frame.row(-1, named=True)
  assert overall["dataset"] == "" and overall["p_equivalent"] == 0.0


def test_a_shift_is_found_with_its_sign(study):
  better = study._replace(
    networks=study.networks.with_columns(pl.col("val_accuracy") + 0.01)
  )
  frame = analysis.compare(study, better, CONFIG)
  np.testing.assert_allclose(frame["difference"], 0.01)
  faster = study._replace(
    networks=study.networks.with_columns(pl.col("seconds") / 2)
  )
  row = analysis.compare(study, faster, CONFIG, metric="seconds").row(
    -1, named=True
  )
  assert row["difference"] == pytest.approx(-0.25)
  assert row["p_equivalent"] is None


def test_comparison_refuses_strangers(study):
  stranger = study._replace(
    networks=study.networks.with_columns(dataset=pl.lit("other"))
  )
  with pytest.raises(ValueError, match="share no"):
    analysis.compare(study, stranger, CONFIG)
  with pytest.raises(ValueError, match="val_acc"):
    analysis.compare(study, study, CONFIG, metric="val_acc")
