"""The straight line: complete tables, resumed and repeated without a change."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import threading
import time
from unittest import mock

import jax
import numpy as np
import polars as pl
import polars.testing
import pytest

import minarch_jax as ma
from minarch_jax import (
  compressing,
  packs,
  provenance,
  records,
  study,
)
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config, ConfigError
from tests import made_up
from tests.made_up import CLASSES, SHAPE

CONFIG = Config(
  dataset="made-up",
  architectures=("dnn:3", "dnn:4", "cnn:2", "dnn:3-3"),
  num_seeds=2,
  num_epochs=3,
  batch_size=8,
  learning_rate=0.01,
  criteria=("magnitude", "random"),
  scopes=("global",),
  sparsities=(0.0, 0.8),
  bits=(32, 4),
  quant_granularities=("channel",),
  finetune_share=0.5,
  finetune="all",
  first_seed=3,
  packs_at_once=1,
)


@functools.cache
def dataset():
  return made_up.dataset(52, 13, 11, spread=2.0, fingerprint="bytes")


@functools.cache
def programs():
  """One cache of programs for all sessions of this file."""
  return {}


def open_session(**changes):
  config = CONFIG.replace(**changes)
  session = packs.open_session(config, dataset())
  key = (config.recipe().values(), config.num_epochs)
  session.programs.update(programs().get(repr(key), {}))
  programs()[repr(key)] = session.programs
  return session


def run(out, **changes):
  """Trains and compresses into a directory as `experiments.study` does."""
  session = open_session(**changes)
  statistics = study.sweep(session, str(out))
  statistics += study.compress(session, str(out))
  provenance.write(session, str(out), statistics)
  return statistics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A directory with the whole study; tests that write take a copy."""
  out = tmp_path_factory.mktemp("finished")
  statistics = run(out)
  return out, statistics


@pytest.fixture
def copy(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "copy")
  return tmp_path / "copy"


def files(out):
  """Every file and when it was written."""
  found = {}
  for folder, _, names in os.walk(out):
    for name in names:
      path = os.path.join(folder, name)
      found[os.path.relpath(path, out)] = os.stat(path).st_mtime_ns
  return found


def assert_same_tables(found, expected):
  """Bit for bit, but for the measured seconds."""
  for name, table in expected._asdict().items():
    pl.testing.assert_frame_equal(
      getattr(found, name).drop("seconds", strict=False),
      table.drop("seconds", strict=False),
      check_exact=True,
    )


# --- tables ------------------------------------------------------------------


def test_every_network_has_its_rows(finished):
  found = ma.read_records(str(finished[0]))
  networks, curves = found.networks, found.curves
  keys = set(networks.select("architecture", "seed").iter_rows())
  assert keys == {(a, s) for a in CONFIG.architectures for s in (3, 4)}
  assert len(networks) == 8 and len(curves) == 8 * 3
  for (architecture,), rows in networks.group_by("architecture"):
    a = Architecture.parse(architecture)
    for row in rows.iter_rows(named=True):
      assert row["params"] == a.num_params(SHAPE, CLASSES)
      assert row["macs"] == a.macs(SHAPE, CLASSES)
      assert (row["family"], row["depth"]) == (a.family, a.depth)
      assert (row["epochs"], row["steps"]) == (3, 18)
      assert row["num_validation"], row["num_test"] == (13, 11)
      assert row["num_classes"] == CLASSES and row["fingerprint"] == "bytes"
      assert row["seconds"] > 0 and not row["diverged"]
  assert networks["run_id"].n_unique() == 1
  for _, rows in curves.group_by("architecture", "seed"):
    assert rows["epoch"].to_list() == [1, 2, 3]
    assert rows["step"].to_list() == [6, 12, 18]


def test_the_last_point_of_a_curve_is_the_final_score(finished):
  found = ma.read_records(str(finished[0]))
  last = found.curves.filter(pl.col("epoch") == 3).join(
    found.networks, on=("architecture", "seed"), suffix="_final"
  )
  assert last["val_accuracy"].to_list() == last["val_accuracy_final"].to_list()
  np.testing.assert_allclose(
    last["val_loss"], last["val_loss_final"], rtol=1e-5
  )


def test_rows_are_those_of_the_stored_parameters(finished):
  out = str(finished[0])
  session = open_session()
  members = study.select(session.config, SHAPE, CLASSES)
  params = study.load_params(out, study.recipe_id(session), members, (4, 3))
  networks = ma.read_records(out).networks
  for a, tree in zip(members, params, strict=True):
    for split, column in (("train", "train"), ("test", "test")):
      accuracy = ma.accuracy(a, tree, getattr(dataset(), split))
      rows = networks.filter(pl.col("architecture") == str(a))
      expected = rows.sort("seed", descending=True)[f"{column}_accuracy"]
      np.testing.assert_allclose(accuracy, expected, rtol=1e-6)


def test_the_grid_is_complete(finished):
  found = ma.read_records(str(finished[0])).compression
  settings = [
    *((c, s, "oneshot", 32) for c in CONFIG.criteria for s in (0.0, 0.8)),
    *(("magnitude", s, "oneshot", 4) for s in (0.0, 0.8)),
    *(
      (c, s, "finetune", b)
      for c in CONFIG.criteria
      for s in (0.0, 0.8)
      for b in (32, 4)
    ),
  ]
  expected = {
    (a, seed, *setting)
    for a in CONFIG.architectures
    for seed in (3, 4)
    for setting in settings
  }
  columns = (
    "architecture",
    "seed",
    "criterion",
    "sparsity",
    "schedule",
    "bits",
  )
  found = found.filter(pl.col("control") == "none")
  assert set(found.select(columns).iter_rows()) == expected
  assert len(found) == len(expected)
  steps = found.group_by("schedule").agg(pl.col("steps").unique())
  assert dict(steps.iter_rows()) == {"oneshot": [18], "finetune": [18 + 8]}


def test_dense_in_32_bits_repeats_the_networks(finished):
  found = ma.read_records(str(finished[0]))
  neutral = found.compression.filter(
    (pl.col("sparsity") == 0)
    & (pl.col("bits") == 32)
    & (pl.col("schedule") == "oneshot")
  ).join(found.networks, on=("architecture", "seed"), suffix="_plain")
  assert len(neutral) == 8 * len(CONFIG.criteria)
  for column in ("val_accuracy", "test_accuracy", "macs"):
    assert neutral[column].to_list() == neutral[f"{column}_plain"].to_list()
  assert (neutral["bytes"] == 4 * neutral["params"]).all()


# --- again, and on -----------------------------------------------------------


def test_the_same_again_trains_and_writes_nothing(finished):
  before = files(finished[0])
  with (
    mock.patch.object(packs, "train") as train,
    mock.patch.object(compressing, "compress") as compress,
  ):
    assert run(finished[0]) == []
  assert not (train.called or compress.called)
  assert files(finished[0]) == before


def test_the_same_elsewhere_gives_the_same_tables(finished, tmp_path):
  run(tmp_path, packs_at_once=3)
  assert_same_tables(
    ma.read_records(str(tmp_path)), ma.read_records(str(finished[0]))
  )
  # The parts are the same files: their names are hashes of what they hold.
  parts = {name for name in files(tmp_path) if name.startswith("records")}
  expected = {n for n in files(finished[0]) if n.startswith("records")}
  assert parts == expected


class Interrupted(Exception):
  pass


def interrupting(function, calls):
  """Lets a function run so often, then fails as a pulled plug would."""
  left = iter(range(calls))

  def run(*arguments, **options):
    if next(left, None) is None:
      raise Interrupted
    return function(*arguments, **options)

  return run


def test_an_interrupted_sweep_goes_on_where_it_stopped(finished, tmp_path):
  session, out = open_session(), str(tmp_path)
  plan = study.plan_missing(
    session, study.select(session.config, SHAPE, CLASSES), out
  )
  assert len(plan) > 1
  with (
    mock.patch.object(packs, "train", interrupting(packs.train, 1)),
    pytest.raises(Interrupted),
  ):
    study.sweep(session, out)
  some = ma.read_records(out).networks
  assert 0 < len(some) < 8
  session = open_session()  # the other one was told to stop
  statistics = study.sweep(session, out)
  assert len(statistics) == len(plan) - 1
  study.compress(session, out)
  assert_same_tables(ma.read_records(out), ma.read_records(str(finished[0])))


def test_an_error_stops_what_runs_beside_it_and_leaves_whole_files(
  finished, tmp_path
):
  session, out = open_session(packs_at_once=2), str(tmp_path)
  train, beside = packs.train, threading.Event()

  def failing(session, pack, *arguments):
    if pack.parent.family == "cnn":
      assert beside.wait(60)
      raise OSError("no space left on device")
    beside.set()
    assert session.stop.wait(60)
    return train(session, pack, *arguments)

  with (
    mock.patch.object(packs, "train", failing),
    pytest.raises(OSError, match="no space left"),
  ):
    study.sweep(session, out)
  assert not files(out)
  run(tmp_path)
  assert_same_tables(ma.read_records(out), ma.read_records(str(finished[0])))


STAGES = {
  "sweep": (packs, "train", "networks"),
  "compress": (compressing, "compress", "compression"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_soon_and_the_next_run_does_the_rest(
  finished, tmp_path, stage
):
  """The signal comes in the middle of the second pack."""
  module, name, table = STAGES[stage]
  out, expected = str(tmp_path), ma.read_records(str(finished[0]))
  if stage == "compress":
    shutil.copytree(finished[0], out, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "records" / table)
  work, started, pressed = vars(module)[name], [], []
  first = threading.Event()

  def interrupted(session, pack, *arguments, **options):
    started.append(pack)
    if len(started) == 1:
      return work(session, pack, *arguments, **options)
    first.wait(60)
    pressed.append(time.monotonic())
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    assert session.stop.wait(60)
    return work(session, pack, *arguments, **options)

  def written(*arguments):
    write(*arguments)
    if arguments[1] == table:
      first.set()

  write = records.write
  with (
    mock.patch.object(module, name, interrupted),
    mock.patch.object(records, "write", written),
    pytest.raises(KeyboardInterrupt),
  ):
    getattr(study, stage)(open_session(packs_at_once=2), out)
  assert time.monotonic() - pressed[0] < 10
  half = [name for name in files(out) if ".tmp" in name or "orbax" in name]
  assert not half
  before = getattr(ma.read_records(out), table)
  assert 0 < len(before) < len(getattr(expected, table))
  left = open_session()
  statistics = getattr(study, stage)(left, out)
  todo = {
    pack.architectures
    for pack in study.plan(
      left, study.select(CONFIG, SHAPE, CLASSES), list(CONFIG.seeds)
    )
  }
  assert len(statistics) == len(todo) - 1
  if stage == "sweep":
    study.compress(left, out)
  assert_same_tables(ma.read_records(out), expected)


def refusing(function, most):
  """A device without room for more than so many networks of a pack."""

  def run(session, pack, *arguments, **options):
    if len(pack.architectures) > most:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return function(session, pack, *arguments, **options)

  return run


def test_packs_that_do_not_fit_give_the_same_rows(finished, tmp_path):
  session, out = open_session(), str(tmp_path)
  with (
    mock.patch.object(packs, "train", refusing(packs.train, 2)),
    mock.patch.object(
      compressing, "compress", refusing(compressing.compress, 2)
    ),
  ):
    statistics = study.sweep(session, out)
    statistics += study.compress(session, out)
  assert [line["members"] for line in statistics].count(2) == 2
  assert all(line["members"] <= 2 for line in statistics)
  found, expected = ma.read_records(out), ma.read_records(str(finished[0]))
  for table, other in zip(found, expected, strict=True):
    # Other programs round otherwise, and a hit may hang on the last bit.
    numbers = [c for c in table.columns if c.endswith(("_loss", "_accuracy"))]
    keys = [c for c in table.columns if c not in (*numbers, "seconds")]
    table, other = (t.sort(keys) for t in (table, other))
    pl.testing.assert_frame_equal(table.select(keys), other.select(keys))
    for column in numbers:
      near = np.isclose(table[column], other[column], atol=1e-3)
      assert near.mean() > 0.9, column
  assert study.sweep(open_session(), out) == []
  assert study.compress(open_session(), out) == []


def test_a_pack_without_its_last_file_is_trained_again(copy):
  networks = copy / "records" / "networks"
  lost = sorted(networks.iterdir())[0]
  expected = ma.read_records(str(copy))
  count = len(pl.read_parquet(lost))
  lost.unlink()
  statistics = study.sweep(open_session(), str(copy))
  assert sum(s["members"] * s["seeds"] for s in statistics) == count
  assert_same_tables(ma.read_records(str(copy)), expected)


def test_an_interrupted_compression_goes_on_where_it_stopped(copy):
  expected = ma.read_records(str(copy))
  shutil.rmtree(copy / "records" / "compression")
  session, out = open_session(), str(copy)
  with (
    mock.patch.object(
      compressing, "compress", interrupting(compressing.compress, 1)
    ),
    pytest.raises(Interrupted),
  ):
    study.compress(session, out)
  assert 0 < len(ma.read_records(out).compression) < len(expected.compression)
  study.compress(open_session(), out)
  assert_same_tables(ma.read_records(out), expected)


def test_more_seeds_and_architectures_train_only_what_is_new(copy):
  before = ma.read_records(str(copy)).networks
  session = open_session(
    num_seeds=3, architectures=(*CONFIG.architectures, "dnn:5")
  )
  statistics = study.sweep(session, str(copy))
  assert sum(s["members"] * s["seeds"] for s in statistics) == 4 * 1 + 3
  after = ma.read_records(str(copy)).networks
  assert len(after) == 15
  pl.testing.assert_frame_equal(
    after.join(before, on=("architecture", "seed"), how="semi"), before
  )


def test_another_recipe_is_kept_apart_and_another_machine_is_not(copy):
  before = ma.read_records(str(copy)).networks
  machine = open_session(device_map="pmap", seed_mapping="vmap")
  assert study.sweep(machine, str(copy)) == []
  other = open_session(learning_rate=0.02, architectures=("dnn:3",))
  assert study.sweep(other, str(copy))
  after = ma.read_records(str(copy)).networks
  assert after["run_id"].n_unique() == 2
  assert len(after) == len(before) + 2


def test_other_bytes_of_data_are_another_recipe():
  session = open_session()
  other = dataclasses.replace(dataset(), fingerprint="other bytes")
  changed = dataclasses.replace(session, dataset=other)
  assert study.recipe_id(changed) != study.recipe_id(session)


# --- stages on their own -----------------------------------------------------


def test_compressing_needs_trained_networks(tmp_path):
  with pytest.raises(ConfigError, match="with seed 3 is not trained"):
    study.compress(open_session(finetune_share=0.0), str(tmp_path))


def test_missing_checkpoints_say_what_to_do(copy):
  shutil.rmtree(copy / "checkpoints")
  session = open_session()
  members = study.select(session.config, SHAPE, CLASSES)
  with pytest.raises(FileNotFoundError, match="copy the checkpoints too"):
    study.load_params(str(copy), study.recipe_id(session), members, (3,))


def test_two_kinds_of_retraining_do_not_share_a_directory(copy):
  session = open_session(finetune_learning_rate=0.5)
  with pytest.raises(ConfigError, match="--finetune_learning_rate=0.5, but"):
    study.compress(session, str(copy))


@pytest.mark.parametrize(
  "prune, quantize", [(True, True), (True, False), (False, True)]
)
def test_the_grid_of_a_stage(prune, quantize):
  config = CONFIG.replace(scopes=("global", "layerwise"), sparsities=(0.8,))
  cells = study.grid_of(config, prune, quantize)
  rows = list(zip(*(column.tolist() for column in cells), strict=True))
  assert len(rows) == len(set(rows))
  # The dense network in 32 bits is always there to compare with.
  assert (0, 0.0, 32, 0, 32) in rows
  expected = [0.0, np.float32(0.8)] if prune else [0.0]
  assert {row[1] for row in rows} == set(map(float, expected))
  assert {row[2] for row in rows} == ({32, 4} if quantize else {32})
  rules = range(len(compressing.rules_of(config)) if prune else 1)
  assert {row[0] for row in rows} == set(rules)
  assert all(bits == 32 for rule, _, bits, *_ in rows if rule)
  # Narrow activations add dense cells at every bits, and the default none.
  assert {row[4] for row in rows} == {32}
  config = config.replace(activation_bits=(8, 3))
  more = zip(*study.grid_of(config, prune, quantize), strict=True)
  added = {(0, 0.0, b, 0, a) for b in (32, 4) for a in (8, 3) if quantize}
  assert set(more) == {*rows, *added}


@pytest.mark.parametrize("quantize", [True, False])
def test_other_quantizers_add_dense_cells(quantize):
  config = CONFIG.replace(
    bits=(32, 8, 4), quant_granularities=("tensor", "channel")
  )
  before = list(zip(*study.grid_of(config, True, quantize), strict=True))
  config = config.replace(quantizers=("mse", "bfloat16", "absmax", "uint5"))
  names = [
    (rounding.quantizer, rounding.granularity)
    for rounding in compressing.roundings_of(config)
  ]
  more = list(zip(*study.grid_of(config, True, quantize), strict=True))
  assert len(set(more)) == len(more)
  added = {
    (rule, sparsity, bits, *names[rounding], inputs)
    for rule, sparsity, bits, rounding, inputs in set(more) - set(before)
  }
  expected = {("mse", 8), ("mse", 4), ("bfloat16", 16), ("uint5", 5)}
  assert set(before) < set(more) or not quantize
  assert added == {
    (0, 0.0, bits, name, "tensor", 32) for name, bits in expected if quantize
  }
  # Without absmax the integers over their whole range are left out.
  config = config.replace(quantizers=("uint5",))
  cells = study.grid_of(config, True, quantize)
  assert set(cells.bits.tolist()) == ({32, 5} if quantize else {32})


def test_absmax_alone_has_the_identity_it_always_had(finished):
  """Directories of earlier versions are not compressed again."""
  session, out = open_session(), str(finished[0])
  sparsity = np.float32(0.8).item()
  kind = {
    "recipe": study.recipe_id(session),
    "rules": [
      ["magnitude", "global", "element"],
      ["random", "global", "element"],
    ],
    "cells": [
      [0, 0, 0, 0, 1, 1],
      [0.0, 0.0, sparsity, sparsity, 0.0, sparsity],
      [32, 4, 32, 4, 32, 32],
      [0, 0, 0, 0, 0, 0],
    ],
    "shares": ["channel"],
    "finetune": {"finetune_share": 0.5, "finetune_learning_rate": 3e-4},
    "controls": [["shuffled", "reinit", "small_dense"], [0.8]],
  }
  members = study.select(session.config, SHAPE, CLASSES)
  ids = set()
  for pack in study.plan(session, members, list(CONFIG.seeds)):
    names = list(map(str, pack.architectures))
    compared = [name for name in names if name in ("dnn:3-3", "cnn:2")]
    id = [kind, names, [3, 4], names, compared]
    ids.add(records.content_id(id))
  assert {id for id, _ in records.parts(out, "compression")} == ids


def test_other_quantizers_add_rows(copy):
  expected = ma.read_records(str(copy))
  # The second differs from the first in nothing but a name.
  for name in ("nf4", "mse"):
    session = open_session()
    config = session.config.replace(quantizers=("absmax", name, "bfloat16"))
    others = {k: v for k, v in session.programs.items() if k[0] != "transform"}
    session = dataclasses.replace(session, config=config, programs=others)
    study.compress(session, str(copy))
  found = ma.read_records(str(copy))
  settings = [("nf4", 4, "channel"), ("mse", 4, "channel")]
  settings += [("bfloat16", 16, "none")]
  other = pl.col("quantizer").is_in([name for name, *_ in settings])
  rest = found._replace(compression=found.compression.filter(~other))
  assert_same_tables(rest, expected)
  rows = found.compression.filter(other)
  columns = ("architecture", "seed", "quantizer", "bits", "quant_granularity")
  assert set(rows.select(columns).iter_rows()) == {
    (a, seed, *setting)
    for a in CONFIG.architectures
    for seed in CONFIG.seeds
    for setting in settings
  }
  assert len(rows) == 8 * len(settings)
  assert set(rows.select("schedule", "sparsity").iter_rows()) == {
    ("oneshot", 0.0)
  }


def test_narrow_activations_add_rows_and_one_program_a_parent(copy):
  expected = ma.read_records(str(copy))
  session = open_session(activation_bits=(32, 8, 3))
  before = set(session.programs)
  study.compress(session, str(copy))
  added = [key[0] for key in set(session.programs) - before]
  parents = {key[1] for key in before if key[0] == "transform"}
  assert added == ["rounded"] * len(parents)
  found = ma.read_records(str(copy))
  narrow = pl.col("activation_bits") < 32
  rest = found._replace(compression=found.compression.filter(~narrow))
  assert_same_tables(rest, expected)
  columns = ("architecture", "seed", "bits", "activation_bits")
  rows = found.compression.filter(narrow)
  assert set(rows.select(columns).iter_rows()) == {
    (a, seed, b, inputs)
    for a in CONFIG.architectures
    for seed in CONFIG.seeds
    for b in CONFIG.bits
    for inputs in (8, 3)
  }
  assert len(rows) == 8 * 2 * 2
  assert set(rows.select("schedule", "sparsity").iter_rows()) == {
    ("oneshot", 0.0)
  }


def test_the_representatives_surround_the_minimal_size(finished):
  out, session = str(finished[0]), open_session(finetune="representatives")
  members = study.select(session.config, SHAPE, CLASSES)
  chosen = study.representatives(out, session, members)
  assert set(chosen) <= set(members) and len(chosen) == len(set(chosen))
  assert {a.family for a in chosen} == {"dnn", "cnn"}
  assert {a.depth for a in chosen if a.family == "dnn"} == {1, 2}
  everything = open_session(finetune="all")
  assert study.representatives(out, everything, members) == members


# --- divergence --------------------------------------------------------------


def test_a_diverged_network_is_a_row_like_any_other(tmp_path):
  session = open_session(
    optimizer="sgd",
    schedule="constant",
    learning_rate=1e6,
    architectures=("dnn:3-3",),
  )
  study.sweep(session, str(tmp_path))
  study.compress(session, str(tmp_path))
  found = ma.read_records(str(tmp_path))
  bad = found.networks.filter("diverged")
  assert len(bad)
  assert bad["diverged_epoch"].is_between(1, 3).all()
  for split in ("train", "val", "test"):
    assert found.networks[f"{split}_accuracy"].null_count() == 0
    assert not found.networks[f"{split}_loss"].is_nan().any()
  lost = bad.filter(pl.col("test_loss").is_null())
  assert (lost["test_accuracy"] == 0).all()
  points = found.curves.join(bad, on=("architecture", "seed"))
  after = points.filter(pl.col("epoch") >= pl.col("diverged_epoch"))
  assert after.filter(pl.col("train_loss").is_null()).height
  before = points.filter(pl.col("epoch") < pl.col("diverged_epoch"))
  assert before["train_loss"].null_count() == 0
  assert found.compression["test_accuracy"].null_count() == 0
  healthy = found.networks.filter(~pl.col("diverged"))
  assert healthy["diverged_epoch"].null_count() == len(healthy)


# --- before anything starts --------------------------------------------------


def test_checks_come_before_anything_heavy():
  config = Config(dataset="digits")
  assert study.check(config).num_classes == 10
  for changes, message in (
    ({"batch_size": 5000}, "--batch_size=5000 is larger than .* digits"),
    ({"architectures": ("vit:p3-d4-l1-h1",)}, "--architectures: .*patch 3"),
    ({"dataset": "mnits"}, "--dataset=mnits .*did you mean 'mnist'"),
  ):
    with pytest.raises(ConfigError, match=message):
      study.check(config.replace(**changes))


def test_the_plan_is_described_without_training(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = study.describe_plan(
    Config(dataset="digits", grid="tiny", num_seeds=3, dry_run=True)
  )
  lines = text.splitlines()
  assert lines[0].split() == (
    ["parent", "members", "seeds", "padding", "GiB", "seconds"]
  )
  assert "8 architectures x 3 seeds on digits" in lines[-1]
  assert sum(int(line.split()[1]) for line in lines[1:-1]) == 8
  assert not list(tmp_path.iterdir())


# --- provenance --------------------------------------------------------------


def test_the_description_says_what_made_the_results(finished):
  out, statistics = finished
  found = records.read_json(os.path.join(out, "study.json"))
  assert found["config"] == json.loads(json.dumps(CONFIG.__dict__))
  assert found["versions"]["jax"] == jax.__version__
  assert len(found["devices"]) == 8
  sizes = {"train": 52, "validation": 13, "test": 11}
  assert found["datasets"]["made-up"].items() >= sizes.items()
  assert found["packs"] == statistics
  stages = {line["stage"] for line in statistics}
  assert stages == {"train", "compress"}


def test_statistics_are_added_to_what_is_there(copy):
  before = records.read_json(str(copy / "study.json"))
  provenance.write(open_session(), str(copy), [{"stage": "train"}])
  after = records.read_json(str(copy / "study.json"))
  assert after["packs"] == [*before["packs"], {"stage": "train"}]
