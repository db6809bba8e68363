"""All figures of the report, by the name of their files."""

from collections.abc import Callable

from minarch_jax.report import (
  claims,
  convergence,
  pruning,
  quantization,
  sensitivity,
)
from minarch_jax.report.reading import Figure, Reading

# Draws a figure, or returns None when the records have nothing to show in it.
DrawFn = Callable[[Reading], Figure | None]

FIGURES: dict[str, DrawFn] = {
  "accuracy": convergence.accuracy,
  "accuracy_curves": convergence.accuracy_curves,
  "loss_curves": convergence.loss_curves,
  "phases": convergence.phases,
  "sparsity": pruning.sparsity,
  "redundancy": pruning.redundancy,
  "sensitivity": sensitivity.sensitivity,
  "overlap": sensitivity.overlap,
  "damage": quantization.damage,
  "surface": quantization.surface,
  "pareto": quantization.pareto,
  "claims": claims.claims,
}
