"""Curves that only rise: isotonic regression, and where a logistic crosses."""

import math

import numpy as np
import scipy  # its modules load when first used
from scipy import special

from minarch_jax.analysis import statistics

Array = np.ndarray


def isotonic(
  rows: Array, weights: Array | float, increasing: bool = True
) -> Array:
  """Isotonic regression of every row, in one call of scipy.

  Rows are separated by an offset larger than their range, which keeps their
  solutions apart: pooling never crosses a jump in the right direction.

  Args:
    rows: [B, A], finite.
    weights: broadcastable to rows, positive.
    increasing: direction.
  """
  rows = np.asarray(rows, float)
  if rows.size == 0:
    return rows
  step = 2 * (rows.max() - rows.min()) + 1.0
  offsets = np.arange(len(rows))[:, None] * (step if increasing else -step)
  fit = scipy.optimize.isotonic_regression(
    (rows + offsets).ravel(),
    weights=np.broadcast_to(weights, rows.shape).ravel(),
    increasing=increasing,
  )
  return fit.x.reshape(rows.shape) - offsets


def threshold(
  x: Array, successes: Array, trials: Array, level: float, confidence: float
) -> tuple[float, float, float]:
  """Where a logistic curve in x reaches `level`, by maximum likelihood.

  The likelihood is tabulated over (position, width of the 5-95 % rise): exact
  profiles, no iteration that separated data could send astray. The interval
  is the likelihood-ratio one; a bootstrap of separated data would have no
  width at all.

  Args:
    x: [A] abscissae.
    successes, trials: [A] counts.
    level: probability looked for.
    confidence: level of the interval.

  Returns:
    estimate, low, high; -inf or inf where the data leave a side open.
  """
  used = trials > 0
  x, k, n = _binned(x[used], successes[used], trials[used])
  if not len(x):
    return math.nan, -math.inf, math.inf
  span = max(np.ptp(x), 1.0)
  positions = np.linspace(x.min() - span, x.max() + span, 81)
  widths = np.geomspace(0.01, 4.0, 31) * span
  edges = positions[0], positions[-1]
  for zooms_left in (2, 1, 0):
    table = _likelihood(x, k, n, level, positions, widths)
    kept = table >= table.max() - statistics.chi2_quantile(1, confidence) / 2
    if zooms_left:
      positions = _zoomed(positions, kept.any(1))
      widths = _zoomed(widths, kept.any(0))
  inside = np.flatnonzero(kept.any(1))
  # One step outwards, so that the table's resolution costs no coverage.
  low = positions[max(inside[0] - 1, 0)]
  high = positions[min(inside[-1] + 1, len(positions) - 1)]
  best = positions[table.max(1) >= table.max() - 1e-6].mean()
  if k.sum() in (0, n.sum()):
    best = math.inf if k.sum() == 0 else -math.inf
  return (
    float(best),
    float(low) if low > edges[0] else -math.inf,
    float(high) if high < edges[1] else math.inf,
  )


def located(where: float, low: float, high: float, x: Array) -> dict:
  """Turns log10 positions into sizes, and says when the grid misses them."""
  if not len(x) or np.isnan(where):
    status = "no data"
  elif where < x.min():
    status = "below grid"
  elif where > x.max():
    status = "above grid"
  else:
    status = "bracketed"
  return {
    "p": 10**where if status == "bracketed" else None,
    "p_low": 10**low if np.isfinite(low) and status != "no data" else None,
    "p_high": 10**high if np.isfinite(high) and status != "no data" else None,
    "status": status,
  }


def _likelihood(
  x: Array, k: Array, n: Array, level: float, positions: Array, widths: Array
) -> Array:
  """Log-likelihood [positions, widths] of k of n along logistic curves."""
  slopes = 2 * special.logit(0.95) / widths
  eta = special.logit(level) + (
    slopes[:, None] * (x - positions[:, None, None])
  )
  return -(np.logaddexp(0, -eta) @ k + np.logaddexp(0, eta) @ (n - k))


def _zoomed(values: Array, kept: Array) -> Array:
  """As many values over the kept stretch and one more on either side."""
  inside = np.flatnonzero(kept)
  low = values[max(inside[0] - 1, 0)]
  high = values[min(inside[-1] + 1, len(values) - 1)]
  return np.linspace(low, high, len(values))


_MAX_POINTS = 120


def _binned(x: Array, k: Array, n: Array) -> tuple[Array, Array, Array]:
  if len(x) <= _MAX_POINTS:
    return x, k, n
  edges = np.linspace(x.min(), x.max(), _MAX_POINTS + 1)
  bins = np.clip(np.digitize(x, edges) - 1, 0, _MAX_POINTS - 1)
  counts = np.bincount(bins, n, _MAX_POINTS)
  used = counts > 0
  middle = np.bincount(bins, n * x, _MAX_POINTS)[used] / counts[used]
  return middle, np.bincount(bins, k, _MAX_POINTS)[used], counts[used]
