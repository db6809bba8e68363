"""Compression of a directory: the whole grid, once, of what is trained."""

import collections
import shutil
from unittest import mock

import polars as pl
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.compression import programs, running
from minarch_jax.config import ConfigError
from minarch_jax.engine import packs
from minarch_jax.engine.programs import Table
from minarch_jax.stages import compress, setup
from tests import tiny_study
from tests.tiny_study import CONFIG, MEMBERS


def test_the_grid_is_complete(studied):
  found = ma.read_records(str(studied)).compression
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


def test_dense_in_32_bits_repeats_the_networks(studied):
  found = ma.read_records(str(studied))
  neutral = found.compression.filter(
    (pl.col("sparsity") == 0)
    & (pl.col("bits") == 32)
    & (pl.col("schedule") == "oneshot")
  ).join(found.networks, on=("architecture", "seed"), suffix="_plain")
  assert len(neutral) == 8 * len(CONFIG.criteria)
  for column in ("val_accuracy", "test_accuracy", "macs"):
    assert neutral[column].to_list() == neutral[f"{column}_plain"].to_list()
  assert (neutral["bytes"] == 4 * neutral["params"]).all()


def test_an_interrupted_compression_goes_on_where_it_stopped(copy):
  expected = ma.read_records(str(copy))
  shutil.rmtree(copy / "records" / "compression")
  session, out = tiny_study.open_session(), str(copy)
  interrupting = tiny_study.interrupting(running.compress, 1)
  with (
    mock.patch.object(running, "compress", interrupting),
    pytest.raises(tiny_study.Interrupted),
  ):
    compress.compress(session, out)
  assert 0 < len(ma.read_records(out).compression) < len(expected.compression)
  compress.compress(tiny_study.open_session(), out)
  tiny_study.assert_same_tables(ma.read_records(out), expected)


def test_compressing_needs_trained_networks(tmp_path):
  session = tiny_study.open_session(finetune_share=0.0)
  with pytest.raises(ConfigError, match="with seed 3 is not trained"):
    compress.compress(session, str(tmp_path))


# --- identity ----------------------------------------------------------------


def test_a_part_is_named_by_all_that_its_rows_depend_on(studied):
  """Golden: changes only together with records.SCHEMA_VERSION."""
  session, out = tiny_study.open_session(), str(studied)
  magnitude, random = (
    [criterion, "global", "element"] for criterion in CONFIG.criteria
  )
  rounding = ["int", "channel", None, "nearest"]
  plain, narrow = ([bits, rounding, 32] for bits in (32, 4))
  kind = {
    "recipe": setup.recipe_id(session),
    "cells": [
      [magnitude, 0.0, plain],
      [magnitude, 0.0, narrow],
      [magnitude, 0.8, plain],
      [magnitude, 0.8, narrow],
      [random, 0.0, plain],
      [random, 0.8, plain],
    ],
    "precisions": [plain, narrow],
    "schedules": ["finetune"],
    "finetune": {
      "finetune_share": 0.5,
      "finetune_learning_rate": 3e-4,
      "retraining_rounds": 5,
    },
    "controls": [["shuffled", "reinit", "small_dense"], [0.8]],
  }
  ids = set()
  for pack in packs.plan(session, MEMBERS, list(CONFIG.seeds)):
    names = list(map(str, pack.architectures))
    compared = [name for name in names if name in ("dnn:3-3", "cnn:2")]
    ids.add(records.content_id([kind, names, [3, 4], names, compared]))
  assert {id for id, _ in records.parts(out, "compression")} == ids


def kind_of(out, **changes):
  session = tiny_study.open_session(**changes)
  design = compress._design(session, out, MEMBERS, True, True)
  return records.content_id(compress._kind(session, design))


@pytest.mark.parametrize(
  "changes",
  [
    {"learning_rate": 0.02},
    {"criteria": ("random", "magnitude")},
    {"scopes": ("layerwise",)},
    {"granularities": ("unit",)},
    {"sparsities": (0.0, 0.5)},
    {"bits": (32, 8)},
    {"activation_bits": (32, 8)},
    {"quantizers": ("mse",)},
    {"quant_granularities": ("tensor",)},
    {"finetune_share": 0.25},
    {"finetune_learning_rate": 0.01},
    {"controls": ("shuffled",)},
    {"control_sparsities": (0.0,)},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_what_changes_rows_changes_their_name(studied, changes):
  assert kind_of(str(studied), **changes) != kind_of(str(studied))


@pytest.mark.parametrize(
  "changes",
  [{"packs_at_once": 2}, {"seed_mapping": "vmap"}, {"eps_accuracy": 0.5}],
  ids=lambda changes: next(iter(changes)),
)
def test_machine_and_thresholds_do_not(studied, changes):
  assert kind_of(str(studied), **changes) == kind_of(str(studied))


# --- more of the grid --------------------------------------------------------


def test_other_quantizers_add_rows(copy):
  expected = ma.read_records(str(copy))
  # The second differs from the first in nothing but a name.
  for name in ("nf4", "mse"):
    session = tiny_study.open_session(quantizers=("absmax", name, "bfloat16"))
    compress.compress(session, str(copy))
  found = ma.read_records(str(copy))
  settings = [("nf4", 4, "channel"), ("mse", 4, "channel")]
  settings += [("bfloat16", 16, "none")]
  other = pl.col("quantizer").is_in([name for name, *_ in settings])
  rest = found._replace(
    compression=found.compression.filter(~other), hits=found.hits.filter(~other)
  )
  tiny_study.assert_same_tables(rest, expected)
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
  session = tiny_study.open_session(activation_bits=(32, 8, 3))
  made = collections.Counter()
  find = Table.find

  def counted(self, program, *arguments):
    before = len(self)
    found = find(self, program, *arguments)
    made[id(program)] += len(self) - before
    return found

  with mock.patch.object(Table, "find", counted):
    compress.compress(session, str(copy))
  parents = {pack.parent for pack in packs.plan(session, MEMBERS, [3, 4])}
  made = {program: count for program, count in made.items() if count}
  assert made == {id(programs.ROUNDED): len(parents)}
  found = ma.read_records(str(copy))
  narrow = pl.col("activation_bits") < 32
  rest = found._replace(
    compression=found.compression.filter(~narrow),
    hits=found.hits.filter(~narrow),
  )
  tiny_study.assert_same_tables(rest, expected)
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
