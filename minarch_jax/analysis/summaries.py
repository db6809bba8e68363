"""The summary a study prints: about ten lines, every number with its limits."""

from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import controls as controls_lib
from minarch_jax.analysis import tables
from minarch_jax.analysis.claims import findings
from minarch_jax.analysis.regimes import LABELS, STABLE


class Line(NamedTuple):
  """A line of the summary, and the name of the table that says more."""

  text: str
  table: str | None = None

  def __str__(self) -> str:
    return self.text


def lines(found: findings.Evidence) -> list[Line]:
  """Writes the summary of a study that trained at least one network."""
  labels = found["regimes"]
  parts = {
    "selected": _best(labels),
    "minimal_parameters": _minimal(found["minimal_parameters"]),
    "pruning_phases": _redundancy(found["pruning_phases"], labels),
    "controls": _controls(found["controls"]),
    "quantization": _damage(found["quantization"]),
    "regimes": [_regimes(labels)],
    "claims": [_verdicts(found["claims"])],
  }
  return [Line(text, table) for table, texts in parts.items() for text in texts]


def _best(labels: pl.DataFrame) -> list[str]:
  lines = []
  for dataset in labels["dataset"].unique().sort():
    rows = (
      labels.filter(pl.col("dataset") == dataset)
      .sort("mean_accuracy", "params", descending=[True, False])
      .unique("family", keep="first", maintain_order=True)
      .sort("family")
    )
    best = ", ".join(
      f"{row['architecture']} {row['mean_test_accuracy']:.2%}"
      for row in rows.iter_rows(named=True)
    )
    lines.append(f"{dataset}: test accuracy, chosen on validation: {best}")
  return lines


def _minimal(minimal: pl.DataFrame) -> list[str]:
  return [
    f"{dataset}: P_min "
    + ", ".join(_size(row) for row in rows.iter_rows(named=True))
    for (dataset,), rows in minimal.group_by("dataset", maintain_order=True)
  ]


def _size(row: dict[str, Any]) -> str:
  if row["p_min"] is None:
    return f"{row['family']} not bracketed ({row['status']})"
  low, high = row["p_min_low"], row["p_min_high"]
  return (
    f"{row['family']} {row['p_min']:,.0f} "
    f"[{f'{low:,.0f}' if low else 'below grid'}, "
    f"{f'{high:,.0f}' if high else 'above grid'}]"
  )


def _redundancy(pruned: pl.DataFrame, labels: pl.DataFrame) -> list[str]:
  by = list(tables.ARCHITECTURE)
  stable = labels.filter(STABLE).select(by)
  rows = pruned.join(stable, on=by, how="semi").filter(tables.RANKED)
  lines = []
  for (schedule,), group in (
    rows.drop_nulls("redundancy")
    .sort("schedule", descending=True)
    .group_by("schedule", maintain_order=True)
  ):
    best = group.sort("redundancy", "params", descending=[True, False]).row(
      0, named=True
    )
    lines.append(
      f"redundancy, {schedule}: median {group['redundancy'].median():.0%}, "
      f"largest {best['redundancy']:.0%} "
      f"[{best['redundancy_low']:.0%}, {best['redundancy_high']:.0%}] "
      f"({best['architecture']}, {best['criterion']}, {best['scope']})"
    )
  return lines


def _controls(controls: pl.DataFrame) -> list[str]:
  """Says whether pruning beat the dense network of equal size."""
  lines = []
  for (schedule,), rows in controls.filter(
    pl.col("control") == "small_dense"
  ).group_by("schedule", maintain_order=True):
    counts = dict(rows["verdict"].value_counts().iter_rows())
    lines.append(
      f"pruned, {schedule}, against a dense network of equal size: better at "
      f"{counts.get(controls_lib.BETTER, 0)}, worse at "
      f"{counts.get(controls_lib.WORSE, 0)} of {len(rows)} settings"
    )
  return lines


def _damage(damage: pl.DataFrame) -> list[str]:
  groups = (
    damage.group_by("bits", "quant_granularity")
    .agg(
      median=100 * pl.col("damage").median(), worst=100 * pl.col("damage").max()
    )
    .sort("bits", "quant_granularity", descending=[True, False])
  )
  parts = [
    f"{bits} bits per {unit} {median:.2f} points (worst {worst:.2f})"
    for bits, unit, median, worst in groups.iter_rows()
  ]
  return [f"quantization damage, median: {', '.join(parts)}"] if parts else []


def _regimes(labels: pl.DataFrame) -> str:
  counts = [f"{(labels['label'] == name).sum()} {name}" for name in LABELS]
  return f"regimes of {len(labels)} architectures: {', '.join(counts)}"


def _verdicts(rows: pl.DataFrame) -> str:
  parts = []
  for verdict in findings.VERDICTS:
    names = rows.filter(pl.col("verdict") == verdict)["claim"].to_list()
    parts.append(
      f"{len(names)} {verdict}" + (f" ({' '.join(names)})" if names else "")
    )
  return f"claims: {', '.join(parts)}"
