"""Probes foretell regimes where they know something, and only there."""

import numpy as np
import polars as pl

from minarch_jax import analysis
from minarch_jax import records as records_lib
from minarch_jax.analysis import statistics
from tests.analysis import simulated

PROBES = ("loss", "dead", "logit_scale", "gradient_norm", "sharpness")


def probed(records, rng, signal):
  """Probes that shift by `signal` deviations where an architecture is bad."""
  labels = analysis.regimes(records).select("architecture", "label")
  who = list(records_lib.SCHEMAS["networks"])[:7]
  frame = records.networks.select(who).join(labels, on="architecture")
  bad = (frame["label"] == "unstable").cast(pl.Float64)
  noise = pl.Series(rng.normal(size=len(frame)))
  value = bad * signal + noise
  return frame.drop("label").with_columns(
    step=pl.lit(100),
    limit=pl.lit(0.0),
    **{name: value.alias(name) for name in PROBES},
  )


WORLD = {"datasets": ("easy",), "num_epochs": 4, "num_architectures": 16}


def bare(seed=0):
  found = simulated.simulate(seed, **WORLD)
  return found._replace(compression=found.compression.clear())


def test_a_probe_that_knows_foretells_and_one_that_does_not_does_not():
  records = bare()
  for signal, verdict in ((5.0, "foretells"), (0.0, "undecided")):
    rows = analysis.probe_predictions(
      records, probed(records, np.random.default_rng(1), signal)
    ).filter(family="", regime="unstable", probe="sharpness")
    row = rows.row(0, named=True)
    assert row["verdict"] == verdict, row
    assert row["auc_low"] <= row["auc"] <= row["auc_high"]
    assert row["above_limit"] is not None


def test_a_loss_that_is_not_finite_is_the_largest():
  records = bare()
  frame = probed(records, np.random.default_rng(0), 0.0)
  labels = analysis.regimes(records).filter(label="unstable")
  bad = pl.col("architecture").is_in(labels["architecture"].implode())
  frame = frame.with_columns(loss=pl.when(~bad).then("loss"))
  row = analysis.probe_predictions(records, frame).filter(
    family="", regime="unstable", probe="loss"
  )
  assert row["auc"].to_list() == [1.0]


def test_one_regime_alone_says_nothing():
  records = simulated.handmade({1000: [0.9] * 3, 2000: [0.9] * 3})
  frame = probed(records, np.random.default_rng(0), 1.0)
  rows = analysis.probe_predictions(records, frame)
  assert rows["auc"].null_count() == len(rows) > 0
  assert set(rows["verdict"]) == {"undecided"}


def test_the_interval_of_an_area_covers():
  # Normal values one deviation apart: the area is Phi(1 / sqrt 2).
  rng, truth = np.random.default_rng(0), 0.7602
  hits = 0
  for _ in range(300):
    one, other = rng.normal(1, 1, 12), rng.normal(0, 1, 20)
    area = (one[:, None] > other).mean()
    low, high = statistics.auc_interval(area, 12, 20, 0.95)
    hits += low <= truth <= high
  assert 0.9 <= hits / 300 <= 0.99
  low, high = statistics.auc_interval(1.0, 12, 20, 0.95)
  assert 0.7 < low < 1 and high == 1
