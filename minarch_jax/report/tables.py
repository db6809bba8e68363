"""Which columns of the tables a reader sees, and how numbers are written.

The CSV files hold every column at full precision; the page shows a choice,
with intervals beside their estimates.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import polars as pl

from minarch_jax.report.reading import Reading

MOST_ROWS = 400  # more rows than this are only in the CSV file


class Column(NamedTuple):
  """A shown column; `bounds` starts the names of its interval's columns."""

  field: str
  title: str
  form: str = "text"
  bounds: str | None = None


class Cell(NamedTuple):
  """What is read, what a sort by its column compares, and its CSS class."""

  text: str
  key: str
  kind: str
  href: str = ""


class Shown(NamedTuple):
  """A table ready for the page."""

  name: str
  caption: str
  heads: tuple[Cell, ...]
  rows: tuple[tuple[Cell, ...], ...]
  total: int
  has_test: bool


def _number(value: float) -> str:
  return f"{value:.3g}"


FORMS: dict[str, Callable[[Any], str]] = {
  "text": str,
  "words": str,
  "count": lambda value: f"{value:,.0f}",
  "number": _number,
  "percent": lambda value: f"{100 * value:.1f}",
  "points": lambda value: f"{100 * value:.2f}",
  "sparsity": lambda value: f"{value:.2f}",
  "share": lambda value: f"{value:.3f}",
  "epochs": lambda value: f"{value:.1f}",
  "figure": str,
  "flag": lambda value: "yes" if value else "",
}

_WHO = (
  Column("dataset", "data set"),
  Column("family", "family"),
  Column("architecture", "architecture"),
  Column("depth", "depth", "count"),
  Column("params", "params", "count"),
  Column("n_seeds", "seeds", "count"),
)

_LAYER = (
  Column("criterion", "criterion"),
  Column("granularity", "granularity"),
  Column("layer", "layer"),
  Column("groups", "groups", "count"),
  Column("sparsity", "sparsity", "sparsity"),
)
_DAMAGE = Column("damage", "damage (points)", "points", "damage_")

COLUMNS: Mapping[str, tuple[Column, ...]] = {
  "regimes": (
    *_WHO,
    Column("label", "regime"),
    Column("mean_accuracy", "validation accuracy (%)", "percent"),
    Column("sigma", "seed deviation (points)", "points"),
    Column("p_unstable", "P(unstable)", "sparsity", "p_unstable_"),
    Column("p_learning", "P(learning)", "sparsity", "p_learning_"),
    Column("p_overfitting", "P(overfitting)", "sparsity", "p_overfitting_"),
    Column("diverged", "diverged", "count"),
    Column("stuck", "stuck", "count"),
    Column("high_variance", "high variance", "flag"),
    Column("label_halved", "thresholds halved"),
    Column("label_doubled", "thresholds doubled"),
  ),
  "regime_counts": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("regime", "regime"),
    Column("halved", "thresholds halved", "count"),
    Column("as_set", "as set", "count"),
    Column("doubled", "thresholds doubled", "count"),
  ),
  "regime_boundaries": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("boundary", "boundary"),
    Column("p", "params", "count", "p_"),
    Column("status", "status"),
    Column("n_architectures", "architectures", "count"),
  ),
  "minimal_parameters": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("p_min", "P_min (params)", "count", "p_min_"),
    Column("status", "status"),
    Column("p_learn", "P_learn (params)", "count", "p_learn_"),
    Column("learn_status", "P_learn status"),
    Column("plateau", "plateau accuracy (%)", "percent"),
    Column("plateau_architecture", "most accurate"),
    Column("n_architectures", "architectures", "count"),
    Column("n_seeds", "seeds", "count"),
  ),
  "selected": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("role", "chosen as"),
    Column("architecture", "architecture"),
    Column("params", "params", "count"),
    Column("n_seeds", "seeds", "count"),
    Column(
      "val_accuracy", "validation accuracy (%)", "percent", "val_accuracy_"
    ),
    Column("test_accuracy", "test accuracy (%)", "percent", "test_accuracy_"),
  ),
  "convergence_phases": (
    *_WHO,
    Column("chance", "at chance (epochs)", "epochs", "chance_"),
    Column("rapid", "rapid (epochs)", "epochs", "rapid_"),
    Column("refinement", "refinement (epochs)", "epochs", "refinement_"),
    Column("saturation", "saturation (epochs)", "epochs", "saturation_"),
  ),
  "pruning_phases": (
    *_WHO,
    Column("criterion", "criterion"),
    Column("scope", "scope"),
    Column("schedule", "schedule"),
    Column("redundancy", "redundancy (sparsity)", "sparsity", "redundancy_"),
    Column("collapse_at", "collapse at (sparsity)", "sparsity"),
    Column("collapse_low", "from", "sparsity"),
    Column("collapse_high", "to", "sparsity"),
  ),
  "sensitivity": (
    *_WHO,
    *_LAYER,
    Column("accuracy", "validation accuracy (%)", "percent"),
    Column("lost", "accuracy lost (points)", "points", "lost_"),
  ),
  "overlap": (
    *_WHO,
    *_LAYER,
    Column("overlap", "overlap", "share", "overlap_"),
    Column("chance", "chance", "share"),
    Column("shuffled", "shuffled", "share"),
  ),
  "controls": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("control", "control"),
    Column("schedule", "schedule"),
    Column("criterion", "criterion"),
    Column("scope", "scope"),
    Column("sparsity", "sparsity", "sparsity"),
    Column("pruned", "pruned (%)", "percent"),
    Column("other", "control (%)", "percent"),
    Column("difference", "pruned \u2212 control (points)", "points", ""),
    Column("verdict", "verdict"),
    Column("n_architectures", "architectures", "count"),
    Column("n_seeds", "seeds", "count"),
    Column("step_ratio", "steps of control / pruned", "number"),
  ),
  "quantization": (
    *_WHO,
    Column("bits", "bits", "count"),
    Column("quant_granularity", "scale per"),
    _DAMAGE,
  ),
  "activation_quantization": (
    *_WHO,
    Column("bits", "bits", "count"),
    Column("activation_bits", "activation bits", "count"),
    _DAMAGE,
  ),
  "quantizer_damage": (
    *_WHO,
    Column("quantizer", "quantizer"),
    Column("bits", "bits", "count"),
    Column("quant_granularity", "scale per"),
    _DAMAGE,
  ),
  "redundancy": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("depth", "depth", "count"),
    Column("criterion", "criterion"),
    Column("scope", "scope"),
    Column("schedule", "schedule"),
    Column("redundancy", "redundancy (sparsity)", "sparsity", "redundancy_"),
    Column("n_architectures", "architectures", "count"),
  ),
  "quantization_slopes": (
    Column("dataset", "data set"),
    Column("family", "family"),
    Column("bits", "bits", "count"),
    Column("quant_granularity", "scale per"),
    Column("slope", "slope (points per decade)", "points", "slope_"),
    Column("n_architectures", "architectures", "count"),
  ),
  "guidance": (
    Column("dataset", "data set"),
    Column("rank", "rank", "count"),
    Column("architecture", "architecture"),
    Column("sparsity", "sparsity", "sparsity"),
    Column("bits", "bits", "count"),
    Column("schedule", "schedule"),
    Column("criterion", "criterion"),
    Column("scope", "scope"),
    Column("bytes", "bytes", "count"),
    Column("nonzeros", "weights kept", "count"),
    Column("macs", "MACs", "count"),
    Column(
      "accuracy",
      "validation accuracy of a new seed (%)",
      "percent",
      "accuracy_",
    ),
    Column("test_accuracy", "test accuracy (%)", "percent"),
    Column("n_seeds", "seeds", "count"),
    Column("refused", "why none"),
  ),
  "stages": (
    Column("stage", "stage"),
    Column("packs", "packs", "count"),
    Column("compile_seconds", "compilation (s)", "number"),
    Column("run_seconds", "running (s)", "number"),
  ),
  "packs": (
    Column("stage", "stage"),
    Column("parent", "parent"),
    Column("members", "members", "count"),
    Column("seeds", "seeds", "count"),
    Column("padding", "padding (ratio)", "number"),
    Column("compile_seconds", "compilation (s)", "number"),
    Column("run_seconds", "running (s)", "number"),
  ),
  "claims": (
    Column("claim", "claim"),
    Column("statement", "statement", "words"),
    Column("effect", "effect", "number", ""),
    Column("unit", "unit", "words"),
    Column("n", "n", "count"),
    Column("verdict", "verdict"),
    Column("figure", "figure", "figure"),
    Column("rests_on", "rests on", "words"),
    Column("note", "note"),
  ),
}


def shown(reading: Reading, name: str, caption: str) -> Shown | None:
  """Prepares a table for the page; None when it has no rows."""
  frame = reading.tables.get(name)
  if frame is None or frame.is_empty():
    return None
  columns = [
    column
    for column in _columns(name, frame)
    if column.field in frame.columns
    and (column.form != "text" or frame[column.field].count())
  ]
  rows = tuple(
    tuple(_cell(row, column) for column in columns)
    for row in frame.head(MOST_ROWS).iter_rows(named=True)
  )
  return Shown(
    name,
    caption,
    tuple(Cell(c.title, "", _kind(c, "")) for c in columns),
    rows,
    len(frame),
    any("test" in column.field for column in columns),
  )


def _columns(name: str, frame: pl.DataFrame) -> tuple[Column, ...]:
  """The columns of `COLUMNS`, or all columns of a table it does not name."""
  if name in COLUMNS:
    return COLUMNS[name]
  return tuple(
    Column(field, field.replace("_", " "), _form(dtype))
    for field, dtype in frame.schema.items()
  )


def _form(dtype: pl.DataType) -> str:
  if dtype.is_integer():
    return "count"
  return "number" if dtype.is_float() else "text"


def written(value: Any, form: str) -> str:
  """Writes one value; a dash for what is not known."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return "\u2013"
  text = FORMS[form](value)
  if not isinstance(value, str) and not text.strip("-0."):
    text = text.removeprefix("-")  # a rounded zero has no sign
  return text if isinstance(value, str) else text.replace("-", "\u2212")


def _cell(row: Mapping[str, Any], column: Column) -> Cell:
  value = row[column.field]
  text = written(value, column.form)
  if column.bounds is not None:
    low, high = (row.get(f"{column.bounds}{end}") for end in ("low", "high"))
    if not (low is None and high is None):
      bounds = (written(bound, column.form) for bound in (low, high))
      text += " [{}, {}]".format(*bounds)
  return Cell(
    text,
    "" if value is None else str(value),
    _kind(column, text),
    f"#figure-{value}" if column.form == "figure" else "",
  )


def _kind(column: Column, text: str) -> str:
  if column.form == "words":
    return "wrap"
  if column.form not in ("text", "flag", "figure"):
    return "n"
  return "long" if len(text) > 40 else ""
