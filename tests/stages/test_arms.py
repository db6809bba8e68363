"""Arms: in the packs of the sweep, recorded apart, resumed like the sweep."""

import dataclasses
import shutil
from unittest import mock

import polars as pl
import pytest

import minarch_jax as ma
from minarch_jax import data, records, study
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.engine import costs, packs
from minarch_jax.engine.planning import Pack
from minarch_jax.stages import arms, forecast

CONFIG = Config(
  design="arms",
  architectures=("dnn:2", "dnn:9", "dnn:40"),
  num_seeds=2,
  num_epochs=3,
  batch_size=64,
  learning_rate=0.02,
  criteria=("magnitude",),
  scopes=("global",),
  sparsities=(0.0, 0.5),
  bits=(32, 4),
  dense_bits=(),
  quant_granularities=("channel",),
  finetune_share=0.0,
  controls=(),
  eps_sigma=1.0,
  eps_accuracy=0.1,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  out = str(tmp_path_factory.mktemp("arms"))
  study.run(CONFIG.replace(out=out))
  return out


@pytest.fixture(scope="module")
def networks(out):
  return ma.read_records(out).networks


def of_arm(networks, arm):
  return networks.filter(arm=arm)


def test_every_arm_has_its_networks(networks):
  assert set(networks["arm"]) == {
    *(records.MAIN, records.CONFIRMATION, records.HARDER),
    records.OVERFITTING,
  }
  main = of_arm(networks, records.MAIN)
  assert set(main["dataset"]) == {"digits"} and len(main) == 6


def test_fresh_seeds_confirm_what_the_sweep_chose(out, networks):
  fresh = of_arm(networks, records.CONFIRMATION)
  main = of_arm(networks, records.MAIN)
  assert set(fresh["run_id"]) == set(main["run_id"])
  assert not set(fresh["seed"]) & set(main["seed"])
  assert fresh.group_by("architecture").len()["len"].to_list() == [4] * (
    fresh["architecture"].n_unique()
  )
  found = ma.minimal_parameters(ma.read_records(out), CONFIG)
  assert found["architecture"][0] in set(fresh["architecture"])
  pruned = ma.read_records(out).compression.join(
    fresh, on=records.NETWORK, how="semi"
  )
  assert pruned["architecture"].n_unique() == 1  # the most redundant
  assert set(pruned["sparsity"]) == {0.0, 0.5} and set(pruned["bits"]) == {32}


def test_harder_images_are_the_same_in_another_form(out, networks):
  harder = of_arm(networks, records.HARDER)
  assert set(harder["dataset"]) == {"digits:blurred"}
  assert set(harder["architecture"]) == {"dnn:40", "dnn:2"}
  assert set(harder["seed"]) == {0, 1}
  rows = ma.read_records(out).compression.filter(dataset="digits:blurred")
  assert set(rows["bits"]) == {32, 4} and set(rows["sparsity"]) == {0.0}


def test_overfitting_has_a_recipe_of_its_own(out, networks):
  noisy = of_arm(networks, records.OVERFITTING)
  assert set(noisy["dataset"]) == {"digits:noisy"}
  assert set(noisy["epochs"]) == {9}
  curves = ma.read_records(out).curves.filter(dataset="digits:noisy")
  assert curves.group_by("architecture", "seed").len()["len"].max() == 9


def test_analyses_look_at_the_sweep_alone(out):
  whole = ma.read_records(out)
  main = records.Records(
    *(t.filter(dataset="digits").filter(pl.col("seed") < 2) for t in whole)
  )
  for analyse in (ma.regimes, ma.minimal_parameters, ma.pruning_phases):
    assert analyse(whole, CONFIG).equals(analyse(main, CONFIG))


def test_noisy_labels_are_for_the_shallowest_of_all_sizes():
  names = [f"dnn:{w}{'-4' * d}" for w in range(2, 6) for d in range(3)]
  config = CONFIG.replace(architectures=tuple(names))
  facts, base = forecast.planned(config, costs.REFERENCE)
  families = arms._by_size(facts.work.problem, base)
  chosen = arms._shallow(families, arms.SIZES["arms"])
  assert list(map(str, chosen)) == ["dnn:5", "dnn:4", "dnn:3"]
  two = {"dnn": chosen[:2]}
  assert arms._shallow(two, arms.SIZES["full"]) == chosen[:1]


def test_a_plan_counts_the_arms(networks):
  text = forecast.describe(CONFIG)
  noisy, blurred = (
    of_arm(networks, arm)["architecture"].n_unique()
    for arm in (records.OVERFITTING, records.HARDER)
  )
  assert f"{noisy} architectures x 2 seeds on noisy labels" in text
  assert f"{blurred} x 2 on blurred images" in text
  without = forecast.describe(CONFIG.replace(design="sweep"))
  assert "blurred" not in without and "arms" not in without
  assert "blurred" not in forecast.describe(CONFIG, whole=False)
  several = CONFIG.replace(datasets=("digits", "digits:blurred"))
  assert "0 x 2 on blurred images" in forecast.describe(several)


def test_arms_compile_nothing(out):
  lines = records.read_json(f"{out}/study.json")["packs"]
  assert len(lines) == 9  # of these two of the sweep: one pack, two stages
  assert [line["compile_seconds"] > 0 for line in lines[2:]] == [False] * 7


def test_a_study_with_its_arms_runs_once(out):
  before = ma.read_records(out)
  with mock.patch.object(packs, "train") as train:
    study.run(CONFIG.replace(out=out))
  assert not train.called
  assert ma.read_records(out).networks.equals(before.networks)


def test_a_sweep_has_none(out, tmp_path):
  config = CONFIG.replace(out=str(tmp_path), design="sweep", num_epochs=1)
  study.run(config)
  assert set(ma.read_records(str(tmp_path)).networks["arm"]) == {records.MAIN}


def test_architectures_keep_the_packs_of_the_sweep():
  names = ("dnn:2", "dnn:3", "dnn:4")
  a, b, c = map(Architecture.parse, names)
  base = [Pack((a, b), (0, 1), b, 2), Pack((c,), (0, 1), c, 1)]
  found = arms.in_packs(base, [b, c], range(10, 15))
  assert [(p.architectures, p.seeds) for p in found] == [
    ((b,), (10, 11)),
    ((b,), (12, 13)),
    ((b,), (14,)),
    ((c,), (10, 11)),
    ((c,), (12, 13)),
    ((c,), (14,)),
  ]
  assert all(p.slots == (2 if b in p.architectures else 1) for p in found)
  # A sweep whose seeds did not fit one pack is not repeated.
  twice = [*base, dataclasses.replace(base[1], seeds=(2, 3))]
  assert arms.in_packs(twice, [b, c], range(10, 15)) == found


def test_a_variant_has_no_variants_of_its_own():
  assert data.variant_of("mnist:3.0.1:blurred") == ("mnist:3.0.1", "blurred")
  assert data.variant_of("mnist:3.0.1") == ("mnist:3.0.1", "")


def test_a_study_of_the_harder_images_trains_its_own(out, tmp_path):
  """What an arm holds is no part of a sweep on the same images."""
  copy = str(tmp_path / "copy")
  shutil.copytree(out, copy)
  changes = {"dataset": "digits:blurred", "design": "sweep"}
  study.run(CONFIG.replace(out=copy, **changes), prune=False, quantize=False)
  rows = ma.read_records(copy).networks.filter(dataset="digits:blurred")
  arms_of = rows.group_by("arm").len().sort("arm")
  assert arms_of.rows() == [(records.HARDER, 4), (records.MAIN, 6)]
