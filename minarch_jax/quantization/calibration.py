"""Calibration: which range of the numbers the codes are spread over.

A narrower range has finer steps and clips more. Each function sees blocks
[groups, group, *kept] and returns the lowest and highest number represented,
[groups, 1, *kept]: low <= 0 <= high, and low = -high for symmetric formats.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import registries
from minarch_jax.quantization import arithmetic, formats

Range = tuple[jax.Array, jax.Array]
# (blocks, within, format) -> range. `within` is a boolean array like blocks,
# False where an entry does not exist (padding), or None when all exist;
# entries outside are zero.
FindRange = Callable[[jax.Array, jax.Array | None, formats.Format], Range]


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A way to choose the range.

  Attributes:
    find: `find(blocks, within, format) -> (low, high)`.
    masked: whether it counts the numbers of a block, and so must not see
      padding as numbers.
    clips: whether numbers beyond the range are clipped; a scale by mean
      magnitude stands for numbers on both sides of it.
  """

  find: FindRange
  masked: bool = False
  clips: bool = True


Rule = str | Calibration | FindRange | None  # None = the format's own


def absmax(
  blocks: jax.Array, within: jax.Array | None, format: formats.Format
) -> Range:
  """Covers every number: nothing is clipped."""
  if format.symmetric:
    high = jnp.max(jnp.abs(blocks), 1, keepdims=True)
    return -high, high
  low = jnp.minimum(jnp.min(blocks, 1, keepdims=True), 0.0)
  return low, jnp.maximum(jnp.max(blocks, 1, keepdims=True), 0.0)


def make_percentile(percent: float) -> FindRange:
  """Makes a calibration that clips the largest 100 - percent % of numbers.

  Asymmetric formats lose that share at each end.

  Raises:
    ValueError: percent outside (50, 100].
  """
  if not 50 < percent <= 100:
    raise ValueError(f"percentile {percent} is not in (50, 100]")

  def percentile(blocks, within, format) -> Range:
    known = blocks if within is None else jnp.where(within, blocks, jnp.nan)

    def at(x, q):
      # A block outside the network has no percentile.
      return jnp.nan_to_num(jnp.nanpercentile(x, q, axis=1, keepdims=True))

    if format.symmetric:
      high = at(jnp.abs(known), percent)
      return -high, high
    low = jnp.minimum(at(known, 100 - percent), 0.0)
    return low, jnp.maximum(at(known, percent), 0.0)

  return percentile


def mean_magnitude(
  blocks: jax.Array, within: jax.Array | None, format: formats.Format
) -> Range:
  """The scale of binary and ternary weights: a mean of magnitudes.

  Binary: the mean |w|, which minimises the squared error of sign(w) * scale
  (XNOR-Net, arXiv 1603.05279, equation 6). Ternary and wider: the mean of
  |w| above 0.7 of the mean (Ternary Weight Networks, arXiv 1605.04711,
  equations 5 and 6). Exact zeros are absent weights and do not count, so
  neither pruning nor padding moves the scale.
  """
  magnitude = jnp.abs(blocks)

  def mean(kept):
    count = jnp.maximum(jnp.sum(kept, 1, keepdims=True), 1)
    total = jnp.sum(jnp.where(kept, magnitude, 0.0), 1, keepdims=True)
    return total / count

  high = mean(magnitude > 0)
  if format.packs_zero:
    high = mean(magnitude > 0.7 * high)
  return -high, high


# Shares of the full range that the searches try, the full range first.
_SHARES = np.linspace(1.0, 0.05, 96, dtype=np.float32)


def _search(loss, blocks, format) -> Range:
  """Returns the share of the full range with the least loss.

  `loss(low, high)` is [groups, 1, *kept]. Ties keep the wider range, so a
  range that clips nothing in vain is never left.
  """
  low, high = absmax(blocks, None, format)

  def narrowed(share):
    # The bounds change nothing; they keep the products from being fused into
    # a later subtraction, which rounds differently in and out of jit.
    return jnp.maximum(share * low, low), jnp.minimum(share * high, high)

  def body(best, share):
    best_loss, best_share = best
    new_loss = loss(*narrowed(share))
    better = new_loss < best_loss
    return (
      jnp.where(better, new_loss, best_loss),
      jnp.where(better, share, best_share),
    ), None

  first = (jnp.full_like(high, jnp.inf), jnp.ones_like(high))
  (_, share), _ = jax.lax.scan(body, first, jnp.asarray(_SHARES))
  return narrowed(share)


def mse(
  blocks: jax.Array, within: jax.Array | None, format: formats.Format
) -> Range:
  """Searches the range with the least mean squared rounding error.

  Entries outside the network round to 0 without error, so they need no mask.
  """

  def loss(low, high):
    error = arithmetic.round_trip(blocks, low, high, format) - blocks
    return jnp.sum(error * error, 1, keepdims=True)

  return _search(loss, blocks, format)


_BINS = 1024  # of the histogram whose entropy the KL calibration compares


def kl(
  blocks: jax.Array, within: jax.Array | None, format: formats.Format
) -> Range:
  """Searches the range whose codes keep most of the distribution.

  Minimises the Kullback-Leibler divergence of the clipped histogram of the
  numbers from the histogram that the codes can express: each code's mass
  spread evenly over its occupied bins (Migacz 2017, "8-bit inference with
  TensorRT"). Meant for activations, of which there are many.
  """
  exists = jnp.ones(blocks.shape, bool) if within is None else within
  # A format's [low, high] maps to codes; every block is one row of numbers.
  group = blocks.shape[1]
  rows = jnp.moveaxis(blocks, 1, -1).reshape(-1, group)
  weights = jnp.moveaxis(exists, 1, -1).reshape(-1, group)
  low, high = absmax(rows[:, :, None], None, format)
  low, high = low[:, 0, 0], high[:, 0, 0]

  def one(row, weight, low, high):
    width = (high - low) / _BINS
    safe = jnp.where(width > 0, width, 1.0)
    bins = jnp.clip(((row - low) / safe).astype(jnp.int32), 0, _BINS - 1)
    mass = (
      jnp.zeros(_BINS, jnp.float32).at[bins].add(weight.astype(jnp.float32))
    )
    centers = low + (jnp.arange(_BINS, dtype=jnp.float32) + 0.5) * width
    return mass, centers

  mass, centers = jax.vmap(one)(rows, weights, low, high)

  def loss(low, high):
    return jax.vmap(_divergence, (0, 0, 0, 0, None))(
      mass, centers, low.reshape(-1), high.reshape(-1), format
    ).reshape(low.shape)

  return _search(loss, blocks, format)


def _divergence(mass, centers, low, high, format) -> jax.Array:
  """KL divergence of one histogram's clipped form from its coded form."""
  inside = (centers >= low) & (centers <= high)
  kept = jnp.where(inside, mass, 0.0)
  # What is clipped lands in the outermost bins of the range.
  first = jnp.argmax(inside)
  last = mass.size - 1 - jnp.argmax(inside[::-1])
  clipped = kept
  clipped = clipped.at[first].add(jnp.sum(jnp.where(centers < low, mass, 0.0)))
  clipped = clipped.at[last].add(jnp.sum(jnp.where(centers > high, mass, 0.0)))
  scale, zero_point = arithmetic.step_size(low, high, format)
  codes = arithmetic.encode(centers, scale, zero_point, format)
  level = format.to_raw(codes).astype(jnp.int32)
  occupied = (kept > 0).astype(jnp.float32)
  total = jnp.zeros(256, jnp.float32).at[level].add(kept)
  count = jnp.zeros(256, jnp.float32).at[level].add(occupied)
  coded = occupied * (total / jnp.maximum(count, 1.0))[level]
  # An empty coded bin under clipped mass would be infinitely wrong; a ten
  # thousandth of a number instead of none makes it very wrong.
  smooth = 1e-4
  p = clipped / jnp.maximum(jnp.sum(clipped), 1.0)
  q = (coded + smooth) / jnp.sum(coded + smooth)
  return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30) / q), 0.0))


ABSMAX = Calibration(absmax)
PERCENTILE = Calibration(make_percentile(99.9), masked=True)
MSE = Calibration(mse)
KL = Calibration(kl, masked=True)
MEAN = Calibration(mean_magnitude, clips=False)
CALIBRATIONS = registries.CALIBRATIONS


def resolve(rule: Rule, format: formats.Format) -> Calibration:
  """Returns the calibration that a name, or a function, stands for.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  found: Any = format.calibration if rule is None else rule
  if isinstance(found, str):
    found = registries.find("calibration", found, CALIBRATIONS)
  if isinstance(found, Calibration):
    return found
  # Of a function nothing is known, so it is given the masks.
  return Calibration(found, masked=True)
