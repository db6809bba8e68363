"""Quantization damage on records with known truth."""

import numpy as np
import polars as pl
import polars.testing
import pytest

from minarch_jax import analysis
from minarch_jax.analysis import quantization
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


def quantized(low, sparsity=0.0, **columns):
  whole = simulated.compressed({0.0: [0.95] * 5, 0.5: [0.94] * 5})
  parts = [
    whole.compression,
    simulated.compressed({0.0: low}, bits=4, **columns).compression,
    simulated.compressed({0.5: [v - 0.02 for v in low]}, bits=4).compression,
  ]
  return whole._replace(compression=pl.concat(parts))


def test_damage_is_paired_by_seed():
  low = [0.94, 0.93, 0.945, 0.935, 0.95]
  row = analysis.quantization_damage(quantized(low), CONFIG).row(0, named=True)
  losses = 0.95 - np.array(low)
  assert row["damage"] == pytest.approx(losses.mean())
  assert row["damage_low"] < losses.mean() < row["damage_high"]
  assert (row["bits"], row["n_seeds"]) == (4, 5)


# Tables of what is neither of narrow activations nor of other quantizers.
PLAIN = (
  analysis.quantization_damage,
  analysis.joint_damage,
  analysis.pruning_phases,
)


def check_damage(found, expected):
  """Compares rows by key with accuracies by key, paired by seed."""
  assert found.keys() == expected.keys()
  for key, accuracy in expected.items():
    losses, row = 0.95 - np.array(accuracy), found[key]
    assert row["damage"] == pytest.approx(losses.mean())
    assert row["damage_low"] < losses.mean() < row["damage_high"]
    assert row["n_seeds"] == 5


def test_damage_of_activations_is_paired_by_seed_and_apart():
  weights = quantized([0.94] * 5)
  narrow = {
    (32, 8): [0.949, 0.948, 0.950, 0.947, 0.949],
    (4, 8): [0.91, 0.93, 0.90, 0.92, 0.91],
  }
  parts = [
    simulated.compressed({0.0: v}, bits=b, activation_bits=a).compression
    for (b, a), v in narrow.items()
  ]
  both = weights._replace(compression=pl.concat([weights.compression, *parts]))
  table = analysis.activation_damage(both, CONFIG)
  found = {
    (row["bits"], row["activation_bits"]): row
    for row in table.iter_rows(named=True)
  }
  check_damage(found, narrow)
  for make in PLAIN:
    pl.testing.assert_frame_equal(make(both, CONFIG), make(weights, CONFIG))


def test_damage_of_quantizers_is_paired_by_seed_and_apart():
  weights = quantized([0.94] * 5)
  others = {
    ("mse", 4): [0.945, 0.946, 0.944, 0.947, 0.945],
    ("binary", 1): [0.61, 0.53, 0.60, 0.62, 0.51],
  }
  parts = [
    simulated.compressed({0.0: v}, bits=bits, quantizer=name).compression
    for (name, bits), v in others.items()
  ]
  both = weights._replace(compression=pl.concat([weights.compression, *parts]))
  table = analysis.quantizer_damage(both, CONFIG)
  found = {
    (row["quantizer"], row["bits"]): row for row in table.iter_rows(named=True)
  }
  check_damage(found, others)
  for make in (*PLAIN, analysis.activation_damage):
    pl.testing.assert_frame_equal(make(both, CONFIG), make(weights, CONFIG))


def test_repeated_dense_rows_count_once():
  found = quantized([0.94] * 5)
  twice = found.compression.with_columns(scope=pl.lit("layerwise"))
  both = found._replace(compression=pl.concat([found.compression, twice]))
  frame = analysis.quantization_damage(both, CONFIG)
  assert len(frame) == 1 and frame["n_seeds"][0] == 5


def test_equal_damage_in_every_seed_has_the_width_of_the_images():
  row = analysis.quantization_damage(quantized([0.94] * 5), CONFIG).row(
    0, named=True
  )
  half = 1.96 * np.sqrt((0.01 * 0.99 + 2 / 5000) / 5000)
  assert row["damage_low"] == pytest.approx(0.01 - half, abs=1e-6)
  assert row["damage_high"] == pytest.approx(0.01 + half, abs=1e-6)
  assert 0 < row["p_adjusted"] < 1e-9


def test_interaction_is_what_does_not_add():
  row = analysis.joint_damage(quantized([0.94] * 5), CONFIG).row(0, named=True)
  # 0.94 - 0.92 at sparsity 0.5 against 0.95 - 0.94 at 0.
  assert row["sparsity"] == 0.5
  assert row["damage"] == pytest.approx(0.02)
  assert row["interaction"] == pytest.approx(0.01)


def test_slopes_and_depths_of_a_known_world():
  world = simulated.World(families=("dnn", "cnn"), noise=0.0005)
  study = simulated.draw(world, 0)
  slopes = analysis.damage_slopes(study, CONFIG).filter(pl.col("bits") == 4)
  truth = dict(world.damage_slope)[4]
  assert ((slopes["slope"] - truth).abs() < 0.002).all()
  assert len(slopes) == 12  # data sets x families x granularities
  frame = analysis.redundancy_by_depth(study, CONFIG).filter(
    (pl.col("criterion") == "magnitude") & (pl.col("schedule") == "oneshot")
  )
  means = frame.group_by("depth").agg(pl.col("redundancy").mean()).sort("depth")
  assert means["redundancy"].is_sorted() and means["redundancy"].n_unique() == 3


def test_summaries_group_by_format():
  records = quantized([0.94] * 5)
  rows = quantization.paired_damage(records, CONFIG)
  frame = quantization.summarised(records, rows, (), CONFIG)
  assert frame["quantizer"].to_list() == ["absmax"]
