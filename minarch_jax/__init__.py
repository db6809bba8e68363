"""minarch_jax: which is the smallest network that reliably learns a task?

Names are imported when first used, so that checking a flag or reading records
does not start JAX.
"""

import importlib
from typing import Any

_HOME = {
  "Architecture": "architectures",
  "grid": "architectures",
  "Config": "config",
  "load": "data",
  "Batch": "types",
  "Dataset": "types",
  "QTensor": "types",
  "make_model": "models",
  "train": "notebook",
  "accuracy": "notebook",
  "Population": "notebook",
  "prune": "pruning",
  "apply_masks": "pruning",
  "masked": "pruning",
  "sparsity": "pruning",
  "compact": "pruning",
  "quantize": "quantization",
  "dequantize": "quantization",
  "fake_quantize": "quantization",
  "chain": "transforms",
  "Records": "records",
  "analyse": "analysis",
  "regimes": "analysis",
  "regime_boundaries": "analysis",
  "minimal_parameters": "analysis",
  "p_at": "analysis",
  "convergence_phases": "analysis",
  "pruning_phases": "analysis",
  "quantization_damage": "analysis",
  "joint_damage": "analysis",
  "control_differences": "analysis",
  "claims": "analysis",
  "recommend": "analysis",
  "guidance": "analysis",
  "compare": "analysis",
}

__all__ = [*_HOME, "read_records"]  # pyright: ignore


def __getattr__(name: str) -> Any:
  if name == "read_records":
    return importlib.import_module("minarch_jax.records").read
  if name in _HOME:
    module = importlib.import_module(f"minarch_jax.{_HOME[name]}")
    return getattr(module, name)
  raise AttributeError(f"module 'minarch_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted(__all__)
