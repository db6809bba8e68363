"""Pruning phases and quantization damage on records with known truth."""

import numpy as np
import polars as pl
import polars.testing
import pytest

from minarch_jax import analysis, records
from minarch_jax.analysis import damage, pruning
from minarch_jax.config import Config
from tests import simulated

CONFIG = Config(num_bootstrap=300)


def compressed(accuracy, *, dense=0.95, bits=32, **columns):
  """Compression rows of one architecture: sparsity -> accuracy per seed."""
  base = simulated.handmade({1000: [dense] * 5})
  rows = [
    {
      **base.networks.row(seed, named=True),
      "criterion": "magnitude",
      "scope": "global",
      "granularity": "element",
      "schedule": "oneshot",
      "control": "none",
      "sparsity": sparsity,
      "achieved_sparsity": sparsity,
      "dead_layers": 0,
      "bits": bits,
      "activation_bits": 32,
      "quantizer": "none" if bits == 32 else "absmax",
      "quant_granularity": "none" if bits == 32 else "channel",
      "val_accuracy": value,
      "test_accuracy": value,
      "bytes": 4000,
      "nonzeros": 1000,
    }
    | columns
    for sparsity, values in accuracy.items()
    for seed, value in enumerate(values)
  ]
  schema = records.SCHEMAS["compression"]
  table = pl.DataFrame(
    [{name: row[name] for name in schema} for row in rows], schema=schema
  )
  return base._replace(compression=table)


def phases(accuracy, **options):
  found = analysis.pruning_phases(compressed(accuracy, **options), CONFIG)
  return found.row(0, named=True)


SURE = {
  0.0: [0.95] * 5,
  0.5: [0.949, 0.950, 0.948, 0.949, 0.950],
  0.7: [0.937, 0.947, 0.927, 0.950, 0.949],  # 0.8 points lost, on average
  0.9: [0.6, 0.62, 0.61, 0.6, 0.63],
  0.98: [0.1, 0.12, 0.11, 0.1, 0.13],
}


def test_phases_begin_where_they_should():
  row = phases(SURE)
  assert row["redundancy"] == 0.5  # 0.7 may be free, but it is not shown
  assert row["redundancy_low"] <= 0.5 < row["redundancy_high"] <= 0.9
  assert 0.7 <= row["crossing"] <= 0.9
  assert row["collapse_at"] == 0.98 == row["collapse_high"]
  assert 0.9 < row["collapse_low"] < 0.98
  assert row["n_seeds"] == 5 and row["free_margin"] == CONFIG.free_margin


def test_free_ends_at_the_first_failure():
  row = phases(SURE | {0.9: [0.95] * 5})
  assert row["redundancy"] == 0.5


def test_pruning_that_never_costs_reaches_the_end_of_the_grid():
  row = phases({0.0: [0.95] * 5, 0.5: [0.95] * 5, 0.9: [0.951] * 5})
  assert row["redundancy"] == 0.9 and row["crossing"] == 0.9
  assert row["collapse_at"] is None and row["collapse_high"] is None


def test_one_seed_shows_nothing_and_has_no_interval():
  row = phases({s: values[:1] for s, values in SURE.items()})
  assert row["redundancy"] is None and row["redundancy_high"] is None
  assert row["collapse_at"] == 0.98 and row["n_seeds"] == 1


def test_missing_cells_are_skipped():
  row = phases(SURE | {0.5: SURE[0.5][:3]})
  assert row["n_seeds"] == 5 and row["redundancy"] in (0.0, 0.5)


def test_seeds_that_did_not_learn_are_left_out():
  assert analysis.pruning_phases(
    compressed({0.0: [0.1] * 5, 0.5: [0.1] * 5}, dense=0.1), CONFIG
  ).is_empty()


def test_retrained_networks_are_compared_with_the_retrained_dense():
  plain = compressed({0.0: [0.95] * 5, 0.5: [0.94] * 5})
  tuned = compressed(
    {0.0: [0.97] * 5, 0.5: [0.94] * 5}, schedule="finetune"
  ).compression
  both = plain._replace(compression=pl.concat([plain.compression, tuned]))
  drops = pruning.pruning_drops(both, CONFIG)
  by_schedule = dict(
    zip(
      drops.groups["schedule"], np.nanmean(drops.drop[..., 1], 1), strict=True
    )
  )
  assert by_schedule["oneshot"] == pytest.approx(0.01)
  assert by_schedule["finetune"] == pytest.approx(0.03)


def test_a_criterion_without_its_own_dense_row_shares_the_schedules():
  magnitude = compressed({0.0: [0.95] * 5, 0.5: [0.94] * 5})
  other = compressed({0.5: [0.93] * 5}, criterion="snip").compression
  drops = pruning.pruning_drops(
    magnitude._replace(compression=pl.concat([magnitude.compression, other])),
    CONFIG,
  )
  assert drops.groups["criterion"].to_list() == ["magnitude", "snip"]
  np.testing.assert_allclose(drops.drop[1, :, 1], 0.02)


def test_controls_are_analysed_apart_against_the_same_dense():
  real = compressed(SURE)
  shuffled = compressed({0.5: [0.8] * 5}, control="shuffled").compression
  both = real._replace(compression=pl.concat([real.compression, shuffled]))
  assert analysis.pruning_phases(both, CONFIG)["redundancy"].to_list() == [0.5]
  control = analysis.pruning_phases(both, CONFIG, control="shuffled")
  assert control["redundancy"].to_list() == [0.0]


def test_empty_compression_gives_empty_tables():
  base = simulated.handmade({1000: [0.95] * 5})
  for make in (
    analysis.pruning_phases,
    analysis.quantization_damage,
    analysis.activation_damage,
    analysis.quantizer_damage,
    analysis.damage_slopes,
    analysis.joint_damage,
    analysis.redundancy_by_depth,
    analysis.control_differences,
  ):
    assert make(base, CONFIG).is_empty()


def quantized(low, sparsity=0.0, **columns):
  whole = compressed({0.0: [0.95] * 5, 0.5: [0.94] * 5})
  parts = [
    whole.compression,
    compressed({0.0: low}, bits=4, **columns).compression,
    compressed({0.5: [v - 0.02 for v in low]}, bits=4).compression,
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
    compressed({0.0: v}, bits=b, activation_bits=a).compression
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
    compressed({0.0: v}, bits=bits, quantizer=name).compression
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


def test_equal_damage_in_every_seed_has_no_width_and_no_warning():
  row = analysis.quantization_damage(quantized([0.94] * 5), CONFIG).row(
    0, named=True
  )
  assert row["damage_low"] == pytest.approx(row["damage_high"])
  assert row["p_adjusted"] == 0.0


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


def test_redundancy_intervals_hold_the_tested_value():
  frame = analysis.pruning_phases(
    simulated.simulate(datasets=("easy",), noise=0.01), CONFIG
  ).drop_nulls("redundancy_low")
  assert (frame["redundancy_low"] <= frame["redundancy"]).all()
  assert (frame["redundancy"] <= frame["redundancy_high"]).all()


def test_summaries_group_by_format():
  rows = damage.paired_damage(quantized([0.94] * 5), CONFIG)
  frame = damage.summarised(rows, (), CONFIG)
  assert frame["quantizer"].to_list() == ["absmax"]
