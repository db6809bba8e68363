"""Rows: each says what its network and its cell were, and what it weighs."""

import itertools

from flax import traverse_util
import jax
import numpy as np
import polars as pl
import polars.testing
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.compression import grid as grids
from minarch_jax.compression.grid import Cell, Precision, Rule
from minarch_jax.compression.programs import Outcome
from minarch_jax.config import Config
from minarch_jax.engine import session as sessions
from minarch_jax.quantization import FORMATS, Rounding, storage
from minarch_jax.registries import QUANTIZERS
from minarch_jax.stages import rows as make_rows
from minarch_jax.types import Batch, Dataset
from tests.tiny_study import CONFIG as STUDY

SHAPE, CLASSES = (4, 4, 1), 3
SEEDS, SPARSITIES = (4, 0), (0.0, 0.3, 0.8)
CONFIG = Config(batch_size=8)
MAGNITUDE, RANDOM = Rule("magnitude", "global"), Rule("random", "global")
CHANNEL, TENSOR = Rounding("int", "channel"), Rounding("int", "tensor")
OTHERS = [
  Rounding(name, "channel")
  if name in FORMATS
  else Rounding("int", "channel", name)
  for name in QUANTIZERS
  if name != "absmax"
]
CELLS = [
  *(
    Cell(MAGNITUDE, 0.0, Precision(bits, CHANNEL, inputs))
    for bits in (32, 4)
    for inputs in (8, 2)
  ),
  *(
    Cell(rule, s, precision)
    for rule, s in itertools.product((MAGNITUDE, RANDOM), SPARSITIES)
    for precision in (
      *(Precision(bits, CHANNEL) for bits in (32, 8, 4)),
      Precision(4, TENSOR),
    )
  ),
  *(
    Cell(
      *(MAGNITUDE, 0.0),
      Precision(
        8 if rounding.format == "int" else FORMATS[rounding.format].bits,
        rounding,
      ),
    )
    for rounding in OTHERS
  ),
]


def made_up():
  y = np.zeros(16, np.int32)
  split = Batch(np.ones((16, *SHAPE), np.float32), y)
  return Dataset("made-up", split, split, split, CLASSES, "")


def is_pruned(leaf):
  return leaf.path[-1] in ("kernel", "embedding")


def outcome_of(spec):
  """As many zeros as the sparsity says, and some more where rounded."""
  sizes = np.array([np.prod(spec.shape(leaf)) for leaf in spec.leaves])
  removed = np.array([is_pruned(leaf) for leaf in spec.leaves])
  sparsity = np.array([cell.sparsity for cell in CELLS], np.float32)[:, None]
  bits = np.array([cell.precision.bits for cell in CELLS])[:, None]
  kept = np.round(sizes * (1 - sparsity * removed))
  # Rounding makes a zero in every layer of the first seed.
  lost = removed * (bits < 32)
  nonzeros = np.stack([kept - lost, kept]).astype(np.int32)
  hits = np.arange(nonzeros[..., 0].size).reshape(nonzeros.shape[:2]) % 17
  bits = np.zeros((*hits.shape, 2), np.uint8)
  return Outcome(hits, 16 - hits, bits, nonzeros)


@pytest.mark.parametrize("text", ["dnn:5-6", "cnn:3-2", "vit:p2-d4-l1-h2"])
def test_rows_say_what_the_cells_were_and_hold(text):
  session, a = (
    sessions.open_session(CONFIG, made_up()),
    Architecture.parse(text),
  )
  spec = a.spec(Problem(SHAPE, CLASSES))
  outcome = outcome_of(spec)
  scored = make_rows.Scored(a, SEEDS, CELLS, outcome, steps=36)
  frame = make_rows.compressed(session, "run", scored)
  tables = (records.SCHEMAS[name].keys() for name in ("compression", "hits"))
  assert set(frame.columns) == set().union(*tables)
  assert len(frame) == len(SEEDS) * len(CELLS)
  shapes = traverse_util.unflatten_dict(
    {
      leaf.path: jax.ShapeDtypeStruct(spec.shape(leaf), np.float32)
      for leaf in spec.leaves
    }
  )
  prunable = sum(np.prod(spec.shape(x)) for x in spec.leaves if is_pruned(x))
  for k, row in enumerate(frame.iter_rows(named=True)):
    j, i = divmod(k, len(CELLS))
    cell, precision = CELLS[i], CELLS[i].precision
    assert (row["seed"], row["architecture"]) == (SEEDS[j], text)
    names = (row["criterion"], row["scope"], row["granularity"])
    assert names == cell.rule
    assert row["sparsity"] == pytest.approx(cell.sparsity)
    plain = row["bits"] == 32
    assert row["bits"] == precision.bits
    assert row["activation_bits"] == precision.activation_bits
    name = precision.rounding.quantizer
    granularity = precision.rounding.granularity
    assert row["quantizer"] == ("none" if plain else name)
    scaled = not plain and name not in ("bfloat16", "float16")
    assert row["quant_granularity"] == (granularity if scaled else "none")
    assert row["val_accuracy"] == outcome.validation[j, i] / 16
    assert row["test_accuracy"] == outcome.test[j, i] / 16
    counts = {
      "/".join(leaf.path): n
      for leaf, n in zip(spec.leaves, outcome.nonzeros[j, i], strict=True)
    }
    assert row["nonzeros"] == sum(counts.values())
    assert row["bytes"] == storage.storage_bytes(
      shapes,
      name if name in FORMATS else row["bits"],
      granularity,
      nonzeros=counts,
    )
    # Zeros that rounding makes are not pruning.
    assert abs(row["achieved_sparsity"] - row["sparsity"]) < 9 / prunable
    if row["sparsity"] == 0 and plain:
      assert row["achieved_sparsity"] == 0
      assert row["macs"] == a.macs(SHAPE, CLASSES)
      assert row["bytes"] == 4 * spec.num_params == 4 * row["params"]


# What of a row says which cell it is.
SETTING = (
  *("criterion", "scope", "granularity", "schedule", "control", "sparsity"),
  *("bits", "activation_bits", "quantizer", "quant_granularity"),
)


def test_rows_are_made_from_cells_alone():
  """Other configurations that name a cell give it the same columns."""
  a = Architecture.parse("dnn:5-6")
  outcome = outcome_of(a.spec(Problem(SHAPE, CLASSES)))
  scored = make_rows.Scored(a, SEEDS, CELLS, outcome, steps=36)
  first, second = (
    make_rows.compressed(
      sessions.open_session(config, made_up()), "run", scored
    )
    for config in (
      CONFIG,
      # Neither its rules nor its roundings hold any of these cells.
      CONFIG.replace(
        criteria=("snip",),
        scopes=("erk",),
        bits=(32, 2),
        quantizers=("nf4",),
        quant_granularities=("tensor",),
      ),
    )
  )
  pl.testing.assert_frame_equal(first, second)


def test_two_configurations_give_a_cell_the_same_columns():
  few = CONFIG.replace(
    criteria=("magnitude",),
    scopes=("global",),
    sparsities=(0.3,),
    bits=(32, 4),
    quant_granularities=("channel",),
  )
  many = few.replace(
    criteria=("snip", "magnitude"),
    scopes=("layerwise", "global"),
    sparsities=(0.8, 0.3),
    quantizers=("mse", "absmax"),
  )
  (cells, more) = (grids.cells_of(c, True, True) for c in (few, many))
  columns = make_rows._settings(cells), make_rows._settings(more)
  shared = [cell for cell in cells if cell in more]
  assert len(shared) >= 2
  for cell in shared:
    here, there = cells.index(cell), more.index(cell)
    for name, values in columns[0].items():
      assert values[here] == columns[1][name][there], name


def test_cells_that_differ_have_rows_that_differ():
  config = CONFIG.replace(
    criteria=("magnitude", "random"),
    granularities=("element", "unit"),
    activation_bits=(32, 8),
    quantizers=tuple(QUANTIZERS),
  )
  cells = grids.cells_of(config, True, True)
  columns = make_rows._settings(cells)
  assert set(columns) < set(SETTING)
  rows = list(
    zip(*(column.tolist() for column in columns.values()), strict=True)
  )
  assert len(set(rows)) == len(cells)


# --- training ----------------------------------------------------------------


def test_every_network_has_its_rows(studied):
  found = ma.read_records(str(studied))
  networks, curves = found.networks, found.curves
  keys = set(networks.select("architecture", "seed").iter_rows())
  assert keys == {(a, s) for a in STUDY.architectures for s in (3, 4)}
  assert len(networks) == 8 and len(curves) == 8 * 3
  for (architecture,), rows in networks.group_by("architecture"):
    a = Architecture.parse(architecture)
    for row in rows.iter_rows(named=True):
      assert row["params"] == a.num_params(SHAPE, CLASSES)
      assert row["macs"] == a.macs(SHAPE, CLASSES)
      assert (row["family"], row["depth"]) == (a.family, a.depth)
      assert (row["epochs"], row["steps"]) == (3, 18)
      assert (row["num_validation"], row["num_test"]) == (13, 11)
      assert row["num_classes"] == CLASSES and row["fingerprint"] == "bytes"
      assert row["seconds"] > 0 and not row["diverged"]
  assert networks["run_id"].n_unique() == 1
  for _, rows in curves.group_by("architecture", "seed"):
    assert rows["epoch"].to_list() == [1, 2, 3]
    assert rows["step"].to_list() == [6, 12, 18]


def test_the_last_point_of_a_curve_is_the_final_score(studied):
  found = ma.read_records(str(studied))
  last = found.curves.filter(pl.col("epoch") == 3).join(
    found.networks, on=("architecture", "seed"), suffix="_final"
  )
  assert last["val_accuracy"].to_list() == last["val_accuracy_final"].to_list()
  np.testing.assert_allclose(
    last["val_loss"], last["val_loss_final"], rtol=1e-5
  )
