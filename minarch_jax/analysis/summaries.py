"""The summary a study prints: about ten lines, every number with its limits."""

from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import controls as controls_lib
from minarch_jax.analysis import pruning, recommendation, tables
from minarch_jax.analysis.claims import findings
from minarch_jax.analysis.regimes import LABELS
from minarch_jax.config import Config


class Line(NamedTuple):
  """A line of the summary, and the name of the table that says more."""

  text: str
  table: str | None = None

  def __str__(self) -> str:
    return self.text


def lines(found: findings.Evidence, config: Config) -> list[Line]:
  """Writes the summary of a study that trained at least one network."""
  labels = found["regimes"]
  parts = {
    "guidance": _recommended(found["guidance"]),
    "selected": _best(labels),
    "minimal_parameters": _minimal(found["minimal_parameters"]),
    "pruning_phases": _redundancy(found, config),
    "controls": _controls(found["controls"]),
    "quantization": _damage(found["quantization"]),
    "regimes": [_regimes(labels)],
    "claims": [_verdicts(found["claims"])],
  }
  return [Line(text, table) for table, texts in parts.items() for text in texts]


def _recommended(guidance: pl.DataFrame) -> list[str]:
  """Says the smallest that is as good as the best, or why there is none."""
  lines = []
  for row in guidance.iter_rows(named=True):
    if row["refused"] is not None:
      lines.append(f"{row['dataset']}: nothing recommended: {row['refused']}")
    elif row["rank"] == 1:
      lines.append(f"{row['dataset']}: {_first(row)}")
  return lines


def _first(row: dict[str, Any]) -> str:
  words = recommendation.in_words(pl.DataFrame([row])).row(0, named=True)
  pruned = "not pruned" if row["sparsity"] == 0 else f"pruned {words['pruned']}"
  rounded = (
    "not rounded" if row["bits"] == 32 else f"rounded to {words['rounded']}"
  )
  text = (
    f"{words['architecture']}, {pruned}, {rounded}: {words['bytes']:,} bytes, "
    f"accuracy {words['accuracy']:.2%}, of a new seed at least "
    f"{words['at_least']:.2%}"
  )
  wanted = f"{row['target_accuracy']:.2%}"
  if row["shortfall"] > 0:
    short = 100 * row["shortfall"]
    return f"nothing reaches {wanted}; {short:.2f} points short: {text}"
  return f"the smallest that reaches {wanted}: {text}"


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


def _redundancy(found: findings.Evidence, config: Config) -> list[str]:
  """Says the redundancy of every schedule and scope, over the stable.

  The bounds of a median are the medians of the bounds, as if all architectures
  erred to one side: they share images and seeds, so they may.
  """
  by = list(tables.ARCHITECTURE)
  rows = found["pruning_phases"].join(
    findings.stable(found).select(by), on=by, how="semi"
  )
  rows = tables.primary(
    rows.filter(tables.RANKED).drop_nulls("redundancy"),
    ("criterion", "granularity"),
  )
  lines = []
  for (schedule, scope), group in rows.sort(
    "schedule", "scope", descending=[True, False]
  ).group_by("schedule", "scope", maintain_order=True):
    group, chosen = pruning.located(found["drops"], group)
    largest = pruning.largest(
      found["drops"],
      chosen,
      group["redundancy_high"].to_numpy(),
      config,
    )
    middle = [
      group[f"redundancy{end}"].median() for end in ("", "_low", "_high")
    ]
    lines.append(
      f"redundancy, {schedule}, {scope}: median {middle[0]:.0%} "
      f"[{middle[1]:.0%}, {middle[2]:.0%}], "
      f"largest {largest.redundancy:.0%} "
      f"[{largest.low:.0%}, {largest.high:.0%}] of {len(group)} stable "
      f"architectures ({group['criterion'][0]}); "
      f"shown free: up to {group['shown_free'].max():.0%}"
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
