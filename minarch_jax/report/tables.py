"""The tables of the report, one entry each.

The CSV files hold every column at full precision; the page shows a choice,
with intervals beside their estimates.
"""

from collections.abc import Callable
import json
from operator import itemgetter

import polars as pl

from minarch_jax import analysis
from minarch_jax.report.entries import Column, Table


def _measured(name: str, analyse: Callable[..., pl.DataFrame]):
  """Analyses a record table that only some experiments leave."""

  def compute(found: analysis.Analyses) -> pl.DataFrame | None:
    rows = found.others.get(name)
    if rows is None or rows.is_empty():
      return None
    return analyse(found.records, rows, found.config)

  return compute


def _selected(found: analysis.Analyses) -> pl.DataFrame:
  return analysis.selected(
    found.records.networks,
    found["minimal_parameters"],
    found.config.confidence,
  )


def _quantizers(found: analysis.Analyses) -> pl.DataFrame | None:
  frame = found["quantizer_damage"]
  return None if frame.is_empty() else frame


def _packs(found: analysis.Analyses) -> pl.DataFrame | None:
  """Lists the packs in study.json; nested values become JSON."""
  plain = (str, int, float, bool, type(None))
  rows = [
    {
      name: value if isinstance(value, plain) else json.dumps(value)
      for name, value in pack.items()
    }
    for pack in found.study.get("packs") or ()
  ]
  return pl.DataFrame(rows, infer_schema_length=None) if rows else None


def _stages(found: analysis.Analyses) -> pl.DataFrame | None:
  """Adds up the times of the packs of each stage."""
  packs = _packs(found)
  if packs is None:
    return None
  times = [name for name in packs.columns if name.endswith("_seconds")]
  if "stage" not in packs.columns:
    return pl.DataFrame()
  return packs.group_by("stage", maintain_order=True).agg(
    pl.len().alias("packs"), pl.col(times).sum()
  )


_FAMILY = (Column("dataset", "data set"), Column("family", "family"))
_SEEDS = Column("n_seeds", "seeds", "count")
_COUNT = Column("n_architectures", "architectures", "count")
_NETWORKS = (
  *_FAMILY,
  Column("architecture", "architecture"),
  Column("depth", "depth", "count"),
  Column("params", "params", "count"),
  _SEEDS,
)

_SETTING = (
  Column("criterion", "criterion"),
  Column("scope", "scope"),
  Column("schedule", "schedule"),
)
_LAYER = (
  Column("criterion", "criterion"),
  Column("granularity", "granularity"),
  Column("layer", "layer"),
  Column("groups", "groups", "count"),
  Column("sparsity", "sparsity", "sparsity"),
)
_FORMAT = (
  Column("bits", "bits", "count"),
  Column("quant_granularity", "scale per"),
)
_REDUNDANCY = Column(
  "redundancy", "redundancy (sparsity)", "sparsity", "redundancy_"
)
_DAMAGE = Column("damage", "damage (points)", "points", "damage_")

REGIME_COUNTS = Table(
  "regimes",
  "Architectures in each regime, and how they move when every threshold is "
  "halved or doubled.",
  lambda found: analysis.regime_counts(found["regimes"]),
  (
    *_FAMILY,
    Column("regime", "regime"),
    Column("halved", "thresholds halved", "count"),
    Column("as_set", "as set", "count"),
    Column("doubled", "thresholds doubled", "count"),
  ),
)

REGIME_BOUNDARIES = Table(
  "regimes",
  "Where along the parameter count one regime gives way to the next; a dash "
  "is a side that the grid leaves open.",
  itemgetter("regime_boundaries"),
  (
    *_FAMILY,
    Column("boundary", "boundary"),
    Column("p", "params", "count", "p_"),
    Column("status", "status"),
    _COUNT,
  ),
)

REGIMES = Table(
  "regimes",
  "Every architecture: regime, accuracy over seeds, probabilities of the "
  "regimes with Wilson intervals, reasons. A regime belongs to a recipe: "
  "initial values and steps stand beside it, the rest under Provenance.",
  itemgetter("regimes"),
  (
    *_NETWORKS,
    Column("label", "regime"),
    Column("mean_accuracy", "validation accuracy (%)", "percent"),
    Column("sigma", "seed deviation (points)", "points"),
    Column("p_unstable", "P(unstable)", "sparsity", "p_unstable_"),
    Column("p_learning", "P(learning)", "sparsity", "p_learning_"),
    Column("p_overfitting", "P(overfitting)", "sparsity", "p_overfitting_"),
    Column("diverged", "diverged", "count"),
    Column("stuck", "stuck", "count"),
    Column("init", "initial values"),
    Column("steps", "steps", "count"),
    Column("high_variance", "high variance", "flag"),
    Column("label_halved", "thresholds halved"),
    Column("label_doubled", "thresholds doubled"),
  ),
)

MINIMAL_PARAMETERS = Table(
  "minimal",
  "Minimal parameters with intervals.",
  itemgetter("minimal_parameters"),
  (
    *_FAMILY,
    Column("p_min", "P_min (params)", "count", "p_min_"),
    Column("status", "status"),
    Column("p_learn", "P_learn (params)", "count", "p_learn_"),
    Column("learn_status", "P_learn status"),
    Column("plateau", "plateau accuracy (%)", "percent"),
    Column("plateau_architecture", "most accurate"),
    _COUNT,
    _SEEDS,
  ),
)

SELECTED = Table(
  "minimal",
  "Accuracy of the networks chosen on validation. Test images were used once, "
  "after the choice.",
  _selected,
  (
    *_FAMILY,
    Column("role", "chosen as"),
    Column("architecture", "architecture"),
    Column("params", "params", "count"),
    _SEEDS,
    Column(
      "val_accuracy", "validation accuracy (%)", "percent", "val_accuracy_"
    ),
    Column("test_accuracy", "test accuracy (%)", "percent", "test_accuracy_"),
  ),
  tested=True,
)

CONVERGENCE_PHASES = Table(
  "convergence",
  "Lengths of the phases.",
  itemgetter("convergence_phases"),
  (
    *_NETWORKS,
    Column("chance", "at chance (epochs)", "epochs", "chance_"),
    Column("rapid", "rapid (epochs)", "epochs", "rapid_"),
    Column("refinement", "refinement (epochs)", "epochs", "refinement_"),
    Column("saturation", "saturation (epochs)", "epochs", "saturation_"),
  ),
)

CONTROLS = Table(
  "pruning",
  "Did pruning beat its controls: a dense network of as many parameters "
  "trained as long (small_dense), the mask found on new weights (reinit), the "
  "mask shuffled within each layer (shuffled), weights removed at random "
  "(random)? Differences of validation accuracy, paired by architecture and "
  "seed.",
  itemgetter("controls"),
  (
    *_FAMILY,
    Column("control", "control"),
    Column("schedule", "schedule"),
    Column("criterion", "criterion"),
    Column("scope", "scope"),
    Column("sparsity", "sparsity", "sparsity"),
    Column("pruned", "pruned (%)", "percent"),
    Column("other", "control (%)", "percent"),
    Column("difference", "pruned \u2212 control (points)", "points", ""),
    Column("verdict", "verdict"),
    _COUNT,
    _SEEDS,
    Column("step_ratio", "steps of control / pruned", "number"),
  ),
)

REDUNDANCY = Table(
  "pruning",
  "Redundancy averaged over the architectures of one depth.",
  itemgetter("redundancy"),
  (
    *_FAMILY,
    Column("depth", "depth", "count"),
    *_SETTING,
    _REDUNDANCY,
    _COUNT,
  ),
)

PRUNING_PHASES = Table(
  "pruning",
  "Redundancy (where the mean drop reaches the margin), the largest sparsity "
  "shown to be free, and collapse of every architecture.",
  itemgetter("pruning_phases"),
  (
    *_NETWORKS,
    *_SETTING,
    _REDUNDANCY,
    Column("shown_free", "shown free (sparsity)", "sparsity"),
    Column("collapse_at", "collapse at (sparsity)", "sparsity"),
    Column("collapse_low", "from", "sparsity"),
    Column("collapse_high", "to", "sparsity"),
  ),
)

SENSITIVITY = Table(
  "pruning",
  "Accuracy lost by pruning one layer alone.",
  _measured("sensitivity", analysis.layer_sensitivity),
  (
    *_NETWORKS,
    *_LAYER,
    Column("accuracy", "validation accuracy (%)", "percent"),
    Column("lost", "accuracy lost (points)", "points", "lost_"),
  ),
)

OVERLAP = Table(
  "pruning",
  "Overlap of the masks of two seeds under global scope, by layer and as a "
  "whole (all), beside random masks of that sparsity (chance) and the masks "
  "shuffled within their layers (shuffled).",
  _measured("overlap", analysis.mask_overlap),
  (
    *_NETWORKS,
    *_LAYER,
    Column("overlap", "overlap", "share", "overlap_"),
    Column("chance", "chance", "share"),
    Column("shuffled", "shuffled", "share"),
  ),
)

QUANTIZATION_SLOPES = Table(
  "quantization",
  "Change of the damage per tenfold parameters (Theil-Sen), in points.",
  itemgetter("quantization_slopes"),
  (
    *_FAMILY,
    *_FORMAT,
    Column("slope", "slope (points per decade)", "points", "slope_"),
    _COUNT,
  ),
)

QUANTIZATION = Table(
  "quantization",
  "Damage of every architecture.",
  itemgetter("quantization"),
  (
    *_NETWORKS,
    *_FORMAT,
    _DAMAGE,
  ),
)

ACTIVATION_QUANTIZATION = Table(
  "quantization",
  "Damage of every architecture with the inputs of its layers rounded too, "
  "over their ranges on training images; 32 bits: inputs alone.",
  itemgetter("activation_quantization"),
  (
    *_NETWORKS,
    Column("bits", "bits", "count"),
    Column("activation_bits", "activation bits", "count"),
    _DAMAGE,
  ),
)

QUANTIZER_DAMAGE = Table(
  "quantization",
  "Damage of every architecture by other number formats, and by integers over "
  "a narrower range.",
  _quantizers,
  (
    *_NETWORKS,
    Column("quantizer", "quantizer"),
    *_FORMAT,
    _DAMAGE,
  ),
)

GUIDANCE = Table(
  "together",
  "Compact and stable configurations, best first; where none is predicted to "
  "reach the target, the nearest, with what their lower bound falls short.",
  itemgetter("guidance"),
  (
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
    Column("target_accuracy", "target (%)", "percent"),
    Column("shortfall", "short of it (points)", "points"),
    Column("test_accuracy", "test accuracy (%)", "percent"),
    _SEEDS,
    Column("refused", "why none"),
  ),
  tested=True,
)

CLAIMS = Table(
  "claims",
  "The claims with what they rest on; n and the tables used are in the file.",
  itemgetter("claims"),
  (
    Column("claim", "claim", "claim"),
    Column("statement", "statement", "words"),
    Column("effect", "effect", "number", ""),
    Column("unit", "unit", "words"),
    Column("limit", "limit", "number"),
    Column("verdict", "verdict"),
    Column("power", "power (%)", "percent"),
    Column("figure", "figure", "figure"),
    Column("note", "note"),
  ),
)

STAGES = Table(
  "engine",
  "Time by stage.",
  _stages,
  (
    Column("stage", "stage"),
    Column("packs", "packs", "count"),
    Column("compile_seconds", "compilation (s)", "number"),
    Column("run_seconds", "running (s)", "number"),
    Column("forecast_seconds", "foretold (s)", "number"),
  ),
)

PACKS = Table(
  "engine",
  "Time by pack.",
  _packs,
  (
    Column("stage", "stage"),
    Column("dataset", "data set"),
    Column("parent", "parent"),
    Column("members", "members", "count"),
    Column("seeds", "seeds", "count"),
    Column("padding", "padding (ratio)", "number"),
    Column("compile_seconds", "compilation (s)", "number"),
    Column("run_seconds", "running (s)", "number"),
    Column("forecast_seconds", "foretold (s)", "number"),
  ),
)
