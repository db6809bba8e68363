"""The summary of a study: about ten answers, every number with its limits."""

from typing import Any, NamedTuple

import polars as pl

from minarch_jax.analysis import controls as controls_lib
from minarch_jax.analysis import pruning, recommendation, tables
from minarch_jax.analysis.claims import findings
from minarch_jax.analysis.regimes import LABELS
from minarch_jax.config import Config


class Line(NamedTuple):
  """An answer of the summary.

  Attributes:
    head: what it answers, in a word or three.
    text: the answer, in sentences.
    table: the name of the table that says more.
    dataset: what the networks that it names were trained on, where it is one.
  """

  head: str
  text: str
  table: str | None = None
  dataset: str | None = None

  def __str__(self) -> str:
    return f"{self.head}: {self.text}"


FAMILIES = {
  "dnn": "a fully connected network",
  "cnn": "a convolutional network",
  "vit": "a vision transformer",
}


def lines(found: findings.Evidence, config: Config) -> list[Line]:
  """Writes the summary of a study that trained at least one network."""
  labels = found["regimes"]
  return [
    *_recommended(found["guidance"]),
    *_best(labels),
    *_minimal(found["minimal_parameters"]),
    *_redundancy(found, config),
    *_controls(found["controls"]),
    *_damage(found["quantization"]),
    _regimes(labels),
    _verdicts(found["claims"]),
  ]


def _named(head: str, of: str, several: bool) -> str:
  """Names the data set, or the like, where there are several."""
  return f"{head}, {of}" if several else head


def _recommended(guidance: pl.DataFrame) -> list[Line]:
  """Says the smallest that is as good as the best, or why there is none."""
  several = guidance["dataset"].n_unique() > 1
  lines = []
  for row in guidance.iter_rows(named=True):
    if row["refused"] is not None:
      text = f"Nothing can be recommended: {row['refused']}"
    elif row["rank"] == 1:
      text = _first(row)
    else:
      continue
    head = _named("Use", row["dataset"], several)
    lines.append(Line(head, text, "guidance", row["dataset"]))
  return lines


def _first(row: dict[str, Any]) -> str:
  words = recommendation.in_words(pl.DataFrame([row])).row(0, named=True)
  kind = FAMILIES.get(row["family"], row["family"])
  pruned = "Prune nothing"
  if row["sparsity"] > 0:
    share = words["pruned"].replace(" %", " % of its weights", 1)
    pruned = f"Prune {share}"
  rounded = "round nothing"
  if row["bits"] < 32:
    rounded = f"round the rest to {words['rounded']}"
  text = (
    f"{row['architecture']}, {kind}. {pruned} and {rounded}: "
    f"{row['bytes']:,} bytes. "
  )
  reached = (
    f"It reaches {row['accuracy']:.2%} on validation images, and a new seed "
    f"is predicted to reach {row['accuracy_low']:.2%} or more"
  )
  wanted, best = row["target_accuracy"], row["best_accuracy"]
  if row["shortfall"] > 0:
    return (
      f"{text}The nearest to {wanted:.2%}, which nothing is predicted to reach:"
      f" {100 * row['shortfall']:.2f} points short. {reached}."
    )
  return (
    f"{text}The smallest that stays within {100 * (best - wanted):.3g} points "
    f"of the best, {best:.2%}. {reached}."
  )


def _best(labels: pl.DataFrame) -> list[Line]:
  several = labels["dataset"].n_unique() > 1
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
    head = _named("Most accurate", dataset, several)
    text = f"On validation images, with accuracy on test images: {best}."
    lines.append(Line(head, text, "selected", dataset))
  return lines


def _minimal(minimal: pl.DataFrame) -> list[Line]:
  several = minimal["dataset"].n_unique() > 1
  return [
    Line(
      _named("Smallest reliable", dataset, several),
      "From P_min parameters on all networks are near the best and vary little "
      "over seeds. P_min: "
      + ", ".join(_size(row) for row in rows.iter_rows(named=True))
      + ".",
      "minimal_parameters",
      dataset,
    )
    for (dataset,), rows in minimal.group_by("dataset", maintain_order=True)
  ]


def _size(row: dict[str, Any]) -> str:
  if row["p_min"] is None:
    return f"{row['family']} not within this grid ({row['status']})"
  low, high = row["p_min_low"], row["p_min_high"]
  return (
    f"{row['family']} {row['p_min']:,.0f} "
    f"[{f'{low:,.0f}' if low else 'below grid'}, "
    f"{f'{high:,.0f}' if high else 'above grid'}]"
  )


def _points(accuracy: float) -> str:
  value = f"{100 * accuracy:g}"
  return f"{value} point{'' if value == '1' else 's'}"


_PRUNED = {
  "oneshot": "Prunable at once",
  "finetune": "Prunable, retrained",
}


def _redundancy(found: findings.Evidence, config: Config) -> list[Line]:
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
    text = (
      f"In the median of {len(group)} that are stable {middle[0]:.0%} "
      f"[{middle[1]:.0%}, {middle[2]:.0%}] of the weights can go before "
      f"accuracy falls by {_points(config.free_margin)}, in the most prunable "
      f"{largest.redundancy:.0%} [{largest.low:.0%}, {largest.high:.0%}]. "
      f"Shown to cost less: up to {group['shown_free'].max():.0%}. "
      f"Ranked by {group['criterion'][0]}, {scope}."
    )
    head = _PRUNED.get(schedule, f"Prunable, {schedule}")
    several = rows.filter(schedule=schedule)["scope"].n_unique() > 1
    lines.append(Line(_named(head, scope, several), text, "pruning_phases"))
  return lines


def _controls(controls: pl.DataFrame) -> list[Line]:
  """Says whether pruning beat the dense network of equal size."""
  lines = []
  for (schedule,), rows in controls.filter(
    pl.col("control") == "small_dense"
  ).group_by("schedule", maintain_order=True):
    counts = dict(rows["verdict"].value_counts().iter_rows())
    text = (
      f"Pruned networks ({schedule}) beat dense ones of as many weights, "
      f"trained as long, in {counts.get(controls_lib.BETTER, 0)} of "
      f"{len(rows)} comparisons and lose in "
      f"{counts.get(controls_lib.WORSE, 0)}."
    )
    lines.append(Line("Pruned or small", text, "controls"))
  return lines


def _damage(damage: pl.DataFrame) -> list[Line]:
  damage = tables.primary(damage, ("quant_granularity",))
  groups = (
    damage.group_by("bits")
    .agg(
      median=100 * pl.col("damage").median(), worst=100 * pl.col("damage").max()
    )
    .sort("bits", descending=True)
  )
  if groups.is_empty():
    return []
  (bits, median, worst), *rest = groups.iter_rows()
  text = (
    f"With {bits} bits the median network loses {median:.2f} points of "
    f"accuracy (the worst {worst:.2f})"
  )
  for bits, median, worst in rest:
    text += f", with {bits} bits {median:.2f} ({worst:.2f})"
  text += f"; one scale per {damage['quant_granularity'][0]}."
  return [Line("Few bits", text, "quantization")]


def _regimes(labels: pl.DataFrame) -> Line:
  unstable, learning, overfitting = (
    (labels["label"] == name).sum() for name in LABELS
  )
  text = (
    f"Of {len(labels)} architectures {unstable} are unstable (seeds fail or "
    f"scatter), {learning} learn and {overfitting} overfit."
  )
  return Line("Sizes", text, "regimes")


def _verdicts(rows: pl.DataFrame) -> Line:
  parts = []
  for verdict in findings.VERDICTS:
    found = rows.filter(pl.col("verdict") == verdict)
    if verdict == findings.CONTRADICTED:  # what one wants to know at once
      names = [f"{c}: {s}" for c, s in found["claim", "statement"].iter_rows()]
    else:
      names = found["claim"].to_list()
    shown = f" ({', '.join(names)})" if names else ""
    parts.append(f"{len(found)} {verdict}{shown}")
  text = f"Of {len(rows)} claims, by these records: {', '.join(parts)}."
  return Line("The paper's claims", text, "claims")
