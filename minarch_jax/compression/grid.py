"""What is compressed: rules, roundings, cells of the grid, retrainings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minarch_jax import quantization, records
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.engine.planning import Pack
from minarch_jax.quantization import Rounding


class Rule(NamedTuple):
  """Which weights go: names of the pruning registries."""

  criterion: str
  scope: str
  granularity: str = "element"


def rules_of(config: Config) -> tuple[Rule, ...]:
  """Lists the pruning rules of a configuration; the first is the main one.

  The random control has no opinion on layers: it is run in one scope.
  """
  return tuple(
    Rule(criterion, scope, granularity)
    for granularity in config.granularities
    for criterion in config.criteria
    for scope in config.scopes[: 1 if criterion == "random" else None]
  )


def roundings_of(config: Config) -> tuple[Rounding, ...]:
  """Lists the roundings of a configuration; the first gives 32 bits too.

  Integers over their whole range are compared at every granularity, the other
  quantizers at the first.
  """
  granularities = config.quant_granularities
  return (
    *(Rounding("int", granularity) for granularity in granularities),
    *(
      Rounding("int", granularities[0], name)
      if name in quantization.CALIBRATIONS
      else Rounding(name, granularities[0])
      for name in config.quantizers
      if name != "absmax"
    ),
  )


class Variant(NamedTuple):
  """One retraining: which member of the pack, pruned by which rule.

  `control` names what is done to the found mask or the weights under it, a key
  of `CONTROLS`; the others are pruned in earnest.
  """

  member: int
  rule: int
  sparsity: float
  control: str = records.NONE


# Whether a control trains from new weights, and so for all the steps that the
# pruned network had.
CONTROLS = {"shuffled": False, "reinit": True}


class Cells(NamedTuple):
  """A grid's cells as columns of one length.

  Attributes:
    rule: int, index into the rules.
    sparsity: float, fraction removed.
    bits: int, 32 = as trained.
    rounding: int, index into the roundings.
    activation_bits: int, 32 = as computed.
  """

  rule: np.ndarray
  sparsity: np.ndarray
  bits: np.ndarray
  rounding: np.ndarray
  activation_bits: np.ndarray


def make_cells(
  pairs: Sequence[tuple[int, float]],
  settings: Sequence[tuple[int, int]],
  activation_bits: Sequence[int] = (32,),
) -> Cells:
  """Crosses (rule, sparsity) with (bits, rounding) and activation bits."""
  rows = [
    (*pair, *setting, width)
    for pair in pairs
    for setting in settings
    for width in activation_bits
  ]
  rule, sparsity, bits, rounding, widths = zip(*rows, strict=True)
  return Cells(
    np.array(rule, np.int32),
    np.array(sparsity, np.float32),
    np.array(bits, np.int32),
    np.array(rounding, np.int32),
    np.array(widths, np.int32),
  )


def join(*parts: Cells) -> Cells:
  """Puts grids one after the other."""
  return Cells(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def settings_of(config: Config, index: int = 0) -> list[tuple[int, int]]:
  """Lists (bits, rounding) pairs of one of the roundings.

  32 bits, the control, is one of the first's, whatever the quantizers.
  """
  rounding = roundings_of(config)[index]
  widths = config.bits
  if rounding.format != "int":
    widths = (quantization.format_of(rounding).bits,)
  asked = rounding.quantizer in config.quantizers
  narrow = [(b, index) for b in widths if asked and b != 32]
  return narrow if index else [(32, 0), *narrow]


def grid_of(config: Config, prune: bool, quantize: bool) -> Cells:
  """Lists the cells of the one-shot grid.

  Bits are crossed with the sparsities of the first rule; the other rules are
  compared at 32 bits, and other roundings and bits of activations on dense
  networks.
  """
  sparsities = sorted({0.0, *config.sparsities}) if prune else [0.0]
  settings = settings_of(config) if quantize else [(32, 0)]
  parts = [make_cells([(0, s) for s in sparsities], settings)]
  others = [
    setting
    for rounding in range(1, len(roundings_of(config)))
    for setting in settings_of(config, rounding)
  ]
  if quantize and others:
    parts.append(make_cells([(0, 0.0)], others))
  narrow = [b for b in config.activation_bits if b != 32]
  if quantize and narrow:
    parts.append(make_cells([(0, 0.0)], settings, narrow))
  pairs = [
    (rule, sparsity)
    for rule in range(1, len(rules_of(config)))
    for sparsity in sparsities
  ]
  if prune and pairs:
    parts.append(make_cells(pairs, [(32, 0)]))
  return join(*parts)


def variants(
  pack: Pack, chosen: Sequence[Architecture], config: Config
) -> list[Variant]:
  """Lists what is retrained of a pack: every criterion in the first scope."""
  rules = rules_of(config)
  return [
    Variant(pack.architectures.index(architecture), rule, sparsity)
    for rule, each in enumerate(rules)
    if each.scope == config.scopes[0]
    for architecture in chosen
    for sparsity in sorted({0.0, *config.sparsities})
  ]


def control_variants(
  pack: Pack, compared: Sequence[Architecture], config: Config
) -> list[Variant]:
  """Lists the controls that keep the mask or the weights of the first rule."""
  return [
    Variant(pack.architectures.index(a), 0, sparsity, control)
    for control in config.controls
    if control in CONTROLS
    for a in compared
    for sparsity in config.compared_sparsities
  ]
