"""What can be named by a flag: one line here adds one.

A registry maps names to entries. An entry may be written as "module:name" and
is then imported when first asked for, so listing names (--help, checks of
flags) starts neither JAX nor anything else heavy.
"""

from collections.abc import Iterator, MutableMapping
import importlib
from typing import Any


def resolve(entry: Any) -> Any:
  """Returns what "module:name" stands for; anything else as it is."""
  if not isinstance(entry, str):
    return entry
  module, _, name = entry.partition(":")
  return getattr(importlib.import_module(module), name)


class Registry(MutableMapping[str, Any]):
  """Names and what they stand for, in the order in which they are listed."""

  def __init__(self, **entries: Any):
    self._entries = entries

  def __getitem__(self, name: str) -> Any:
    entry = self._entries[name] = resolve(self._entries[name])
    return entry

  def __setitem__(self, name: str, entry: Any) -> None:
    self._entries[name] = entry

  def __delitem__(self, name: str) -> None:
    del self._entries[name]

  def __contains__(self, name: object) -> bool:
    return name in self._entries  # without importing the entry

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)


# Each is a `Family` (architectures.families).
FAMILIES = Registry(
  dnn="minarch_jax.architectures.dnn:FAMILY",
  cnn="minarch_jax.architectures.cnn:FAMILY",
  vit="minarch_jax.architectures.vit:FAMILY",
)


def grids() -> list[str]:
  """Lists the named grids of all families."""
  return list(dict.fromkeys(g for f in FAMILIES.values() for g in f.grids))


# Each is a function (images [B, H, W, I], kernel [h, w, I, O]) -> [B, H', W',
# O]; all give the same numbers up to rounding (models.convolutions).
CONVOLUTIONS = Registry(
  stock="minarch_jax.models.convolutions:stock",
  im2col="minarch_jax.models.convolutions:im2col",
  hybrid="minarch_jax.models.convolutions:hybrid",
)

# The tables and figures of the report, as they follow in each section.
TABLES = Registry(
  regime_counts="minarch_jax.report.tables:REGIME_COUNTS",
  regime_boundaries="minarch_jax.report.tables:REGIME_BOUNDARIES",
  regimes="minarch_jax.report.tables:REGIMES",
  minimal_parameters="minarch_jax.report.tables:MINIMAL_PARAMETERS",
  selected="minarch_jax.report.tables:SELECTED",
  convergence_phases="minarch_jax.report.tables:CONVERGENCE_PHASES",
  controls="minarch_jax.report.tables:CONTROLS",
  redundancy="minarch_jax.report.tables:REDUNDANCY",
  pruning_phases="minarch_jax.report.tables:PRUNING_PHASES",
  sensitivity="minarch_jax.report.tables:SENSITIVITY",
  overlap="minarch_jax.report.tables:OVERLAP",
  quantization_slopes="minarch_jax.report.tables:QUANTIZATION_SLOPES",
  quantization="minarch_jax.report.tables:QUANTIZATION",
  activation_quantization="minarch_jax.report.tables:ACTIVATION_QUANTIZATION",
  quantizer_damage="minarch_jax.report.tables:QUANTIZER_DAMAGE",
  guidance="minarch_jax.report.tables:GUIDANCE",
  claims="minarch_jax.report.tables:CLAIMS",
  stages="minarch_jax.report.tables:STAGES",
  packs="minarch_jax.report.tables:PACKS",
)

FIGURES = Registry(
  accuracy="minarch_jax.report.convergence:ACCURACY",
  accuracy_curves="minarch_jax.report.convergence:ACCURACY_CURVES",
  loss_curves="minarch_jax.report.convergence:LOSS_CURVES",
  phases="minarch_jax.report.convergence:PHASES",
  sparsity="minarch_jax.report.pruning:SPARSITY",
  redundancy="minarch_jax.report.pruning:REDUNDANCY",
  sensitivity="minarch_jax.report.sensitivity:SENSITIVITY",
  overlap="minarch_jax.report.sensitivity:OVERLAP",
  damage="minarch_jax.report.quantization:DAMAGE",
  surface="minarch_jax.report.quantization:SURFACE",
  pareto="minarch_jax.report.quantization:PARETO",
  claims="minarch_jax.report.claims:CLAIMS",
)
