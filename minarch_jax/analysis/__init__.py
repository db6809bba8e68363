"""Analysis: pure functions from (records, thresholds) to tables. No JAX."""

from typing import Any

import polars as pl

from minarch_jax.analysis import tables as _tables
from minarch_jax.analysis.claims.verdicts import claims
from minarch_jax.analysis.comparison import compare
from minarch_jax.analysis.controls import control_differences
from minarch_jax.analysis.convergence import convergence_phases
from minarch_jax.analysis.minimal import minimal_parameters, p_at
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
from minarch_jax.analysis.regimes import regime_boundaries, regimes
from minarch_jax.analysis.sensitivity import layer_sensitivity, mask_overlap
from minarch_jax.analysis.summaries import summary
from minarch_jax.analysis.tables import one_recipe, plain, under
from minarch_jax.config import Config

__all__ = [
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
  "regimes",
  "summary",
  "under",
]


def analyse(
  records: _tables.Records, config: Config = _tables.DEFAULTS
) -> dict[str, pl.DataFrame]:
  """Runs every analysis once, sharing what they have in common.

  Returns:
    The report's tables by file name: regimes, regime_boundaries,
    minimal_parameters, convergence_phases, pruning_phases, redundancy,
    controls, quantization, activation_quantization, quantization_slopes,
    claims, guidance; quantizer_damage where other quantizers were measured.
  """
  records, _ = one_recipe(records)
  judged = outcomes(records, config)
  found: dict[str, Any] = {
    "regimes": regimes(records, config, outcomes=judged),
    "regime_boundaries": regime_boundaries(records, config, outcomes=judged),
    "minimal_parameters": minimal_parameters(records, config, outcomes=judged),
    "convergence_phases": convergence_phases(records, config),
    "pruning_phases": pruning_phases(records, config),
    "controls": control_differences(records, config),
    "quantization": quantization_damage(records, config),
    "activation_quantization": activation_damage(records, config),
  }
  others = quantizer_damage(records, config)
  if not others.is_empty():
    found["quantizer_damage"] = others
  found["redundancy"] = redundancy_by_depth(
    records, config, phases=found["pruning_phases"]
  )
  found["quantization_slopes"] = damage_slopes(
    records, config, damage=found["quantization"]
  )
  found["claims"] = claims(records, config, outcomes=judged, **found)
  found["guidance"] = guidance(records, config, outcomes=judged)
  return found
