"""What a report reports: records, every table made of them, provenance."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from minarch_jax import analysis, registries
from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax.analysis import summaries, tables


class Reading(NamedTuple):
  """Records, the tables made of them, and where they come from.

  `tables` maps the name of each file in report/tables to its frame; `study` is
  study.json; `datasets` is ordered by falling best accuracy, that is by
  growing difficulty, and `families` as they are registered.
  """

  records: records_lib.Records
  config: config_lib.Config
  study: Mapping[str, Any]
  tables: dict[str, pl.DataFrame]
  summary: Sequence[summaries.Line]
  datasets: tuple[str, ...]
  families: tuple[str, ...]


def analyse(
  records: records_lib.Records,
  config: config_lib.Config,
  study: Mapping[str, Any],
  others: Mapping[str, pl.DataFrame] | None = None,
) -> Reading:
  """Computes every table of `registries.TABLES` from the records.

  Args:
    records: the tables that every study leaves.
    config: thresholds.
    study: study.json.
    others: the record tables that only some experiments leave, by name.

  Raises:
    ConfigError: there are no networks in the records.
  """
  if records.networks.is_empty():
    raise config_lib.ConfigError(
      "the records hold no trained network; run "
      "`python -m experiments.study` with the same --out first"
    )
  found = analysis.Analyses(records, config, others=others, study=study)
  frames = {
    name: table.compute(found) for name, table in registries.TABLES.items()
  }
  networks = found.records.networks
  return Reading(
    found.records,
    config,
    study,
    {name: frame for name, frame in frames.items() if frame is not None},
    analysis.summarise(found),
    tables.by_difficulty(networks),
    in_order(networks["family"].unique().to_list()),
  )


def in_order(families: Sequence[str]) -> tuple[str, ...]:
  """Orders families as they are registered, others after."""
  known = tuple(registries.FAMILIES)
  return tuple(
    sorted(families, key=lambda f: (known.index(f) if f in known else 9, f))
  )


def seeds(frame: pl.DataFrame) -> str:
  """Says how many seeds the rows of a table rest on."""
  low, high = frame["n_seeds"].min(), frame["n_seeds"].max()
  if high == 1:
    return "1 seed each, hence no intervals"
  return f"{low if low == high else f'{low} to {high}'} seeds each"


def points(fraction: float) -> str:
  """Writes a difference of accuracies in percentage points."""
  value = f"{100 * fraction:g}"
  return f"{value} point{'' if value == '1' else 's'}"
