"""The grid: values that say what they are, and none of them twice."""

import itertools

import pytest

from minarch_jax.architectures import Architecture
from minarch_jax.compression import grid as grids
from minarch_jax.compression.grid import Cell, Precision, Retraining, Rule
from minarch_jax.config import Config
from minarch_jax.quantization import Rounding
from minarch_jax.registries import QUANTIZERS

CONFIG = Config(
  criteria=("magnitude", "random"),
  scopes=("global", "layerwise"),
  sparsities=(0.8,),
  bits=(32, 4),
  dense_bits=(),
  quant_granularities=("channel",),
)
MAIN = Rule("magnitude", "global")
CHANNEL = Rounding("int", "channel")
STAGES = [(True, True), (True, False), (False, True)]  # prune, quantize


def test_rules_are_every_combination_the_main_one_first():
  config = Config().replace(
    criteria=("magnitude", "snip", "random"),
    scopes=("erk", "global"),
    granularities=("element", "unit"),
  )
  rules = grids.rules_of(config)
  assert len(rules) == len(set(rules)) == 8 + 2
  assert rules[0] == Rule("magnitude", "erk", "element")
  # The random control has no opinion on layers.
  assert {rule.scope for rule in rules if rule.criterion == "random"} == {"erk"}


@pytest.mark.parametrize("prune, quantize", STAGES)
def test_the_grid_of_a_stage(prune, quantize):
  cells = grids.cells_of(CONFIG, prune, quantize)
  assert len(cells) == len(set(cells))
  # The dense network in 32 bits is always there to compare with.
  assert Cell(MAIN, 0.0, Precision(32, CHANNEL)) in cells
  expected = {0.0, 0.8} if prune else {0.0}
  assert {cell.sparsity for cell in cells} == expected
  bits = {cell.precision.bits for cell in cells}
  assert bits == ({32, 4} if quantize else {32})
  rules = grids.rules_of(CONFIG) if prune else (MAIN,)
  assert {cell.rule for cell in cells} == set(rules)
  assert all(c.precision.bits == 32 for c in cells if c.rule != MAIN)
  # Narrow activations add dense cells at every bits, and the default none.
  assert {cell.precision.activation_bits for cell in cells} == {32}
  config = CONFIG.replace(activation_bits=(8, 3))
  more = grids.cells_of(config, prune, quantize)
  added = {
    Cell(MAIN, 0.0, Precision(b, CHANNEL, a))
    for b in (32, 4)
    for a in (8, 3)
    if quantize
  }
  assert set(more) == {*cells, *added}


@pytest.mark.parametrize("quantize", [True, False])
def test_fewer_bits_are_tried_on_dense_networks(quantize):
  config = CONFIG.replace(quant_granularities=("channel", "tensor"))
  before = grids.cells_of(config, True, quantize)
  config = config.replace(dense_bits=(4, 3, 2))
  more = grids.cells_of(config, True, quantize)
  assert len(set(more)) == len(more) and set(before) <= set(more)
  assert set(more) - set(before) == {
    Cell(MAIN, 0.0, Precision(bits, Rounding("int", granularity)))
    for granularity in config.quant_granularities
    for bits in (3, 2)
    if quantize
  }


@pytest.mark.parametrize("quantize", [True, False])
def test_other_quantizers_add_dense_cells(quantize):
  config = CONFIG.replace(
    scopes=("global",),
    sparsities=(0.0, 0.8),
    bits=(32, 8, 4),
    quant_granularities=("tensor", "channel"),
  )
  before = grids.cells_of(config, True, quantize)
  config = config.replace(quantizers=("mse", "bfloat16", "absmax", "uint5"))
  more = grids.cells_of(config, True, quantize)
  assert len(set(more)) == len(more)
  expected = {("mse", 8), ("mse", 4), ("bfloat16", 16), ("uint5", 5)}
  assert set(before) < set(more) or not quantize
  assert {
    (
      *(cell.rule, cell.sparsity, cell.precision.bits),
      *(cell.precision.rounding.quantizer, cell.precision.rounding.granularity),
      cell.precision.activation_bits,
    )
    for cell in set(more) - set(before)
  } == {
    (MAIN, 0.0, bits, name, "tensor", 32) for name, bits in expected if quantize
  }
  # Without absmax the integers over their whole range are left out.
  config = config.replace(quantizers=("uint5",))
  cells = grids.cells_of(config, True, quantize)
  bits = {cell.precision.bits for cell in cells}
  assert bits == ({32, 5} if quantize else {32})


WIDE = {
  "criteria": ("magnitude", "random", "snip"),
  "scopes": ("global", "layerwise", "erk"),
  "granularities": ("element", "unit"),
  "sparsities": (0.0, 0.5, 0.9),
  "bits": (32, 8, 4, 2),
  "activation_bits": (32, 8, 3),
  "quantizers": tuple(QUANTIZERS),
  "quant_granularities": ("tensor", "channel"),
}


@pytest.mark.parametrize("prune, quantize", STAGES)
@pytest.mark.parametrize(
  "changes",
  [
    {},
    WIDE,
    {"bits": (32,), "activation_bits": (8,)},
  ],
  ids=["default", "wide", "narrow"],
)
def test_no_cell_is_there_twice(prune, quantize, changes):
  config = Config().replace(**changes)
  cells = grids.cells_of(config, prune, quantize)
  assert len(cells) == len(set(cells))
  # Each is compared with the same network in 32 bits.
  plain = {(c.rule, c.sparsity) for c in cells if c.precision.bits == 32}
  assert plain == {(cell.rule, cell.sparsity) for cell in cells}


def test_a_cell_says_what_it_is_without_a_configuration():
  """The same cell of other configurations is the same value."""
  few = CONFIG.replace(criteria=("random",), quantizers=("mse",))
  many = CONFIG.replace(
    criteria=("snip", "magnitude", "random"),
    quantizers=("absmax", "nf4", "mse"),
    quant_granularities=("channel", "tensor"),
  )
  here, there = (set(grids.cells_of(c, True, True)) for c in (few, many))
  random = Rule("random", "global")
  assert here & there == {
    Cell(random, s, Precision(32, CHANNEL)) for s in (0, 0.8)
  }
  (mse,) = {c.precision for c in here if c.precision.bits == 4}
  assert mse == Precision(4, Rounding("int", "channel", "mse"))
  assert mse in {cell.precision for cell in there}
  for value in itertools.chain(here, there):
    assert isinstance(value.rule, Rule)
    assert isinstance(value.precision, Precision)
    assert isinstance(value.precision.rounding, Rounding)


# --- retraining --------------------------------------------------------------

DNN, CNN = map(Architecture.parse, ("dnn:3", "cnn:2"))


def test_every_criterion_is_retrained_in_the_first_scope():
  found = grids.retrainings_of(CONFIG, [DNN, CNN])
  assert found == [
    Retraining(architecture, Rule(criterion, "global"), sparsity)
    for criterion in ("magnitude", "random")
    for architecture in (DNN, CNN)
    for sparsity in (0.0, 0.8)
  ]
  assert grids.retrainings_of(CONFIG, []) == []


def test_other_schedules_retrain_by_the_main_rule():
  config = CONFIG.replace(schedules=("finetune", "iterative", "rigl"))
  plain, found = (grids.retrainings_of(c, [DNN]) for c in (CONFIG, config))
  assert [r for r in found if r.schedule == "finetune"] == plain
  assert [r for r in found if r.schedule != "finetune"] == [
    Retraining(DNN, MAIN, sparsity, schedule)
    for schedule in ("iterative", "rigl")
    for sparsity in (0.0, 0.8)
  ]


def test_controls_keep_the_mask_or_the_weights_of_the_main_rule():
  config = CONFIG.replace(
    sparsities=(0.5, 0.8, 0.9), control_sparsities=(0.5, 0.9)
  )
  found = grids.controls_of(config, [CNN])
  assert found == [
    Retraining(CNN, MAIN, sparsity, control=control)
    for control in ("shuffled", "reinit")  # a small dense network has no mask
    for sparsity in (0.5, 0.9)
  ]
  assert {r.control for r in found} == grids.CONTROLS.keys()
  assert not grids.controls_of(config.replace(controls=()), [CNN])
