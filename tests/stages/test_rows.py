"""Tables of compression: each row says what its cell was and what it weighs."""

from flax import traverse_util
import jax
import numpy as np
import pytest

from minarch_jax import records
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.compression import grid as grids
from minarch_jax.compression.programs import Outcome
from minarch_jax.config import Config, QUANTIZERS
from minarch_jax.engine import session as sessions
from minarch_jax.quantization import FORMATS, storage
from minarch_jax.stages import rows as make_rows
from minarch_jax.types import Batch, Dataset

SHAPE, CLASSES = (4, 4, 1), 3
SEEDS, SPARSITIES = (4, 0), (0.0, 0.3, 0.8)
CONFIG = Config(
  batch_size=8,
  criteria=("magnitude", "random"),
  scopes=("global",),
  quant_granularities=("channel", "tensor"),
  quantizers=QUANTIZERS,
)
RULES = grids.rules_of(CONFIG)
# In the order of the flags: integers of each granularity, then the others.
ROUNDINGS = [("absmax", "channel"), ("absmax", "tensor")]
ROUNDINGS += [(name, "channel") for name in QUANTIZERS[1:]]
CELLS = grids.join(
  grids.make_cells([(0, 0.0)], [(32, 0), (4, 0)], [8, 2]),
  grids.make_cells(
    [(rule, s) for rule in range(len(RULES)) for s in SPARSITIES],
    [(32, 0), (8, 0), (4, 0), (4, 1)],
  ),
  grids.make_cells(
    [(0, 0.0)],
    [
      (FORMATS[name].bits if name in FORMATS else 8, i)
      for i, (name, _) in enumerate(ROUNDINGS)
      if name != "absmax"
    ],
  ),
)


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
  kept = np.round(sizes * (1 - CELLS.sparsity[:, None] * removed))
  # Rounding makes a zero in every layer of the first seed.
  lost = removed * (CELLS.bits[:, None] < 32)
  nonzeros = np.stack([kept - lost, kept]).astype(np.int32)
  hits = np.arange(nonzeros[..., 0].size).reshape(nonzeros.shape[:2]) % 17
  return Outcome(hits, 16 - hits, nonzeros)


@pytest.mark.parametrize("text", ["dnn:5-6", "cnn:3-2", "vit:p2-d4-l1-h2"])
def test_rows_say_what_the_cells_were_and_hold(text):
  session, a = (
    sessions.open_session(CONFIG, made_up()),
    Architecture.parse(text),
  )
  spec = a.spec(Problem(SHAPE, CLASSES))
  outcome = outcome_of(spec)
  frame = make_rows.compressed(
    *(session, "run", a, SEEDS, RULES, CELLS, outcome),
    schedule="oneshot",
    steps=36,
  )
  assert set(frame.columns) == records.SCHEMAS["compression"].keys()
  assert len(frame) == len(SEEDS) * len(CELLS.rule)
  shapes = traverse_util.unflatten_dict(
    {
      leaf.path: jax.ShapeDtypeStruct(spec.shape(leaf), np.float32)
      for leaf in spec.leaves
    }
  )
  prunable = sum(np.prod(spec.shape(x)) for x in spec.leaves if is_pruned(x))
  for k, row in enumerate(frame.iter_rows(named=True)):
    j, cell = divmod(k, len(CELLS.rule))
    assert (row["seed"], row["architecture"]) == (SEEDS[j], text)
    names = (row["criterion"], row["scope"], row["granularity"])
    assert names == tuple(RULES[CELLS.rule[cell]])
    assert row["sparsity"] == pytest.approx(CELLS.sparsity[cell])
    plain = row["bits"] == 32
    assert row["bits"] == CELLS.bits[cell]
    assert row["activation_bits"] == CELLS.activation_bits[cell]
    name, granularity = ROUNDINGS[CELLS.rounding[cell]]
    assert row["quantizer"] == ("none" if plain else name)
    scaled = not plain and name not in ("bfloat16", "float16")
    assert row["quant_granularity"] == (granularity if scaled else "none")
    assert row["val_accuracy"] == outcome.validation[j, cell] / 16
    assert row["test_accuracy"] == outcome.test[j, cell] / 16
    counts = {
      "/".join(leaf.path): n
      for leaf, n in zip(spec.leaves, outcome.nonzeros[j, cell], strict=True)
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
