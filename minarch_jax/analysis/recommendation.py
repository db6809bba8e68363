"""Guidance: the smallest stable configurations that records support."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax import registries
from minarch_jax.analysis import hits, statistics, tables
from minarch_jax.analysis.regimes import regimes, STABLE, THRESHOLDS
from minarch_jax.config import Config
from minarch_jax.records import SCHEMAS

SETTING = (
  *("family", "architecture", "depth", "params"),
  *("criterion", "scope", "granularity", "schedule", "sparsity"),
  *("bits", "activation_bits", "quantizer", "quant_granularity"),
)
BUDGETS = {"max_bytes": "bytes", "max_params": "nonzeros", "max_macs": "macs"}
COSTS = tuple(BUDGETS.values())


def recommend(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  dataset: str | None = None,
  target_accuracy: float | None = None,
  tolerance: float | None = None,
  limit: int = 10,
  outcomes: pl.DataFrame | None = None,
  **budgets: int | None,
) -> pl.DataFrame:
  """Ranks the compact stable configurations of one data set.

  The rules: report/method.md#guidance.

  A configuration is an architecture with its pruning and quantization
  setting. It is offered only if its architecture is not unstable and one more
  seed is predicted to be accurate enough: within the tolerance of the best
  stable configuration on the same images (Student's prediction interval of the
  difference, seed by seed), or at the target on unseen images. Where none is,
  the nearest are shown with what each falls short. All choices are made on
  validation; `test_accuracy` is shown beside and never selected on.

  Args:
    records: the tables.
    config: thresholds; `eps_accuracy` is the default tolerance.
    dataset: name; may be left out when the records hold one data set.
    target_accuracy: accuracy that a new seed must reach on unseen images, or
    tolerance: how far it may stay below what the best stable configuration
      reaches on average, on seeds that did not choose it.
      With a budget and neither of them, the most accurate that fit.
    limit: rows returned.
    outcomes: as in `regimes`.
    **budgets: the most a configuration may cost; None = no limit.
      max_bytes: model size in bytes.
      max_params: number of weights that are not zero.
      max_macs: multiply-accumulates per image.

  Returns:
    Configurations with rank (by bytes, then weights, then MACs; by the lower
    end of the accuracy where only a budget is given; by the shortfall where
    none reaches the target), shortfall (of that lower end to the target, 0
    where it is reached, null where there is none), predicted accuracy
    (mean; low, high of a new seed on images on which the best reaches its
    mean; unseen_low, unseen_high of a new seed on any others), n_seeds,
    test_accuracy, pareto (no stable configuration of as few bytes is as
    accurate), target_accuracy (null where there is
    none), and the best stable configuration's architecture and mean.

  Raises:
    ValueError: the records do not support any recommendation; says why and
      what would help.
    TypeError: a budget that is not one of `BUDGETS`.
  """
  limits = _limits(budgets)
  records, _ = tables.one_recipe(records)
  dataset = _chosen(records, dataset)
  _check_accuracy(target_accuracy=target_accuracy, tolerance=tolerance)
  own = tables.Records(
    *(t.filter(pl.col("dataset") == dataset) for t in records)
  )
  if outcomes is not None:
    outcomes = outcomes.filter(pl.col("dataset") == dataset)
  stable = _stable(regimes(own, config, outcomes=outcomes))
  frame, reference = configurations(own, stable, config)
  frame = _predictable(frame, dataset)
  best, reached = reference.architecture, reference.accuracy
  target = target_accuracy
  if target is None and (tolerance is not None or not limits):
    target = reached - (config.eps_accuracy if tolerance is None else tolerance)
  low = "accuracy_low" if target_accuracy is None else "unseen_low"
  fitting = _within(_reaching(frame, target, low), limits, dataset)
  order = [*COSTS, "accuracy", *SETTING]
  descending = [name == "accuracy" for name in order]
  if target is None:
    order, descending = ["accuracy_low", *order], [True, *descending]
  else:
    order, descending = ["shortfall", *order], [False, *descending]
  return (
    fitting.sort(order, descending=descending)
    .head(limit)
    .with_row_index("rank", offset=1)
    .with_columns(
      dataset=pl.lit(dataset),
      target_accuracy=pl.lit(target, pl.Float64),
      best_accuracy=pl.lit(reached),
      best_architecture=pl.lit(best),
    )
    .pipe(tables.with_thresholds, config, *THRESHOLDS)
    .select("dataset", pl.exclude("dataset"))
  )


def guidance(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  outcomes: pl.DataFrame | None = None,
  limit: int = 5,
) -> pl.DataFrame:
  """Recommends for every data set within `eps_accuracy` of its best.

  Returns:
    The rows of `recommend` for each data set (the nearest, with their
    shortfall, where none reaches the target), and `refused`: the reason, on a
    row without a configuration, where the records support none.
  """
  parts = [pl.DataFrame(schema=_SCHEMA)]
  for dataset in sorted(records.networks["dataset"].unique()):
    try:
      part = recommend(
        records, config, dataset=dataset, limit=limit, outcomes=outcomes
      )
    except ValueError as error:
      part = pl.DataFrame({"dataset": [dataset], "refused": [str(error)]})
    parts.append(part)
  frame = pl.concat(parts, how="diagonal_relaxed")
  return tables.with_thresholds(frame, config, *THRESHOLDS)


_SCHEMA = (
  {"dataset": pl.String, "rank": pl.UInt32}
  | {name: SCHEMAS["compression"][name] for name in SETTING}
  | {"n_seeds": pl.UInt32, "accuracy": pl.Float64, "test_accuracy": pl.Float64}
  | {name: pl.Int64 for name in COSTS}
  | {
    f"{kind}_{end}": pl.Float64
    for kind in ("accuracy", "unseen")
    for end in ("low", "high")
  }
  | {"shortfall": pl.Float64, "pareto": pl.Boolean}
  | {"target_accuracy": pl.Float64}
  | {"best_accuracy": pl.Float64, "best_architecture": pl.String}
  | {"refused": pl.String}
)


def heading(frame: pl.DataFrame) -> str:
  """Says what the rows of `recommend` were asked for, and whether they are."""
  first = frame.row(0, named=True)
  text = (
    f"{first['dataset']}: the best stable configuration, of "
    f"{first['best_architecture']}, reaches {first['best_accuracy']:.4f} on "
    "seeds that did not choose it; wanted of a new seed: "
  )
  if first["target_accuracy"] is None:
    return text + "the most"
  text += f"{first['target_accuracy']:.4f}"
  if first["shortfall"] > 0:
    text += (
      "; no configuration is predicted to reach that. The nearest fall short "
      f"by {100 * first['shortfall']:.2f} points or more: lower the target, or "
      "add seeds or validation images"
    )
  return text


def in_words(frame: pl.DataFrame) -> pl.DataFrame:
  """Puts how networks are pruned and rounded into words, for a terminal.

  Of criterion, scope, granularity and schedule those are named that are not
  the usual: magnitude, global, element, oneshot.

  Returns:
    architecture, pruned, rounded, bytes, accuracy (of the seeds), at_least (of
    a new seed), on_new_images (of a new seed on others, at least), test, and
    shortfall where there is one.
  """
  percent = (100 * pl.col("sparsity")).round().cast(pl.Int64)
  other = pl.concat_str(
    [
      pl.when(pl.col(name) != tables.FIRST[name][0]).then(name)
      for name in ("criterion", "scope", "granularity", "schedule")
    ],
    separator=", ",
    ignore_nulls=True,
  ).replace("", None)
  pruned = pl.coalesce(
    pl.format("{} % ({})", percent, other), pl.format("{} %", percent)
  )
  rounded = pl.format("{} bits per {}", "bits", "quant_granularity")
  words = frame.select(
    "architecture",
    pl.when(sparsity=0).then(pl.lit("not")).otherwise(pruned).alias("pruned"),
    pl.when(bits=32).then(pl.lit("not")).otherwise(rounded).alias("rounded"),
    "bytes",
    "accuracy",
    pl.col("accuracy_low").alias("at_least"),
    pl.col("unseen_low").alias("on_new_images"),
    pl.col("test_accuracy").alias("test"),
    "shortfall",
  )
  short = (frame["shortfall"].fill_null(0) > 0).any()
  return words if short else words.drop("shortfall")


class Reference(NamedTuple):
  """What the best stable configuration reaches.

  Attributes:
    architecture: of the configuration that all seeds choose.
    by_seed: [S] accuracy of each seed in the configuration that the others
      choose: the maximum over thousands of noisy means would be too large.
    accuracy: their mean.
  """

  architecture: str
  by_seed: np.ndarray
  accuracy: float


def configurations(
  records: tables.Records, stable: pl.DataFrame, config: Config
) -> tuple[pl.DataFrame, Reference]:
  """Every configuration of the stable architectures with its prediction."""
  who = ["family", "architecture"]
  rows = _rows(records).join(stable.select(who), on=who, how="semi")
  pivot = tables.Pivot(rows, SETTING)
  frame, accuracy = pivot.groups, pivot.means("val_accuracy")
  means = rows.group_by(SETTING).agg(
    pl.col("test_accuracy").mean(),
    **{name: pl.col(name).max() for name in COSTS},
  )
  n, mean, deviation = statistics.moments(accuracy)
  frame = frame.join(
    means, on=SETTING, how="left", maintain_order="left", nulls_equal=True
  ).with_columns(
    n_seeds=pl.Series(n, dtype=pl.UInt32), accuracy=pl.Series(mean)
  )
  reference = _reference(frame, accuracy)
  # On the same images the best and the others err together.
  behind = accuracy - reference.by_seed
  counted, lag, spread = statistics.moments(behind)
  with np.errstate(divide="ignore"):  # none counted, as with one seed
    wider = np.sqrt(1 + 1 / counted)
  half = _usual(frame, spread, config) * wider
  half = half * statistics.t_quantile(counted - 1, (1 + config.confidence) / 2)
  unseen = _unseen(records, frame, _usual(frame, deviation, config), config)
  middle = reference.accuracy + lag
  bounds = {
    "accuracy_low": middle - half,
    "accuracy_high": middle + half,
    "unseen_low": mean - unseen,
    "unseen_high": mean + unseen,
  }
  return frame.with_columns(
    pl.Series(name, np.clip(values, 0, 1)).fill_nan(None)
    for name, values in bounds.items()
  ), reference


def _usual(
  frame: pl.DataFrame, deviation: np.ndarray, config: Config
) -> np.ndarray:
  """Deviations over seeds, none below what is usual of its architecture.

  Of thousands of settings the smallest that reach a target are those whose few
  seeds agree by luck: none is taken to vary less than its architecture does
  where it still works. Pruned to pieces it varies most, which says nothing of
  the others.
  """
  who = ("family", "architecture")
  works = pl.col("accuracy") >= (
    pl.col("accuracy").max().over(who) - config.eps_accuracy - tables.TIE
  )
  usual = pl.when(works).then("deviation").median().over(who)
  known = pl.Series("deviation", deviation).fill_nan(None)
  return (
    frame.with_columns(known)
    .select(pl.max_horizontal("deviation", usual))
    .to_series()
    .cast(pl.Float64)
    .fill_null(np.nan)
    .to_numpy()
  )


def _unseen(
  records: tables.Records,
  frame: pl.DataFrame,
  deviation: np.ndarray,
  config: Config,
) -> np.ndarray:
  """Half widths of predictions of a new seed on images of the same source.

  Of the deviation over seeds, what images alone give is not the seed's own; the
  mean is as uncertain as seeds and images make it.
  """
  networks = records.networks
  images = float(networks["num_validation"].max())  # pyright: ignore
  seeds = networks.unique("seed")["fold"].to_numpy()
  n, mean = frame["n_seeds"].to_numpy(), frame["accuracy"].to_numpy()
  part = hits.from_numbers(mean, images, seeds[None], n)
  error, freedom = statistics.standard_error(mean, deviation, n, part)
  own = np.maximum(np.square(deviation) - part.noise, 0)
  return np.sqrt(own + error**2) * statistics.t_quantile(
    freedom, (1 + config.confidence) / 2
  )


def _reference(frame: pl.DataFrame, accuracy: np.ndarray) -> Reference:
  n, mean, _ = statistics.moments(accuracy)
  known = ~np.isnan(accuracy) & (n > 1)[:, None]
  with np.errstate(invalid="ignore", divide="ignore"):
    others = (n * mean)[:, None] - accuracy
    others = np.where(known, others / (n - 1)[:, None], -np.inf)
  chosen = np.argmax(others, 0)
  values = accuracy[chosen, np.arange(accuracy.shape[1])]
  values = np.where(known.any(0), values, np.nan)
  best = int(np.argmax(np.where(n > 1, mean, -np.inf)))
  _, reached, _ = statistics.moments(values)
  return Reference(frame["architecture"][best], values, float(reached))


def _rows(records: tables.Records) -> pl.DataFrame:
  """Compression rows; for architectures without any, the trained networks.

  No cost counts the bits of activations: narrow ones could win by luck alone.
  Other quantizers are measured on dense networks only: a ranking would set them
  unpruned beside integers that are pruned as well.
  """
  names = [*SETTING, "seed", "val_accuracy", "test_accuracy", *COSTS]
  real = tables.plain(tables.under(records.compression)).select(names)
  plain = records.networks.join(
    real, on=["family", "architecture"], how="anti"
  ).with_columns(
    criterion=pl.lit("none"),
    scope=pl.lit("none"),
    granularity=pl.lit("none"),
    schedule=pl.lit("none"),
    sparsity=pl.lit(0.0),
    bits=pl.lit(32, pl.Int64),
    activation_bits=pl.lit(32, pl.Int64),
    quantizer=pl.lit("none"),
    quant_granularity=pl.lit("none"),
    bytes=4 * pl.col("params"),
    nonzeros=pl.col("params"),
  )
  return pl.concat([real, plain.select(names)])


def pareto(frame: pl.DataFrame) -> pl.Series:
  """Marks rows that no other row beats in bytes and mean accuracy."""
  bytes_, accuracy = frame["bytes"].to_numpy(), frame["accuracy"].to_numpy()
  order = np.lexsort((-accuracy, bytes_))
  best = np.maximum.accumulate(accuracy[order])
  before = np.concatenate([[-np.inf], best[:-1]])
  front = np.zeros(len(frame), bool)
  front[order] = accuracy[order] > before + 1e-12
  return pl.Series(front)


def _chosen(records: tables.Records, dataset: str | None) -> str:
  known = sorted(records.networks["dataset"].unique())
  if not known:
    raise ValueError("the records hold no trained network; run a study first")
  if dataset is None and len(known) == 1:
    return known[0]
  if dataset is None or dataset not in known:
    raise ValueError(
      f"data set {dataset!r} is not in these records; name one of "
      f"{', '.join(known)}{registries.nearest(dataset, known)}"
    )
  return dataset


def _check_accuracy(**given: float | None) -> None:
  asked = {name: v for name, v in given.items() if v is not None}
  if len(asked) > 1:
    raise ValueError(
      f"give either of {' and '.join(f'{k}={v}' for k, v in asked.items())}"
    )
  for name, value in asked.items():
    if not 0 <= value <= 1:
      raise ValueError(f"{name}={value} is not in [0, 1]; 1 stands for 100 %")


def _limits(asked: Mapping[str, int | None]) -> dict[str, int]:
  """The limits that were given, by the column that they limit."""
  given = {}
  for name, value in asked.items():
    if name not in BUDGETS:
      raise TypeError(
        f"recommend() has no argument {name!r}"
        f"{registries.nearest(name, BUDGETS)}"
      )
    if value is not None and value <= 0:
      raise ValueError(f"{name}={value} leaves nothing; give a positive budget")
    if value is not None:
      given[BUDGETS[name]] = value
  return given


def _stable(labels: pl.DataFrame) -> pl.DataFrame:
  """The architectures that are not unstable, the most accurate first."""
  stable = labels.filter(STABLE)
  if not len(stable):
    raise ValueError(
      f"no architecture of {labels['dataset'][0]} is stable in these records "
      f"({len(labels)} are unstable); train larger ones, longer, or relax "
      "--eps_sigma or --max_failed"
    )
  return stable.sort("mean_accuracy", "params", descending=[True, False])


def _predictable(frame: pl.DataFrame, dataset: str) -> pl.DataFrame:
  known = frame.filter(pl.col("n_seeds") > 1)
  if not len(known):
    raise ValueError(
      f"{dataset} has one seed per architecture, which cannot say what a new "
      "seed would reach; train with --num_seeds=2 or more (5 advised)"
    )
  return known.with_columns(pareto=pareto(known))


def _reaching(
  frame: pl.DataFrame, target: float | None, low: str
) -> pl.DataFrame:
  """Adds the shortfall; keeps what has none, or all where all fall short."""
  if target is None:
    return frame.with_columns(shortfall=pl.lit(None, pl.Float64))
  short = pl.lit(target) - pl.col(low)
  frame = frame.with_columns(
    shortfall=pl.when(short > tables.TIE).then(short).otherwise(0.0)
  )
  reaching = frame.filter(pl.col("shortfall") == 0)
  return reaching if len(reaching) else frame


def _within(
  offered: pl.DataFrame, limits: dict[str, int], dataset: str
) -> pl.DataFrame:
  fitting = offered
  for name, most in limits.items():
    fitting = fitting.filter(pl.col(name) <= most)
  if not len(fitting):
    least = offered.sort(COSTS).row(0, named=True)
    raise ValueError(
      f"no configuration of {dataset} that is accurate enough fits the "
      f"budget; the smallest is {least['architecture']} at sparsity "
      f"{least['sparsity']} and {least['bits']} bits: {least['bytes']} bytes, "
      f"{least['nonzeros']} weights, {least['macs']} MACs"
    )
  return fitting
