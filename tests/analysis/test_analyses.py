"""All analyses together, on records that are whole, extreme or in part."""

import dataclasses
import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import polars as pl
from polars import testing
import pytest

import minarch_jax
from minarch_jax import analysis
from minarch_jax.config import Config, THRESHOLDS
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


VERDICTS = {"supported", "contradicted", "undecided"}


def test_known_tables_are_not_computed_again(study, tables):
  again = analysis.claims(study, CONFIG, **tables)
  assert again.equals(tables["claims"])


def test_every_result_records_the_thresholds_it_used(study):
  strict = dataclasses.replace(CONFIG, eps_sigma=0.013, confidence=0.9)
  narrow = study.compression.filter(sparsity=0.0).with_columns(
    activation_bits=pl.lit(8, pl.Int64)
  )
  other = study.compression.filter(sparsity=0.0, bits=4).with_columns(
    quantizer=pl.lit("nf4")
  )
  rows = pl.concat([study.compression, narrow, other])
  study = study._replace(compression=rows)
  for name, frame in analysis.analyse(study, strict).items():
    if name in ("redundancy",):
      continue
    used = [c for c in frame.columns if c in THRESHOLDS]
    assert used, name
    for column in used:
      expected = [getattr(strict, column)]
      assert frame[column].drop_nulls().unique().to_list() == expected


EDGES = {
  "one seed": {"num_seeds": 1},
  "two seeds": {"num_seeds": 2},
  "all failed": {"decades": (-3.0, -1.2)},
  "all diverged": {"decades": (-3.0, -1.2), "diverged_share": 1.0},
  "constant": {"sigma": 0.0, "noise": 0.0},
  "one architecture": {"num_architectures": 1, "decades": (1.0, 1.0)},
}


def check_runs(records):
  found = analysis.analyse(records, CONFIG)
  assert set(found["claims"]["verdict"]) <= VERDICTS
  for claim, effect in found["claims"].select("claim", "effect").iter_rows():
    assert effect is None or np.isfinite(effect), claim
  assert all(analysis.summary(records, CONFIG, **found))
  analysis.joint_damage(records, CONFIG)
  analysis.p_at(records, 0.8, CONFIG)
  return found


@pytest.mark.parametrize("edge", EDGES)
def test_everything_runs_on(edge):
  found = check_runs(
    simulated.simulate(
      datasets=("easy",), plateaus=(0.97,), **simulated.LEAN, **EDGES[edge]
    )
  )
  verdict = dict(found["claims"].select("claim", "verdict").iter_rows())
  if "failed" in edge or "diverged" in edge:
    assert "supported" not in verdict.values()
    assert "stable" in found["guidance"]["refused"][0]
    assert found["guidance"]["architecture"].to_list() == [None]
  if edge == "one seed":
    assert verdict["C3"] == verdict["C2"] == "undecided"
    assert "one seed" in found["guidance"]["refused"][0]
    assert set(found["minimal_parameters"]["status"]) == {"one seed"}


@pytest.mark.parametrize("table", ["networks", "curves", "compression"])
def test_everything_runs_without_a_table(study, table):
  check_runs(study._replace(**{table: getattr(study, table).clear()}))


def test_everything_runs_with_missing_cells(study):
  check_runs(type(study)(*(t.sample(fraction=0.6, seed=3) for t in study)))


def test_a_family_that_never_learns_does_not_spoil_the_others(study):
  broken = study.networks.with_columns(
    pl.when(pl.col("family") == "vit").then(True).otherwise("diverged")
    .alias("diverged"),
  )  # fmt: skip
  found = check_runs(study._replace(networks=broken))
  status = found["minimal_parameters"].filter(pl.col("family") != "vit")
  assert set(status["status"]) == {"bracketed"}


def test_analysis_does_not_import_jax():
  code = (
    "import sys; from tests.analysis import simulated; "
    "from minarch_jax import analysis; "
    "analysis.analyse(simulated.simulate(datasets=('easy',), num_seeds=2)); "
    "assert not [m for m in sys.modules if m.split('.')[0] in ('jax', 'flax')]"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_estimates_do_not_depend_on_the_order_of_rows():
  records = simulated.simulate(datasets=("easy",), families=("dnn",))
  shuffled = type(records)(
    *(t.sample(fraction=1, shuffle=True, seed=1) for t in records)
  )
  for make in (
    analysis.regimes,
    analysis.minimal_parameters,
    analysis.convergence_phases,
    analysis.regime_boundaries,
  ):
    testing.assert_frame_equal(
      make(records, CONFIG), make(shuffled, CONFIG), rel_tol=1e-9
    )
    assert make(records, CONFIG).equals(make(records, CONFIG))


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


def test_the_door_gives_functions_also_where_a_module_has_the_name():
  for found in pkgutil.walk_packages(
    analysis.__path__, "minarch_jax.analysis."
  ):
    importlib.import_module(found.name)
  for name in analysis.__all__:
    assert callable(getattr(analysis, name)), name
  for name, home in minarch_jax._HOME.items():
    if home == "analysis":
      assert getattr(minarch_jax, name) is getattr(analysis, name), name


def test_an_analysis_runs_once_and_a_wrong_name_is_told(study):
  found = analysis.Analyses(study, CONFIG)
  assert found["regimes"] is found["regimes"]
  with pytest.raises(ValueError, match="did you mean 'regimes'"):
    found["regime"]
