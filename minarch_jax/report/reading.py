"""What a report reports: records, every table made of them, provenance."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import polars as pl

from minarch_jax import analysis, registries
from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax.analysis import summaries, tables

# More networks than this, or more rows about them, and the page is slow.
MOST_NETWORKS, _MOST_ROWS = 500, 40_000


class Tables(Mapping[str, pl.DataFrame]):
  """The tables of `registries.TABLES`, each computed when first asked for.

  Those whose subject was not measured are not there.
  """

  def __init__(self, found: analysis.Analyses):
    self._found = found
    self._frames: dict[str, pl.DataFrame | None] = {}

  def _frame(self, name: str) -> pl.DataFrame | None:
    if name not in self._frames:
      self._frames[name] = registries.TABLES[name].compute(self._found)
    return self._frames[name]

  def __getitem__(self, name: str) -> pl.DataFrame:
    if name not in self:
      raise KeyError(name)
    return self._frames[name]  # pyright: ignore

  def __contains__(self, name: object) -> bool:
    return name in registries.TABLES and self._frame(str(name)) is not None

  def get(self, name: str, default: Any = None) -> Any:
    return self[name] if name in self else default  # lets errors through

  def __iter__(self) -> Iterator[str]:
    return (name for name in registries.TABLES if name in self)

  def __len__(self) -> int:
    return sum(1 for _ in self)


@dataclasses.dataclass(frozen=True)
class Reading:
  """Records, the tables made of them, and where they come from.

  Attributes:
    found: every analysis.
    tables: the frame of each file in report/tables, by its name.
    datasets: ordered by falling best accuracy, that is by growing difficulty.
    families: as they are registered.
  """

  found: analysis.Analyses
  tables: Mapping[str, pl.DataFrame]
  datasets: tuple[str, ...]
  families: tuple[str, ...]

  @property
  def records(self) -> records_lib.Records:
    """The tables of the main arm."""
    return self.found.records

  @property
  def config(self) -> config_lib.Config:
    """Thresholds."""
    return self.found.config

  @property
  def study(self) -> Mapping[str, Any]:
    """What study.json holds."""
    return self.found.study

  @functools.cached_property
  def shown(self) -> pl.DataFrame:
    """The networks that the page tells apart: dataset, architecture.

    All of them where a page can hold as many; else the recommended ones and
    others evenly spread over the sizes of each data set and family.
    """
    every = self.tables["regimes"].select(
      "dataset", "family", "architecture", "params"
    )
    most = max(_MOST_ROWS * len(every) // (1 + self._rows), 1)
    keys = ["dataset", "architecture"]
    if len(every) <= min(most, MOST_NETWORKS):
      return every.select(keys)
    groups = every.sort("params", "architecture").partition_by(
      "dataset", "family", maintain_order=True
    )
    each = max(min(most, MOST_NETWORKS) // len(groups), 1)
    spread = [spread_out(group, each) for group in groups]
    named = self.tables.get("guidance", every).drop_nulls("architecture")
    return pl.concat([g.select(keys) for g in (named, *spread)]).unique(
      maintain_order=True
    )

  @property
  def _rows(self) -> int:
    """The rows that the page would hold of all networks."""
    records = self.records
    seeds = records.networks.n_unique(["dataset", "seed"])
    return len(records.networks) + len(records.compression) // max(seeds, 1)

  @functools.cached_property
  def summary(self) -> Sequence[summaries.Line]:
    """What the study found."""
    return analysis.summarise(self.found)


def analyse(
  records: records_lib.Records,
  config: config_lib.Config,
  study: Mapping[str, Any],
  others: Mapping[str, pl.DataFrame] | None = None,
) -> Reading:
  """Arranges records to be reported; what is asked of them is computed then.

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
  networks = found.records.networks
  return Reading(
    found,
    Tables(found),
    tables.by_difficulty(networks),
    in_order(networks["family"].unique().to_list()),
  )


def spread_out(frame: pl.DataFrame, most: int) -> pl.DataFrame:
  """Keeps at most `most` rows, evenly spread, first and last included."""
  if len(frame) <= most:
    return frame
  last = (len(frame) - 1) / max(most - 1, 1)
  return frame[[round(i * last) for i in range(most)]]


def drawn(frame: pl.DataFrame, count: int) -> str:
  """Says how many of `count` architectures the rows of a figure show."""
  number = frame.select("dataset", "architecture").n_unique()
  if number < count:
    return f"{number:,} of {count:,} architectures, evenly spread over sizes"
  return f"{count:,} architectures"


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
