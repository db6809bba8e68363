"""The smallest network that reliably learns: P_min, P_learn and P_at."""

from collections.abc import Sequence
import concurrent.futures
from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import monotone, statistics, tables
from minarch_jax.analysis.hits import Hits
from minarch_jax.analysis.outcomes import known_outcomes
from minarch_jax.config import Config

Array = np.ndarray


class Grid(NamedTuple):
  """One family on one data set, architectures sorted by size.

  Attributes:
    names: [A] architectures.
    params: [A] parameter counts.
    accuracy: [A, S] final validation accuracy, nan = not trained.
    classes: [A] size class; architectures matched in size share one.
    rows: int [A, S], where hits stand; -1 = not known.
    noise: [A] the part of the variance over seeds that images alone give.
    missing: [A] what images add to the variance of a mean beyond that.
    floor: least accuracy above chance.
  """

  names: list[str]
  params: Array
  accuracy: Array
  classes: Array
  rows: Array
  noise: Array
  missing: Array
  floor: float


class Fit(NamedTuple):
  """Replicates of the frontier's judgement.

  Attributes:
    size: [C] log10 P of each class's best architecture.
    last_bad: [B] log10 P of the largest class that is not good enough.
    first_good: [B] log10 P of the class after it.
    plateau: [B] best fitted mean.
    probabilities: [B].
  """

  size: Array
  last_bad: Array
  first_good: Array
  plateau: Array
  probabilities: Array


def grid(rows: pl.DataFrame, config: Config) -> Grid:
  """Arranges the outcomes of one (data set, family)."""
  by = ("params", "architecture")
  pivot = tables.Pivot(rows, by)
  groups = pivot.groups
  images = groups.join(
    rows.group_by(by).agg(pl.col("image_noise", "image_missing").first()),
    on=by,
    how="left",
    maintain_order="left",
  )
  params = groups["params"].to_numpy()
  return Grid(
    groups["architecture"].to_list(),
    params,
    pivot.means("val_accuracy"),
    tables.size_classes(params, config.match_tolerance),
    pivot.numbers("row"),
    images["image_noise"].to_numpy(),
    images["image_missing"].to_numpy(),
    float(rows["floor"].max()) if len(rows) else 1.0,  # pyright: ignore
  )


def minimal_parameters(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  outcomes: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Estimates P_min and P_learn of every (data set, family).

  The definitions: report/method.md#minimal-parameters.

  P_min is the size of the smallest architecture from which on the frontier
  stays within `eps_accuracy` of the plateau with a seed standard deviation of
  at most `eps_sigma`. The frontier takes the best of architectures matched in
  size, and is the running maximum along P where the best of a size stays behind
  it by more than `eps_accuracy`: a poor shape says nothing of its size. Mean
  accuracy is fitted increasing and variance decreasing in log P
  (isotonic regression), and the plateau is the best fitted mean, which does
  not reward the luckiest of many architectures.

  The interval is a bootstrap over seeds, as blocks across architectures, and
  over architectures (residuals about the fit beyond seed noise). Between two
  sizes of the grid the boundary is anywhere: each replicate is spread over
  its bracket, and the upper end counts whole.

  P_learn is where the probability that a seed does not fail reaches
  `learnable`: logistic in log P, likelihood-ratio interval.

  Where seeds have validation images of their own, resampling seeds resamples
  images; where several share theirs, images are resampled as well.

  Returns:
    One row per (data set, family). A null bound means that the grid leaves
    that side open; `status` is bracketed, below grid (the smallest
    architecture is already good), above grid (the largest is not), one seed
    (no standard deviation, hence no P_min) or no data. `p_below` is the
    largest size that is not good enough.
  """
  outcomes = known_outcomes(records, config, outcomes)
  hits = Hits.of(records.hits)

  def row(part: tuple[Sequence[object], pl.DataFrame]) -> dict:
    (dataset, family), group = part
    own = p_min(grid(group, config), hits, config) | p_learn(group, config)
    return {"dataset": dataset, "family": family} | own

  groups = outcomes.sort("dataset", "family").group_by(
    "dataset", "family", maintain_order=True
  )
  # Drawing resamples lets other threads go on.
  with concurrent.futures.ThreadPoolExecutor(2) as threads:
    rows = list(threads.map(row, groups))
  return tables.with_thresholds(
    pl.DataFrame(rows, schema=_SCHEMA),
    config,
    *("max_failed", "learnable", "match_tolerance", "confidence"),
  ).with_columns(
    eps_acc=pl.lit(config.eps_accuracy), eps_sigma=pl.lit(config.eps_sigma)
  )


_SCHEMA = (
  {"dataset": pl.String, "family": pl.String}
  | {
    f"{name}{end}": pl.Float64
    for name in ("p_min", "p_learn")
    for end in ("", "_low", "_high")
  }
  | {name: pl.Float64 for name in ("p_below", "plateau", "sigma_high")}
  | {"plateau_architecture": pl.String, "architecture": pl.String}
  | {"n_architectures": pl.Int64, "n_seeds": pl.Int64}
  | {"status": pl.String, "learn_status": pl.String}
)


def p_min(family: Grid, hits: Hits, config: Config) -> dict:
  """The row of `minimal_parameters` that concerns P_min."""
  n, mean, deviation = statistics.moments(family.accuracy)
  row = {
    "p_min": None,
    "p_min_low": None,
    "p_min_high": None,
    "p_below": None,
    "plateau": None,
    "sigma_high": None,
    "plateau_architecture": None,
    "architecture": None,
    "n_architectures": len(family.names),
    "n_seeds": int(n.max(initial=0)),
    "status": "no data",
  }
  if not len(family.names):
    return row
  row["plateau_architecture"] = family.names[int(np.argmax(mean))]
  if np.isnan(deviation).all():
    return row | {"plateau": float(mean.max()), "status": "one seed"}
  point = judge(
    family,
    mean[None],
    np.maximum(deviation**2 - family.noise, 0)[None],
    np.ones(1),
    config,
    None,
  )
  row["plateau"] = float(point.plateau[0])
  row["status"], row["p_min"], row["p_below"] = _status(point, 0)
  winners = best_of_class(family, mean)
  good = winners[point.size > point.last_bad[0]]
  counted = winners[
    (point.size > point.last_bad[0]) & on_frontier(mean[winners], config)
  ]
  if row["status"] == "bracketed":
    row["architecture"] = family.names[good[0]]
  row["sigma_high"] = statistics.deviation_bound(
    deviation[counted], n[counted], config.confidence, family.noise[counted]
  )
  fit = replicates(family, hits, config, target=None)
  row["p_min_low"], row["p_min_high"] = interval(fit, config)
  return row


def p_at(
  records: tables.Records,
  target: float,
  config: Config = tables.DEFAULTS,
  *,
  outcomes: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Finds the smallest size whose fitted mean accuracy reaches `target`.

  Returns:
    dataset, family, target, p, p_low, p_high, status per (data set, family),
    estimated as `minimal_parameters` does, on accuracy alone.

  Raises:
    ValueError: the target is not an accuracy.
  """
  if not 0 < target <= 1:
    raise ValueError(f"target accuracy {target} is not in (0, 1]")
  outcomes = known_outcomes(records, config, outcomes)
  hits = Hits.of(records.hits)
  rows = []
  for (dataset, family), group in outcomes.sort("dataset", "family").group_by(
    "dataset", "family", maintain_order=True
  ):
    own = grid(group, config)
    _, mean, _ = statistics.moments(own.accuracy)
    point = judge(
      own, mean[None], np.zeros_like(mean)[None], np.ones(1), config, target
    )
    status, p, _ = _status(point, 0)
    low, high = interval(replicates(own, hits, config, target), config)
    rows.append((dataset, family, target, p, low, high, status))
  names = ("dataset", "family", "target", "p", "p_low", "p_high", "status")
  types = (*[pl.String] * 2, *[pl.Float64] * 4, pl.String)
  frame = pl.DataFrame(
    rows, schema=dict(zip(names, types, strict=True)), orient="row"
  )
  return tables.with_thresholds(frame, config, "match_tolerance", "confidence")


def _status(fit: Fit, b: int) -> tuple[str, float | None, float | None]:
  """Says where the boundary of replicate b is: status, P, the size below."""
  good, bad = fit.first_good[b], fit.last_bad[b]
  below = None if np.isneginf(bad) else float(round(10**bad))
  if np.isposinf(good):
    return "above grid", None, below
  if np.isneginf(bad):
    return "below grid", None, None
  return "bracketed", float(round(10**good)), below


def interval(fit: Fit, config: Config) -> tuple[float | None, float | None]:
  """The interval of a boundary; None on a side that the grid leaves open."""
  if not len(fit.last_bad):
    return None, None
  tail = (1 - config.confidence) / 2
  rng = statistics.generator(fit.size.tolist())
  spread = statistics.within(fit.last_bad, fit.first_good, rng)
  low = statistics.quantile(spread, fit.probabilities, tail)
  high = statistics.quantile(fit.first_good, fit.probabilities, 1 - tail)
  return (
    float(10**low) if np.isfinite(low) else None,
    float(np.rint(10**high)) if np.isfinite(high) else None,
  )


def best_of_class(family: Grid, mean: Array) -> Array:
  """Index of the best architecture of each size class: the frontier."""
  order = np.lexsort((-mean, family.classes))
  return order[np.unique(family.classes[order], return_index=True)[1]]


def on_frontier(best: Array, config: Config) -> Array:
  """Which means [..., C] along P stay near the running maximum.

  Those near it keep their own, because the maximum of noisy means is too large.
  """
  reached = np.maximum.accumulate(best, axis=-1)
  return best >= reached - config.eps_accuracy - tables.TIE


def judge(
  family: Grid,
  means: Array,
  variances: Array,
  probabilities: Array,
  config: Config,
  target: float | None,
) -> Fit:
  """Finds the boundary in replicates of means and variances, each [B, A].

  With a target, good means that the fitted mean reaches it; without, that
  P_min's two conditions hold and the plateau is above chance at all.
  """
  # One point per size class: its best mean, and the variance of whichever
  # architecture won in that replicate. A winner without a variance (one seed)
  # hardly weighs in the fit of the variances.
  starts = np.unique(family.classes, return_index=True)[1]
  size = np.log10(family.params[best_of_class(family, means[0])].astype(float))
  best = np.maximum.reduceat(means, starts, axis=1)
  reached = np.maximum.accumulate(best, axis=1)
  level = np.where(on_frontier(best, config), best, reached)
  known = ~np.isnan(variances)
  winner = means >= np.repeat(best, np.diff([*starts, means.shape[1]]), 1)
  spread = np.maximum.reduceat(
    np.where(winner & known, variances, 0.0), starts, axis=1
  )
  trust = np.maximum.reduceat(
    np.where(winner & known, 1.0, 1e-6), starts, axis=1
  )
  fitted = monotone.isotonic(level, 1.0)
  plateau = fitted[:, -1]
  if target is None:
    noise = monotone.isotonic(spread, trust, increasing=False)
    bad = (fitted < plateau[:, None] - config.eps_accuracy - tables.TIE) | (
      noise > config.eps_sigma**2 + tables.TIE
    )
    bad |= (plateau < family.floor - tables.TIE)[:, None]
  else:
    bad = fitted < target - tables.TIE
  # The boundary follows the last class that is bad, whatever comes before it:
  # from P_min on all must be good.
  padded = np.concatenate([[-np.inf], size, [np.inf]])
  last = np.where(bad.any(1), len(size) - np.argmax(bad[:, ::-1], 1), 0)
  return Fit(size, padded[last], padded[last + 1], plateau, probabilities)


def replicates(
  family: Grid, hits: Hits, config: Config, target: float | None
) -> Fit:
  """Bootstraps the boundary over seeds (blocks), over images and over
  architectures."""
  accuracy = family.accuracy
  num_architectures, num_seeds = accuracy.shape
  n, mean, deviation = statistics.moments(accuracy)
  rng = statistics.generator(family.names, family.params.tolist(), num_seeds)
  if not num_architectures or num_seeds < 2:
    none = np.empty(0)
    return Fit(none, none, none, none, none)
  num = config.num_bootstrap
  counts = rng.multinomial(
    num_seeds, np.full(num_seeds, 1 / num_seeds), size=num
  ).astype(float)
  residuals = shape_residuals(family, mean, config)
  drawn = hits.resampled(family.rows, family.missing, num, rng)
  present = (~np.isnan(accuracy)).astype(float)
  filled = np.where(present > 0, accuracy - mean[:, None], 0.0)
  size = max(1, 4_000_000 // num_architectures)  # replicates held at a time
  parts = []
  for begin in range(0, num, size):
    chunk = counts[begin : begin + size]
    weight = np.maximum(chunk @ present.T, tables.TIE)
    shift = chunk @ filled.T / weight
    variance = chunk @ (filled**2).T / weight - shift**2
    # The plug-in variance of n seeds falls short by (n - 1) / n: once in the
    # mean of a replicate, twice (in the sample, too) in its variance.
    repair = np.where(n > 1, n / np.maximum(n - 1, 1), np.nan)
    means = (
      mean
      + shift * np.sqrt(np.where(n > 1, repair, 1.0))
      + drawn[begin : begin + size]
      + rng.choice(residuals, size=shift.shape)
    )
    parts.append(
      judge(
        family,
        means,
        np.maximum(np.maximum(variance, 0) * repair**2 - family.noise, 0),
        np.full(len(chunk), 1 / num),
        config,
        target,
      )
    )
  point = best_of_class(family, mean)
  size_of = np.log10(family.params[point].astype(float))
  return Fit(
    size_of,
    *(
      np.concatenate(column)
      for column in zip(*(p[1:] for p in parts), strict=True)
    ),
  )


def shape_residuals(family: Grid, mean: Array, config: Config) -> Array:
  """How far architectures of like size differ beyond seed noise.

  Residuals of the seed means about the isotonic fit, over the sizes within
  `eps_accuracy` of the plateau, scaled so that their variance is what seed
  noise does not explain; [0] when it explains all.
  """
  zero = np.zeros(1)
  fit = monotone.isotonic(mean[None], 1.0)[0]
  top = fit >= fit[-1] - config.eps_accuracy - tables.TIE
  residual = (mean - fit)[top]
  freedom = top.sum() - len(np.unique(fit[top]))
  if freedom < 1 or np.ptp(residual) < tables.TIE:
    return zero
  centred = family.accuracy[top] - mean[top][:, None]
  with np.errstate(invalid="ignore"):
    common = np.nan_to_num(np.nansum(centred, 0) / (~np.isnan(centred)).sum(0))
  count = (~np.isnan(centred)).sum()
  own = np.nansum((centred - common) ** 2)
  seeds = count / top.sum()
  spare = max((top.sum() - 1) * (seeds - 1), 1)
  excess = (residual**2).sum() / freedom - own / spare / seeds
  residual = residual - residual.mean()
  return residual * np.sqrt(max(excess, 0.0) / (residual**2).mean())


def p_learn(rows: pl.DataFrame, config: Config) -> dict:
  """The row of `minimal_parameters` that concerns P_learn."""
  counts = (
    rows.group_by("params")
    .agg(learned=(~pl.col("failed")).sum(), n=pl.len())
    .sort("params")
  )
  x = np.log10(counts["params"].to_numpy())
  where = monotone.located(
    *monotone.threshold(
      x,
      counts["learned"].to_numpy().astype(float),
      counts["n"].to_numpy().astype(float),
      config.learnable,
      config.confidence,
    ),
    x,
  )
  return {
    "p_learn": where["p"],
    "p_learn_low": where["p_low"],
    "p_learn_high": where["p_high"],
    "learn_status": where["status"],
  }


def selected(
  networks: pl.DataFrame, minimal: pl.DataFrame, confidence: float
) -> pl.DataFrame:
  """Gives the accuracy of the networks that validation selected.

  Per data set and family: the architecture of the highest plateau and the
  smallest reliable one. Test accuracy is read here, after the choice.
  """
  roles = {
    "plateau_architecture": "most accurate",
    "architecture": "smallest reliable",
  }
  chosen = (
    minimal.unpivot(
      on=list(roles),
      index=["dataset", "family"],
      variable_name="role",
      value_name="chosen",
    )
    .rename({"chosen": "architecture"})
    .drop_nulls("architecture")
    .with_columns(pl.col("role").replace(roles))
  )
  keys = ["dataset", "architecture", "params"]
  for split in ("val", "test"):
    column = f"{split}_accuracy"
    means = tables.mean_interval(networks, keys, split, confidence).select(
      *keys,
      pl.col("n").alias("n_seeds"),
      pl.col("mean").alias(column),
      pl.col("low").clip(0, 1).alias(f"{column}_low"),
      pl.col("high").clip(0, 1).alias(f"{column}_high"),
    )
    on = [key for key in (*keys, "n_seeds") if key in chosen.columns]
    chosen = chosen.join(means, on=on, how="left", maintain_order="left")
  return chosen.sort("dataset", "family", "role", maintain_order=True)


# --- the transition ----------------------------------------------------------


def plateau(family: Grid) -> float:
  """The best mean of a family after isotonic regression along P."""
  _, mean, _ = statistics.moments(family.accuracy)
  return float(_rising(family, mean[None])[0, -1])


def _rising(family: Grid, means: Array) -> Array:
  """The best means of the sizes, fitted increasing: [B, A] to [B, C]."""
  starts = np.unique(family.classes, return_index=True)[1]
  return monotone.isotonic(np.maximum.reduceat(means, starts, axis=1), 1.0)


def sharpness(
  records: tables.Records,
  config: Config = tables.DEFAULTS,
  *,
  outcomes: pl.DataFrame | None = None,
) -> pl.DataFrame:
  """Measures how wide the transition from chance to the plateau is.

  Decades of P between `TRANSITION` of the way, on the frontier's fitted means,
  linear in log P between sizes; bootstrapped over seeds.

  Returns:
    dataset, family, decades, decades_low, decades_high, and `open`: already
    the smallest size is beyond the beginning, so that the width is at least
    that. Null without two seeds or where the plateau is not above chance.
  """
  outcomes = known_outcomes(records, config, outcomes)
  rows = []
  for key, group in outcomes.sort("dataset", "family").group_by(
    "dataset", "family", maintain_order=True
  ):
    family = grid(group, config)
    chance = float(group["chance"].max())  # pyright: ignore
    width, low, high, begun = _width(family, chance, config)
    rows.append((*key, width, low, high, begun))
  names = ("decades", "decades_low", "decades_high")
  schema = {"dataset": pl.String, "family": pl.String}
  schema |= dict.fromkeys(names, pl.Float64) | {"open": pl.Boolean}
  return pl.DataFrame(rows, schema=schema, orient="row").fill_nan(None)


TRANSITION = (0.1, 0.9)


def _width(
  family: Grid, chance: float, config: Config
) -> tuple[float, float, float, bool]:
  """Width of one family's transition, its interval, and whether it is open."""
  none = (np.nan, np.nan, np.nan, False)
  n, mean, _ = statistics.moments(family.accuracy)
  if not len(n) or n.max() < 2 or plateau(family) < family.floor:
    return none
  num_seeds = family.accuracy.shape[1]
  rng = statistics.generator("width", family.names, num_seeds)
  counts, chances = statistics.resamples(num_seeds, config.num_bootstrap, rng)
  counts = np.concatenate([np.ones((1, num_seeds)), counts])
  known = ~np.isnan(family.accuracy)
  rest = np.where(known, family.accuracy - mean[:, None], 0)
  shift = counts @ rest.T / np.maximum(counts @ known.T, tables.TIE)
  # A bootstrapped mean of n seeds varies too little by (n - 1) / n.
  means = mean + np.sqrt(n / np.maximum(n - 1, 1)) * shift
  means[0] = mean
  size = np.log10(family.params[best_of_class(family, mean)].astype(float))
  fitted = _rising(family, means)
  way = (fitted - chance) / np.maximum(fitted[:, -1:] - chance, tables.TIE)
  ends = [
    np.array([np.interp(level, row, size) for row in way])
    for level in TRANSITION
  ]
  widths = ends[1] - ends[0]
  tail = (1 - config.confidence) / 2
  low, high = (
    float(statistics.quantile(widths[1:], chances, level))
    for level in (tail, 1 - tail)
  )
  width = float(widths[0])
  begun = bool(way[0, 0] > TRANSITION[0])
  return width, min(low, width), max(high, width), begun
