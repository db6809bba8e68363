"""Every analysis by name; each runs once, when it is first asked for."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from minarch_jax import records as records_lib
from minarch_jax import registries
from minarch_jax.analysis import (
  controls,
  convergence,
  minimal,
  pruning,
  quantization,
  recommendation,
  summaries,
  tables,
)
from minarch_jax.analysis.claims import verdicts
from minarch_jax.analysis.outcomes import outcomes
from minarch_jax.analysis.regimes import regime_boundaries, regimes
from minarch_jax.config import Config


class Analyses(Mapping[str, Any]):
  """The records of a study and, by name, what the analyses make of them.

  `analyses["regimes"]` runs that analysis when it is first asked for and keeps
  the result, so tables, claims and summary share what they have in common.

  Attributes:
    records: the tables of the main arm, one training recipe per data set.
    everything: the tables of all arms.
    notes: a sentence for every data set whose other recipes were left out.
    config: thresholds.
    others: the record tables that only some experiments leave, by name.
    study: what study.json holds; {} when there is none.
  """

  def __init__(
    self,
    records: tables.Records,
    config: Config = tables.DEFAULTS,
    *,
    others: Mapping[str, pl.DataFrame] | None = None,
    study: Mapping[str, Any] | None = None,
    **known: Any,
  ):
    self.everything = records
    self.records, self.notes = tables.one_recipe(records)
    self.config = config
    self.others = others or {}
    self.study = study or {}
    self._found = {k: v for k, v in known.items() if v is not None}
    self._arms: dict[str, Analyses] = {}

  def arm(self, name: str) -> "Analyses":
    """The analyses of another arm of the study, empty where it has none."""
    if name not in self._arms:
      own = tables.of_arm(self.everything, name)
      main = own.networks.with_columns(arm=pl.lit(records_lib.MAIN))
      self._arms[name] = Analyses(own._replace(networks=main), self.config)
    return self._arms[name]

  def __getitem__(self, name: str) -> Any:
    if name not in self._found:
      make = registries.find("analysis", name, SHARED | TABLES)
      self._found[name] = make(self)
    return self._found[name]

  def __iter__(self) -> Iterator[str]:
    return iter(SHARED | TABLES)

  def __len__(self) -> int:
    return len(SHARED | TABLES)


Analysis = Callable[[Analyses], Any]

# What several of the tables are made of.
SHARED: dict[str, Analysis] = {
  "outcomes": lambda a: outcomes(a.records, a.config),
  "drops": lambda a: pruning.pruning_drops(a.records, a.config),
}

TABLES: dict[str, Analysis] = {
  "regimes": lambda a: regimes(a.records, a.config, outcomes=a["outcomes"]),
  "regime_boundaries": lambda a: regime_boundaries(
    a.records, a.config, outcomes=a["outcomes"]
  ),
  "minimal_parameters": lambda a: minimal.minimal_parameters(
    a.records, a.config, outcomes=a["outcomes"]
  ),
  "convergence_phases": lambda a: convergence.convergence_phases(
    a.records, a.config
  ),
  "pruning_phases": lambda a: pruning.phase_table(a["drops"], a.config),
  "redundancy": lambda a: pruning.redundancy_by_depth(
    a.records, a.config, phases=a["pruning_phases"]
  ),
  "controls": lambda a: controls.control_differences(a.records, a.config),
  "quantization": lambda a: quantization.quantization_damage(
    a.records, a.config
  ),
  "activation_quantization": lambda a: quantization.activation_damage(
    a.records, a.config
  ),
  "quantizer_damage": lambda a: quantization.quantizer_damage(
    a.records, a.config
  ),
  "quantization_slopes": lambda a: quantization.damage_slopes(
    a.records, a.config, damage=a["quantization"]
  ),
  "claims": lambda a: verdicts.judge(a, a.config),
  "guidance": lambda a: recommendation.guidance(
    a.records, a.config, outcomes=a["outcomes"]
  ),
}


def analyse(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> dict[str, pl.DataFrame]:
  """Runs every analysis once, sharing what they have in common.

  Returns:
    Tables by name: regimes, regime_boundaries, minimal_parameters,
    convergence_phases, pruning_phases, redundancy, controls, quantization,
    activation_quantization, quantization_slopes, claims, guidance;
    quantizer_damage where other quantizers were measured.
  """
  found = Analyses(records, config)
  tables = {name: found[name] for name in TABLES}
  if tables["quantizer_damage"].is_empty():
    del tables["quantizer_damage"]
  return tables


def claims(
  records: tables.Records, config: Config = tables.DEFAULTS, **known: Any
) -> pl.DataFrame:
  """Judges the eight claims on these records.

  report/method.md#claims says what each means and how it is tested. A verdict
  is `supported` or `contradicted` only when the whole interval lies on that
  side of what the claim says; else `undecided`, and the note says how many
  seeds would decide it, or what else is missing.

  Args:
    records: the tables.
    config: thresholds.
    **known: results already computed, by the names of `analyse`.

  Returns:
    claim, statement, effect, low, high, limit, power, n, verdict, unit, figure,
    rests_on, design, note, and the thresholds used. limit: the effect on which
    the verdict turns. power: the probability that such a study decides where
    the effect is as large as matters.
  """
  return verdicts.judge(Analyses(records, config, **known), config)


def summarise(found: Analyses) -> list[summaries.Line]:
  """Says in about ten lines what a study found.

  Test accuracy is that of the network with the best validation accuracy.
  """
  if found.records.networks.is_empty():
    return [summaries.Line("Nothing", "no trained networks in these records")]
  notes = [summaries.Line("Left out", note) for note in found.notes]
  return [*summaries.lines(found, found.config), *notes]


def summary(
  records: tables.Records, config: Config = tables.DEFAULTS, **known: Any
) -> list[summaries.Line]:
  """Analyses records and says in about ten lines what was found.

  Args:
    records: the tables.
    config: thresholds.
    **known: results already computed, by the names of `analyse`.
  """
  return summarise(Analyses(records, config, **known))
