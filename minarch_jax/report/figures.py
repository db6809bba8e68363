"""All figures of the report, by the name of their files."""

from collections.abc import Callable

from minarch_jax.report import (
  convergence,
  layers,
  pruning,
  quantization,
  verdicts,
)
from minarch_jax.report.findings import Figure, Findings

# Draws a figure, or returns None when the records have nothing to show in it.
DrawFn = Callable[[Findings], Figure | None]

FIGURES: dict[str, DrawFn] = {
  "accuracy": convergence.accuracy,
  "accuracy_curves": convergence.accuracy_curves,
  "loss_curves": convergence.loss_curves,
  "phases": convergence.phases,
  "sparsity": pruning.sparsity,
  "redundancy": pruning.redundancy,
  "sensitivity": layers.sensitivity,
  "overlap": layers.overlap,
  "damage": quantization.damage,
  "surface": quantization.surface,
  "pareto": quantization.pareto,
  "claims": verdicts.claims,
}
