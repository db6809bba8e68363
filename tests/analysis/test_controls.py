"""Pruned networks beside their controls: paired, honest, older records too."""

import numpy as np
import polars as pl
import pytest

from minarch_jax import analysis, records
from minarch_jax.analysis import controls
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=200)
SIZES = (1000, 2000, 3000, 4000, 5000)


def study(pruned, **others):
  """Records of one sparsity: accuracies [A, S] of the pruned networks and, by
  the name of the control, of others."""
  pruned = np.asarray(pruned, float)
  base = simulated.handmade(
    {p: [0.95] * pruned.shape[1] for p in SIZES[: len(pruned)]}
  )
  schema = records.SCHEMAS["compression"]
  fixed = {
    **{"scope": "global", "granularity": "element", "schedule": "finetune"},
    **{"sparsity": 0.5, "achieved_sparsity": 0.5, "dead_layers": 0},
    **{"bits": 32, "activation_bits": 32, "quantizer": "none"},
    **{"quant_granularity": "none", "bytes": 4000, "nonzeros": 500},
  }
  rows = []
  for name, values in {"none": pruned, **others}.items():
    flat = np.asarray(values, float).ravel()
    for row, value in zip(base.networks.to_dicts(), flat, strict=True):
      named = {
        "criterion": "random" if name == "random" else "magnitude",
        "control": "none" if name == "random" else name,
      }
      row |= fixed | named | {"val_accuracy": value, "test_accuracy": value}
      rows.append({column: row[column] for column in schema})
  return base._replace(compression=pl.DataFrame(rows, schema=schema))


SURE = np.full((3, 5), 0.93) + np.arange(15).reshape(3, 5) % 4 / 1000


@pytest.mark.parametrize("name", controls.CONTROLS)
@pytest.mark.parametrize(
  ("shift", "verdict"),
  [
    (-0.02, controls.BETTER),
    (0.02, controls.WORSE),
    (0.0, controls.UNDECIDED),
  ],
)
def test_each_control_is_judged(name, shift, verdict):
  wave = np.arange(15).reshape(3, 5) % 3 / 1000 - 0.001
  found = analysis.control_differences(
    study(SURE, **{name: SURE + shift + wave}), CONFIG
  )
  row = found.row(0, named=True)
  assert (len(found), row["control"], row["verdict"]) == (1, name, verdict)
  assert row["low"] <= -shift <= row["high"]
  assert (row["n_architectures"], row["n_seeds"]) == (3, 5)
  assert row["step_ratio"] == 1


def test_differences_are_paired_by_seed():
  seeds = np.array([[0.5, 0.6, 0.7, 0.8, 0.9]] * 3)
  tiny = np.arange(15).reshape(3, 5) % 2 / 1e5
  found = analysis.control_differences(
    study(seeds, small_dense=seeds - 0.01 + tiny), CONFIG
  )
  assert found["verdict"].to_list() == [controls.BETTER]


def test_a_control_recorded_once_serves_every_criterion():
  found = study(SURE, small_dense=SURE - 0.1)
  snip = found.compression.filter(control="none").with_columns(
    criterion=pl.lit("snip"), scope=pl.lit("layerwise")
  )
  found = found._replace(compression=pl.concat([found.compression, snip]))
  rows = analysis.control_differences(found, CONFIG)
  assert rows["criterion"].to_list() == ["magnitude", "snip"]
  np.testing.assert_allclose(rows["difference"], 0.1)


def test_unequal_budgets_show():
  found = study(SURE, small_dense=SURE)
  twice = (
    pl.when(pl.col("control") == "small_dense")
    .then(2 * pl.col("steps"))
    .otherwise("steps")
  )
  found = found._replace(
    compression=found.compression.with_columns(steps=twice)
  )
  rows = analysis.control_differences(found, CONFIG)
  assert rows["step_ratio"].to_list() == [2.0]


def test_one_seed_and_one_architecture_have_no_interval():
  one = study([[0.9]], small_dense=[[0.8]])
  row = analysis.control_differences(one, CONFIG).row(0, named=True)
  assert row["difference"] == pytest.approx(0.1)
  assert row["low"] is None and row["verdict"] == controls.UNDECIDED


@pytest.mark.parametrize("marks", ["", None])
def test_records_without_controls_are_all_studied(marks):
  whole = study(SURE)
  kind = records.SCHEMAS["compression"]["control"]
  marked = whole._replace(
    compression=whole.compression.with_columns(control=pl.lit(marks, kind))
  )
  without = whole._replace(compression=whole.compression.drop("control"))
  for old in (marked, without):
    for make in (
      analysis.pruning_phases,
      analysis.joint_damage,
      analysis.control_differences,
    ):
      assert make(old, CONFIG).equals(make(whole, CONFIG))


def test_no_other_analysis_sees_the_controls():
  base = simulated.simulate(
    datasets=("easy",), num_architectures=8, num_epochs=6, num_seeds=3
  )
  wrong = base.compression.with_columns(
    val_accuracy=pl.lit(0.999), bytes=pl.lit(1, pl.Int64)
  )
  more = [
    wrong.with_columns(control=pl.lit(name))
    for name in controls.CONTROLS
    if name != "random"
  ]
  mixed = base._replace(compression=pl.concat([base.compression, *more]))
  before, after = (analysis.analyse(found, CONFIG) for found in (base, mixed))
  assert len(after["controls"]) > len(before["controls"])
  for name, frame in before.items():
    if name != "controls":
      assert frame.equals(after[name]), name


def test_intervals_cover_and_false_verdicts_are_rare():
  rng = np.random.default_rng(0)
  covered, wrong = 0, 0
  for _ in range(100):
    # Architectures differ in what pruning gains them; the mean gain is 0.
    gains = rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.005, (5, 5))
    found = controls.control_differences(
      study(np.full((5, 5), 0.9), small_dense=0.9 - gains), CONFIG
    )
    row = found.row(0, named=True)
    covered += row["low"] <= 0 <= row["high"]
    wrong += row["verdict"] != controls.UNDECIDED
  assert 90 <= covered and wrong <= 10, (covered, wrong)
