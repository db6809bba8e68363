"""Statistics by scipy, each function named after what it estimates.

Every function is vectorised over leading axes, deterministic, and quiet on
degenerate input (one seed, zero variance): what cannot be said is nan.
"""

import bisect
from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import math
from typing import Any

import numpy as np
import scipy  # its modules load when first used; stats takes a second
from scipy import special

Array = np.ndarray


def generator(*content: Any) -> np.random.Generator:
  """Seeds a generator from the content it will resample, nothing else."""
  digest = hashlib.sha256(repr(content).encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "big"))


# --- proportions -------------------------------------------------------------


def wilson(
  hits: Array | int, trials: Array | int, confidence: float
) -> tuple[Array, Array]:
  """Wilson score interval of each proportion hits / trials.

  Equals scipy's binomtest(...).proportion_ci(method="wilson"), which takes
  milliseconds per proportion; a report has thousands (Wilson 1927).

  Args:
    hits: [...] successes.
    trials: [...] trials; 0 gives nan.
    confidence: level.

  Returns:
    low, high of the shape of `hits`.
  """
  hits, trials = np.asarray(hits, float), np.asarray(trials, float)
  z2 = special.ndtri((1 + confidence) / 2) ** 2
  n = np.where(trials > 0, trials, np.nan)
  p = hits / n
  centre = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = np.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n) / (1 + z2 / n)
  low = np.where(hits == 0, 0.0, centre - half)
  high = np.where(hits == trials, 1.0, centre + half)
  return np.where(trials > 0, low, np.nan), np.where(trials > 0, high, np.nan)


def chance_hits(trials: int, num_classes: int, level: float) -> int:
  """Smallest number of hits that an exact one-sided binomial test calls
  better than guessing 1 of `num_classes` (p-value below `level`)."""

  def better(hits: int) -> bool:
    return special.bdtrc(hits - 1.0, trials, 1 / num_classes) < level

  return bisect.bisect_left(range(trials + 2), True, key=better)


# --- means over seeds --------------------------------------------------------


def image_variance(share: Array | float, images: Array | float | None) -> Array:
  """Variance of a share of images that drawing the images alone gives.

  p (1 - p) / N, with two more hits and misses counted (Agresti and Coull 1998)
  and never less than what the rule of three allows: none of N may be up to
  3 / N (one-sided 95 %), which is 3.3 / N^2. The mean of paired differences in
  {-1, 0, 1} is such a share too, of the images that differ, if all differ to
  one side; how many differ to both is not in the records.

  Args:
    share: [...] accuracy, or mean difference of accuracies of either sign.
    images: N, broadcastable; None = the values are not shares of images.
  """
  share = np.abs(np.asarray(share, float))
  if images is None:
    return np.zeros_like(share)
  n = np.asarray(images, float)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.maximum(n * share * (1 - share) + 2, 3.3) / n**2


@dataclasses.dataclass(frozen=True)
class Images:
  """What drawing the images, beside the seeds, adds to means over seeds.

  Attributes:
    noise: [...] its part of the variance over seeds.
    drawn: [...] its part of the variance of the mean.
  """

  noise: Array
  drawn: Array

  def __getitem__(self, index: Any) -> "Images":
    return Images(self.noise[index], self.drawn[index])


# On how many images, or what they add; None = the values are no shares of any.
Drawn = Images | Array | float | None


def image_part(mean: Array | float, images: Drawn) -> Images:
  """What images add to means; of a number of images that all seeds share.

  How far seeds agree about single images is not known then. Images alone let
  one seed's value vary by v, `image_variance`, and the mean by as much at most,
  if all agree; but then none of v is in the deviation over seeds. All of it is
  taken to be in both: the two errors make up for each other.
  """
  if isinstance(images, Images):
    return images
  drawn = image_variance(mean, images)
  return Images(drawn, drawn)


def standard_error(
  mean: Array | float,
  deviation: Array | float,
  n: Array | int,
  images: Drawn = None,
) -> tuple[Array, Array]:
  """Standard error of means over seeds and images, and its degrees of freedom.

  drawn + max(s^2 - noise, 0) / n: what the deviation s over seeds has beyond
  the noise of images is the networks' own and averages over the n seeds.
  Degrees of freedom by Satterthwaite (1946), the images' part being known.

  Args:
    mean: [...].
    deviation: [...] over seeds; nan = unknown.
    n: [...] seeds.
    images: what images add, or a number of them as in `image_part`.

  Returns:
    error, freedom (large where images are all there is), each [...].
  """
  part = image_part(mean, images)
  with np.errstate(invalid="ignore", divide="ignore"):
    own = np.maximum(np.square(deviation) - part.noise, 0) / n
    total = own + part.drawn
    share = np.where(total > 0, own / total, 1.0)
    freedom = np.minimum((n - 1) / np.square(share), 1e9)
  return np.sqrt(total), np.where(np.asarray(n) > 1, freedom, 0)


def mean_interval(
  values: Array,
  confidence: float,
  *,
  resolution: float = 0.0,
  images: Drawn = None,
) -> tuple[Array, Array, Array, Array]:
  """Student interval of the mean along the last axis; nan = missing.

  Args:
    values: [..., N].
    confidence: level.
    resolution: step to which values are rounded; they are not taken to vary
      less than the rounding hides (a uniform step has variance 1 / 12).
    images: as in `standard_error`.

  Returns:
    mean, low, high, n, each [...]. One value has a mean and no interval.
  """
  n, mean, deviation = moments(values)
  deviation = np.maximum(deviation, resolution / math.sqrt(12))
  error, freedom = standard_error(mean, deviation, n, images)
  half = error * t_quantile(freedom, (1 + confidence) / 2)
  return mean, mean - half, mean + half, n


def pair_interval(
  values: Array, confidence: float
) -> tuple[Array, Array, Array, Array]:
  """Student interval of a mean over all pairs of a sample, by the jackknife.

  Pairs that share a member are not independent, so the members are the sample:
  the pseudo-values of leaving one out average to the mean over pairs, and
  their variance is that of a U-statistic (Arvesen 1969).

  Args:
    values: [..., N, N] symmetric; nan = the pair is missing, as all pairs of a
      missing member and the diagonal are.
    confidence: level.

  Returns:
    mean, low, high, n (members), each [...]; no interval below three members.
  """
  known = ~np.isnan(values)
  sums, there = np.where(known, values, 0).sum(-1), known.any(-1)
  total, n = sums.sum(-1), there.sum(-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    mean = total / (n * (n - 1))
    left = n[..., None] - 1
    without = (total[..., None] - 2 * sums) / (left * (left - 1))
    pseudo = (left + 1) * mean[..., None] - left * without
  _, low, high, _ = mean_interval(np.where(there, pseudo, np.nan), confidence)
  return mean, low, high, n


def moments(values: Array) -> tuple[Array, Array, Array]:
  """Count, mean and standard deviation (n - 1) along the last axis.

  nan entries are missing; the deviation of fewer than two values is nan.
  """
  values = np.asarray(values, float)
  present = ~np.isnan(values)
  n = present.sum(-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    mean = np.where(present, values, 0).sum(-1) / n
    residual = np.where(present, values - mean[..., None], 0)
    variance = (residual**2).sum(-1) / (n - 1)
  return n, mean, np.sqrt(np.where(n > 1, variance, np.nan))


def deviation_bound(
  deviations: Array, n: Array, confidence: float, noise: Array | float = 0.0
) -> float | None:
  """One-sided upper bound of a standard deviation common to several samples.

  Pools variances by their degrees of freedom (chi-squared, normal samples);
  None where no sample has two values. `noise` is variance that is known to be
  in the samples and is not asked for.
  """
  used = n > 1
  weight = n[used] - 1
  freedom = weight.sum()
  if not freedom:
    return None
  squares = (weight * deviations[used] ** 2).sum()
  known = np.broadcast_to(noise, n.shape)[used]
  bound = squares / chi2_quantile(freedom, 1 - confidence)
  return float(np.sqrt(max(bound - (weight * known).sum() / freedom, 0.0)))


def chi2_quantile(freedom: float, level: float) -> float:
  """Quantile of chi-squared."""
  return 2 * float(special.gammaincinv(freedom / 2, level))


def t_quantile(freedom: Array, level: float) -> Array:
  """Quantile of Student's t; nan without degrees of freedom."""
  freedom = np.asarray(freedom, float)
  known, inverse = np.unique(freedom, return_inverse=True)
  quantiles = special.stdtrit(np.where(known > 0, known, np.nan), level)
  return quantiles[inverse.ravel()].reshape(freedom.shape)


def one_sided_p(
  mean: Array,
  deviation: Array,
  n: Array,
  below: float,
  images: Drawn = None,
) -> Array:
  """p-value of the t-test of H0: mean >= `below` against mean < `below`.

  `images` as in `standard_error`. Without variance the p-value is 0 or 1; with
  one value it is 1.
  """
  error, freedom = standard_error(mean, deviation, n, images)
  with np.errstate(invalid="ignore", divide="ignore"):
    t = (mean - below) / error
    p = special.stdtr(np.maximum(freedom, 1), t)
  p = np.where(error == 0, np.where(mean < below, 0.0, 1.0), p)
  return np.where(np.asarray(n) > 1, p, 1.0)


def tost(
  mean: Array,
  deviation: Array,
  n: Array,
  margin: float,
  images: Drawn = None,
) -> Array:
  """p-value of two one-sided t-tests that |mean| < `margin`.

  Schuirmann (1987): the larger of the two one-sided p-values.
  """
  return np.maximum(
    one_sided_p(mean, deviation, n, margin, images),
    one_sided_p(-np.asarray(mean), deviation, n, margin, images),
  )


def two_sided_p(
  mean: Array,
  deviation: Array,
  n: Array,
  images: Drawn = None,
) -> Array:
  """p-value of the t-test of H0: mean = 0; `images` as in `standard_error`."""
  lower = one_sided_p(mean, deviation, n, 0.0, images)
  upper = one_sided_p(-np.asarray(mean), deviation, n, 0.0, images)
  both_equal = (deviation == 0) & (np.asarray(mean) == 0)
  p = np.where(both_equal, 1.0, 2 * np.minimum(lower, upper))
  return np.minimum(p, 1.0)


def adjusted(p: Array) -> Array:
  """Benjamini-Hochberg adjusted p-values; nan = there is no test.

  scipy's false_discovery_control, whose module takes a second to load.
  """
  p = np.asarray(p, float)
  known = ~np.isnan(p)
  count, order = known.sum(), np.argsort(p[known])
  rising = p[known][order] * (count / np.arange(1.0, count + 1))
  rising = np.minimum.accumulate(rising[::-1])[::-1]
  result = np.full(p.shape, np.nan)
  result[np.flatnonzero(known)[order]] = np.clip(rising, 0, 1)
  return result


# --- resampling --------------------------------------------------------------


def resamples(
  n: int, num: int, rng: np.random.Generator, at_least: int = 1
) -> tuple[Array, Array]:
  """Bootstrap counts of n seeds and the probability of each row.

  All multisets, exactly, when there are no more than `num` of them (n <= 7 at
  2,000), so that small studies carry no Monte Carlo error, each as often as
  makes `at_least` rows (or `num`); else `num` draws.

  Returns:
    counts [B, n] that sum to n, probabilities [B] that sum to 1.
  """
  if math.comb(2 * n - 1, n) > num:
    counts = rng.multinomial(n, np.full(n, 1 / n), size=num)
    return counts.astype(float), np.full(num, 1 / num)
  bars = list(itertools.combinations(range(2 * n - 1), n - 1))
  bars = np.array(bars, int).reshape(len(bars), n - 1)
  edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=-1)
  edges[:, -1] = 2 * n - 1
  counts = np.diff(edges, axis=1) - 1
  log_p = (
    special.gammaln(n + 1) - special.gammaln(counts + 1).sum(1) - n * np.log(n)
  )
  repeats = max(1, min(at_least, num) // len(counts))
  return (
    np.tile(counts, (repeats, 1)).astype(float),
    np.tile(np.exp(log_p) / repeats, repeats),
  )


def quantile(values: Array, probabilities: Array, level: float) -> Array:
  """Weighted quantile along the last axis: an observed value, inf allowed."""
  order = np.argsort(values, axis=-1, kind="stable")
  cumulative = np.cumsum(probabilities[order], axis=-1)
  reached = cumulative >= level * cumulative[..., -1:] - 1e-12
  index = np.argmax(reached, axis=-1)[..., None]
  position = np.take_along_axis(order, index, -1)
  return np.take_along_axis(values, position, -1)[..., 0]


def within(low: Array, high: Array, rng: np.random.Generator) -> Array:
  """Spreads each replicate evenly over its bracket [low, high].

  A grid says that a boundary lies between two of its points, not where. An
  open bracket stays infinite on its open side.
  """
  shares = (np.arange(low.shape[-1]) + 0.5) / low.shape[-1]
  shares = rng.permuted(np.broadcast_to(shares, low.shape), axis=-1)
  closed = np.isfinite(low) & np.isfinite(high)
  span = np.where(closed, high, 0) - np.where(closed, low, 0)
  inside = np.where(closed, low, 0) + shares * span
  return np.where(closed, inside, np.where(np.isfinite(low), high, low))


# --- association -------------------------------------------------------------


def correlation(x: Array, y: Array) -> Array:
  """Pearson correlation along the last axis; 0 where a side is constant."""
  x = x - x.mean(-1, keepdims=True)
  y = y - y.mean(-1, keepdims=True)
  scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
  return (x * y).sum(-1) / np.where(scale > 0, scale, np.inf)


def rank_residuals(y: Array, control: Array) -> Array:
  """Ranks of y freed of their linear dependence on the ranks of `control`.

  The correlation of two such residuals is Spearman's partial correlation.
  """
  ranks = scipy.stats.rankdata(y) - (len(y) + 1) / 2
  other = scipy.stats.rankdata(control) - (len(y) + 1) / 2
  slope = (ranks @ other) / max(other @ other, 1e-300)
  return (ranks - slope * other) / len(y)


def partial_spearman(
  groups: Sequence[tuple[Array, Array, Array]], confidence: float
) -> tuple[float, float, float, int]:
  """Spearman's correlation of x and y given z, pooled over strata.

  Ranks are taken within strata and freed of the ranks of z. The interval is
  Fisher's with the variance of Bonett and Wright (2000) for ranks, each
  stratum costing two degrees of freedom.

  Args:
    groups: (x, y, z) of each stratum, [N] each.
    confidence: level.

  Returns:
    correlation, low, high, rows.
  """
  x = np.concatenate([rank_residuals(x, z) for x, _, z in groups])
  y = np.concatenate([rank_residuals(y, z) for _, y, z in groups])
  freedom = len(x) - 2 * len(groups) - 2
  effect = float(correlation(x, y))
  if freedom < 1:
    return effect, math.nan, math.nan, len(x)
  centre = np.arctanh(np.clip(effect, -1 + 1e-9, 1 - 1e-9))
  half = special.ndtri((1 + confidence) / 2) * np.sqrt(
    (1 + effect**2 / 2) / freedom
  )
  low, high = np.tanh([centre - half, centre + half])
  return effect, float(low), float(high), len(x)


def bca(
  samples: tuple[Array, ...],
  statistic: Any,
  confidence: float,
  num: int,
  rng: np.random.Generator,
) -> tuple[float, float, float]:
  """BCa bootstrap interval (Efron 1987) of a statistic of paired samples.

  Args:
    samples: arrays [N] resampled together.
    statistic: maps (*samples, axis) to values, vectorised.
    confidence: level.
    num: resamples.
    rng: generator.

  Returns:
    estimate, low, high; nan bounds for fewer than 4 rows; the estimate itself
    as both bounds where no resample differs.
  """
  n = len(samples[0])
  estimate = float(statistic(*samples, axis=-1)) if n else math.nan
  if n < 4:
    return estimate, math.nan, math.nan
  leave_out = ~np.eye(n, dtype=bool)
  index = np.broadcast_to(np.arange(n), (n, n))[leave_out].reshape(n, n - 1)
  jackknife = statistic(*(s[index] for s in samples), axis=-1)
  if np.ptp(jackknife) < 1e-12:
    return estimate, estimate, estimate
  interval = scipy.stats.bootstrap(
    samples,
    statistic,
    paired=True,
    vectorized=True,
    n_resamples=num,
    batch=max(1, 2_000_000 // n),
    confidence_level=confidence,
    method="BCa",
    rng=rng,
  ).confidence_interval
  return estimate, float(interval.low), float(interval.high)


def auc_interval(
  auc: float, positives: int, negatives: int, confidence: float
) -> tuple[float, float]:
  """Score interval of an area under the ROC curve, at most [0, 1].

  Newcombe (2006), method 5: the ends are where the area found is just
  compatible with the variance of Hanley and McNeil (1982) at that end, so
  perfect separation still has a width.
  """
  z = special.ndtri((1 + confidence) / 2)
  mean = (positives + negatives) / 2 - 1

  def variance(area):
    spread = 1 + mean * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * spread / (positives * negatives)

  def end(side):
    def excess(area):
      return side * (area - auc) - z * math.sqrt(variance(area))

    edge = 1.0 if side > 0 else 0.0
    if abs(auc - edge) < 1e-12:
      return edge
    # At 0 and 1 the variance vanishes, which is no solution.
    inside = min(max(auc, 1e-9), 1 - 1e-9)
    return float(scipy.optimize.brentq(excess, inside, edge))  # pyright: ignore

  return end(-1), end(1)


def theil_sen(
  x: Array, y: Array, confidence: float
) -> tuple[float, float, float]:
  """Median pairwise slope and its interval (Sen 1968, equation 2.6).

  scipy's theilslopes, whose module takes a second to load.

  Returns:
    slope, low, high; nan bounds for fewer than 4 points, nan for fewer than 2
    distinct x. More than 2,000 points are thinned evenly along x.
  """
  if len(np.unique(x)) < 2:
    return math.nan, math.nan, math.nan
  if len(x) > 2000:
    chosen = np.argsort(x, kind="stable")[
      np.linspace(0, len(x) - 1, 2000).astype(int)
    ]
    x, y = x[chosen], y[chosen]
  n = len(x)
  one, other = np.triu_indices(n, 1)
  run, rise = x[one] - x[other], y[one] - y[other]
  slopes = np.sort(rise[run != 0] / run[run != 0])
  slope = float(np.median(slopes))
  if n < 4:
    return slope, math.nan, math.nan
  variance = (_pairs(np.array([n])) - _pairs(_ties(x)) - _pairs(_ties(y))) / 18
  reach = -special.ndtri((1 - confidence) / 2) * math.sqrt(max(variance, 0.0))
  low = max(round((len(slopes) - reach) / 2) - 1, 0)
  high = min(round((len(slopes) + reach) / 2), len(slopes) - 1)
  return slope, float(slopes[low]), float(slopes[high])


def _ties(values: Array) -> Array:
  return np.unique(values, return_counts=True)[1]


def _pairs(counts: Array) -> int:
  """Kendall's k (k - 1) (2 k + 5), summed over groups of k."""
  return int((counts * (counts - 1) * (2 * counts + 5)).sum())
