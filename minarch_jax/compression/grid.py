"""What is compressed: rules, precisions, the cells of the grid, retrainings.

Values, not numbers: a cell says by itself what it is.
"""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

from minarch_jax import quantization, registries
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.quantization import Rounding


class Rule(NamedTuple):
  """Which weights go: names of the pruning registries."""

  criterion: str
  scope: str
  granularity: str = "element"


class Precision(NamedTuple):
  """How what is left is rounded.

  Attributes:
    bits: of a weight; 32 = as trained.
    rounding: format, granularity and calibration.
    activation_bits: of a layer's input; 32 = as computed.
  """

  bits: int = 32
  rounding: Rounding = Rounding()
  activation_bits: int = 32


class Cell(NamedTuple):
  """One setting of the one-shot grid."""

  rule: Rule
  sparsity: float
  precision: Precision = Precision()


class Retraining(NamedTuple):
  """One network pruned and trained on.

  Attributes:
    architecture, rule, sparsity: what is pruned, how and how far.
    schedule: a name of `registries.RETRAINING`.
    control: what is done to the found mask or the weights under it, a key of
      `CONTROLS`; None where the pruned network itself trains on.
  """

  architecture: Architecture
  rule: Rule
  sparsity: float
  schedule: str = "finetune"
  control: str | None = None

  @property
  def kind(self) -> tuple[Rule, str, str | None]:
    """What retrainings share that may take the slots of one pack."""
    return self.rule, self.schedule, self.control


# Whether a control trains from new weights, and so for all the steps that the
# pruned network had.
CONTROLS = {"shuffled": False, "reinit": True}


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
      _rounding(name, granularities[0])
      for name in config.quantizers
      if name != "absmax"
    ),
  )


def _rounding(quantizer: str, granularity: str) -> Rounding:
  if quantizer in registries.METHODS:
    return Rounding("int", granularity, method=quantizer)
  if quantizer in registries.CALIBRATIONS:
    return Rounding("int", granularity, quantizer)
  return Rounding(quantizer, granularity)


def _narrow(
  config: Config, rounding: Rounding, bits: tuple[int, ...]
) -> list[Precision]:
  """Lists the precisions below 32 bits at which a rounding is compared."""
  if rounding.quantizer not in config.quantizers:
    return []
  widths = tuple(dict.fromkeys(bits))
  if rounding.format != "int":
    widths = (quantization.format_of(rounding).bits,)
  return [Precision(bits, rounding) for bits in widths if bits != 32]


def precisions_of(config: Config) -> list[Precision]:
  """Lists what is crossed with sparsities and scored after retraining: 32
  bits, the control, then the first rounding's."""
  main = roundings_of(config)[0]
  return [Precision(32, main), *_narrow(config, main, config.bits)]


def cells_of(config: Config, prune: bool, quantize: bool) -> list[Cell]:
  """Lists the cells of the one-shot grid.

  Precisions are crossed with the sparsities of the first rule; the other rules
  are compared at 32 bits, and further precisions, other roundings and bits of
  activations on dense networks.
  """
  (main, *others), dense = rules_of(config), precisions_of(config)[:1]
  sparsities = sorted({0.0, *config.sparsities}) if prune else [0.0]
  precisions = precisions_of(config) if quantize else dense
  cells = [Cell(main, s, p) for s in sparsities for p in precisions]
  if quantize:
    bits = config.bits + config.dense_bits
    for rounding in roundings_of(config):
      cells += [
        Cell(main, 0.0, precision)
        for precision in _narrow(config, rounding, bits)
        if precision not in precisions
      ]
    narrow = [bits for bits in config.activation_bits if bits != 32]
    cells += [
      Cell(main, 0.0, precision._replace(activation_bits=bits))
      for precision, bits in itertools.product(precisions, narrow)
    ]
  if prune:
    cells += [Cell(rule, s, *dense) for rule in others for s in sparsities]
  return cells


def retrainings_of(
  config: Config, chosen: Sequence[Architecture]
) -> list[Retraining]:
  """Lists what is retrained.

  Every criterion in the first scope by the first schedule, and the main rule by
  the others; sparsity 0 is the control of equal steps.
  """
  main, *rules = [r for r in rules_of(config) if r.scope == config.scopes[0]]
  first, *schedules = config.schedules
  ways = [(main, first), *((rule, first) for rule in rules)]
  ways += [(main, schedule) for schedule in schedules]
  return [
    Retraining(architecture, rule, sparsity, schedule)
    for rule, schedule in ways
    for architecture in chosen
    for sparsity in sorted({0.0, *config.sparsities})
  ]


def controls_of(
  config: Config, compared: Sequence[Architecture]
) -> list[Retraining]:
  """Lists the controls that keep the mask or the weights of the first rule."""
  main = rules_of(config)[0]
  return [
    Retraining(architecture, main, sparsity, control=control)
    for control in config.controls
    if control in CONTROLS
    for architecture in compared
    for sparsity in config.compared_sparsities
  ]
