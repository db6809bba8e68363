"""Guidance: the smallest stable configurations that records support."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from minarch_jax import registries
from minarch_jax.analysis import statistics, tables
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
  seed is predicted to be accurate enough: the lower end of its accuracy on
  the validation images (Student's prediction interval) within the tolerance,
  which the same images judge, or the lower end on unseen images (with the
  sampling error of the validation images added) at the target. Where none is,
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
    (mean; low, high on the validation images; unseen_low, unseen_high on new
    ones), n_seeds, test_accuracy, pareto (no stable configuration
    of as few bytes is as accurate), target_accuracy (null where there is
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
  frame = _predictable(configurations(own, stable, config), dataset)
  best, reached = _best(own, stable)
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


def configurations(
  records: tables.Records, stable: pl.DataFrame, config: Config
) -> pl.DataFrame:
  """Every configuration of the stable architectures with its prediction."""
  rows = _rows(records).join(
    stable.select("family", "architecture"),
    on=["family", "architecture"],
    how="semi",
  )
  frame = (
    rows.group_by(SETTING)
    .agg(
      n_seeds=pl.col("seed").n_unique(),
      accuracy=pl.col("val_accuracy").mean(),
      deviation=pl.col("val_accuracy").std(),
      test_accuracy=pl.col("test_accuracy").mean(),
      **{name: pl.col(name).max() for name in COSTS},
    )
    .sort(SETTING)
  )
  # Of thousands of settings the smallest that reach a target are those whose
  # few seeds agree by luck: none is taken to vary less than its architecture
  # does where it still works. Pruned to pieces it varies most, which says
  # nothing of the others.
  who = ("family", "architecture")
  works = pl.col("accuracy") >= (
    pl.col("accuracy").max().over(who) - config.eps_accuracy - tables.TIE
  )
  usual = pl.when(works).then("deviation").median().over(who)
  deviation = frame.select(pl.max_horizontal("deviation", usual)).to_series()
  n = frame["n_seeds"].to_numpy()
  mean = frame["accuracy"].to_numpy()
  images = int(records.networks["num_validation"].max() or 0)  # pyright: ignore
  half = (
    deviation.to_numpy()
    * np.sqrt(1 + 1 / n)
    * statistics.t_quantile(n - 1, (1 + config.confidence) / 2)
  )
  drawn = statistics.wilson(np.round(mean * images), images, config.confidence)
  bounds = {
    "accuracy_low": mean - half,
    "accuracy_high": mean + half,
    "unseen_low": mean - np.hypot(half, mean - drawn[0]),
    "unseen_high": mean + np.hypot(half, drawn[1] - mean),
  }
  return frame.drop("deviation").with_columns(
    pl.Series(name, np.clip(values, 0, 1)).fill_nan(None)
    for name, values in bounds.items()
  )


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


def _best(records: tables.Records, stable: pl.DataFrame) -> tuple[str, float]:
  """The best stable configuration's architecture, and what it reaches.

  The maximum over thousands of noisy means is too large. So the configuration
  is chosen without each seed in turn and measured on that seed.
  """
  who = ["family", "architecture"]
  rows = _rows(records).join(stable.select(who), on=who, how="semi")
  groups, _, accuracy = tables.seed_matrix(rows, SETTING, "val_accuracy")
  n, mean, _ = statistics.moments(accuracy)
  known = ~np.isnan(accuracy) & (n > 1)[:, None]
  with np.errstate(invalid="ignore", divide="ignore"):
    others = (n * mean)[:, None] - accuracy
    others = np.where(known, others / (n - 1)[:, None], -np.inf)
  chosen = np.argmax(others, 0)
  values = accuracy[chosen, np.arange(accuracy.shape[1])]
  values = values[known.any(0)]
  best = groups["architecture"][int(np.argmax(np.where(n > 1, mean, -np.inf)))]
  return best, float(values.mean())


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
