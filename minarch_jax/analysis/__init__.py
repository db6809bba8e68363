"""Analysis: pure functions from (records, thresholds) to tables. No JAX."""

from minarch_jax.analysis.analyses import (
  analyse,
  Analyses,
  claims,
  summarise,
  summary,
)
from minarch_jax.analysis.comparison import compare
from minarch_jax.analysis.controls import control_differences
from minarch_jax.analysis.convergence import convergence_phases
from minarch_jax.analysis.minimal import minimal_parameters, p_at, selected
from minarch_jax.analysis.outcomes import outcomes
from minarch_jax.analysis.probes import probe_predictions
from minarch_jax.analysis.pruning import pruning_phases, redundancy_by_depth
from minarch_jax.analysis.quantization import (
  activation_damage,
  damage_slopes,
  joint_damage,
  quantization_damage,
  quantizer_damage,
)
from minarch_jax.analysis.recommendation import guidance, recommend
from minarch_jax.analysis.regimes import (
  regime_boundaries,
  regime_counts,
  regimes,
)
from minarch_jax.analysis.sensitivity import layer_sensitivity, mask_overlap
from minarch_jax.analysis.tables import one_recipe, plain, under

__all__ = [
  "Analyses",
  "activation_damage",
  "analyse",
  "claims",
  "compare",
  "control_differences",
  "convergence_phases",
  "damage_slopes",
  "guidance",
  "joint_damage",
  "layer_sensitivity",
  "mask_overlap",
  "minimal_parameters",
  "one_recipe",
  "outcomes",
  "p_at",
  "plain",
  "probe_predictions",
  "pruning_phases",
  "quantization_damage",
  "quantizer_damage",
  "recommend",
  "redundancy_by_depth",
  "regime_boundaries",
  "regime_counts",
  "regimes",
  "selected",
  "summarise",
  "summary",
  "under",
]
