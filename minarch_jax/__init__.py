"""minarch_jax: which is the smallest network that reliably learns a task?

Names are imported when first used, so that checking a flag or reading records
does not start JAX.
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"  # setup.py and study.json read it here

# name -> module, or module:attribute where it is called otherwise there.
_HOME = {
  "Architecture": "architectures",
  "grid": "architectures",
  "Config": "config",
  "from_arrays": "data",
  "load": "data",
  "Batch": "types",
  "Dataset": "types",
  "QTensor": "types",
  "make_model": "models",
  "train": "notebook",
  "accuracy": "engine.accuracy",
  "Population": "stages.populations",
  "load_population": "stages.populations",
  "train_many": "stages.own",
  "load_sweep": "stages.own_sweeps",
  "Sweep": "stages.own_sweeps",
  "record_inputs": "types",
  "tapped": "quantization.taps",
  "prune": "pruning",
  "rank": "pruning",
  "masks_at": "pruning",
  "apply_masks": "pruning",
  "masked": "pruning",
  "sparsity": "pruning",
  "dead_layers": "pruning",
  "overlaps": "pruning",
  "layer_sensitivity": "pruning",
  "accumulate_movement": "pruning",
  "iterative": "pruning",
  "gradual": "pruning",
  "lottery": "pruning",
  "dynamic_sparse": "pruning",
  "rigl": "pruning",
  "sparse_evolution": "pruning",
  "compact": "pruning",
  "quantize": "quantization",
  "dequantize": "quantization",
  "fake_quantize": "quantization",
  "calibrate_activations": "quantization.activations:calibrate",
  "activation_tap": "quantization.activations:make_tap",
  "straight_through": "quantization.straight_through",
  "straight_through_tap": "quantization.straight_through",
  "lsq": "quantization.networks:lsq",
  "gptq": "quantization.networks.gptq",
  "mixed_precision": "quantization.networks.mixed",
  "integer_network": "quantization.networks.integer",
  "chain": "quantization.networks.joint",
  "joint_surface": "quantization.networks.joint",
  "pareto_front": "quantization.networks.joint",
  "cost": "quantization.cost",
  "storage_bytes": "quantization",
  "save_model": "quantization.networks.files",
  "load_model": "quantization.networks.files",
  "export": "engine.exports",
  "Records": "records",
  "read_records": "records:read",
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

__all__ = [*_HOME]  # pyright: ignore


def __getattr__(name: str) -> Any:
  if name in _HOME:
    home, _, attribute = _HOME[name].partition(":")
    module = importlib.import_module(f"minarch_jax.{home}")
    return getattr(module, attribute or name)
  raise AttributeError(f"module 'minarch_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*__all__, "__version__"])
