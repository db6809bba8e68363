"""What the images contribute to error, from the hits of every network.

Seed s validates on fold s mod F. With y(s, i) what seed s gives on image i (1
for a hit; for a difference -1, 0 or 1) the model is y = mean + seed + image +
rest, crossed within a fold: seeds of one fold share their images, others do
not. The variance that images give one seed's value, v, is counted image by
image; how much of it seeds of one fold have in common, c, is the covariance of
two of them over images. With w = sum over folds of (share of the seeds)^2,

  part of the mean's variance       c w + (v - c) / n
  part of the variance over seeds   (v - c) + c (1 - w) n / (n - 1)

and `statistics.standard_error` takes the rest of the latter as the networks'
own. With one fold w is 1, with a fold for each seed 1 / n: averaging over seeds
is then averaging over images too.
"""

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from minarch_jax import records as records_lib
from minarch_jax.analysis import statistics
from minarch_jax.analysis.statistics import Images

Array = np.ndarray
CHUNK = 50_000_000  # bytes of hits compared at a time


@dataclasses.dataclass(frozen=True)
class Hits:
  """Which images each network classified correctly.

  Attributes:
    keys: [R] rows of `records.KEYS["hits"]` and their number, `row`.
    bits: uint8 [R + 1, bytes], packed; the last row, all zero, stands for what
      is missing.
    images: int [R + 1], how many images.
    fold: int [R + 1], which of the folds they are; -1 = missing.
  """

  keys: pl.DataFrame
  bits: Array
  images: Array
  fold: Array

  @classmethod
  def of(cls, hits: pl.DataFrame) -> "Hits":
    """Arranges the table of `records.Records.hits`."""
    width = int(hits["hits"].bin.size().max() or 0)  # pyright: ignore
    rows = [row.ljust(width, b"\0") for row in hits["hits"]]
    bits = np.frombuffer(b"".join([*rows, bytes(width)]), np.uint8)
    keys = hits.select(*records_lib.KEYS["hits"])
    return cls(
      keys.with_row_index("row"),
      bits.reshape(len(hits) + 1, width),
      np.append(hits["images"].to_numpy(), 0),
      np.append(hits["fold"].to_numpy(), -1),
    )

  def rows(self, frame: pl.DataFrame) -> Array:
    """Finds the hits of compression rows, or of networks as trained: int [N].

    -1 where there are none.
    """
    missing = {
      name: pl.lit(value)
      for name, value in records_lib.AS_TRAINED.items()
      if name not in frame.columns
    }
    wanted = frame.with_columns(**missing).select(*records_lib.KEYS["hits"])
    found = wanted.join(
      self.keys,
      on=records_lib.KEYS["hits"],
      how="left",
      maintain_order="left",
    )
    return found["row"].cast(pl.Int64).fill_null(-1).to_numpy()

  def images_of(
    self,
    values: Array,
    rows: Array,
    others: Array | None,
    images: Array,
    fold: Array,
  ) -> Images:
    """What images add to means over seeds of accuracies or differences.

    Args:
      values: [G, ..., S], nan = missing.
      rows: int [G, ..., S], the hits of every seed; -1 = not known.
      others: likewise, of what differences are taken from; None for accuracies.
      images: [G] how many images a fold has.
      fold: int, broadcastable to `values`, the fold of every seed.

    Returns:
      Arrays [G, ...]. Where the hits of a seed are not known, images are judged
      by their number.
    """
    fold = np.where(np.isnan(values), -1, fold)
    known = np.isnan(values) | (rows >= 0)
    if others is not None:
      known &= np.isnan(values) | (others >= 0)
    known = np.asarray(known.all(-1))
    n, mean, _ = statistics.moments(values)
    images = images.reshape(-1, *[1] * (mean.ndim - 1))
    found = from_numbers(mean, images, fold, n)
    if not known.any():
      return found
    noise, drawn = found.noise.copy(), found.drawn.copy()
    width = max(1, self.bits.shape[1] * values[0].size)
    size = max(1, CHUNK // width)
    for begin in range(0, len(values), size):
      part = slice(begin, begin + size)
      there = np.where(fold[part] >= 0, rows[part], -1)
      base = None if others is None else np.where(there >= 0, others[part], -1)
      one = from_counts(
        *self._signs(there, base), self.images[there], self.fold[there]
      )
      noise[part] = np.where(known[part], one.noise, noise[part])
      drawn[part] = np.where(known[part], one.drawn, drawn[part])
    return Images(noise, drawn)

  def resampled(
    self, rows: Array, missing: Array, num: int, rng: np.random.Generator
  ) -> Array:
    """Draws what other images would do to the mean accuracies of networks.

    Images are resampled within folds, the same for all networks, which keeps
    how far networks agree about them; the size is that of `missing`.

    Args:
      rows: int [A, S], the hits of every seed; -1 = the seed is missing.
      missing: [A] variance that is wanted.
      num: resamples.
      rng: generator.

    Returns:
      Shifts [num, A].
    """
    total = np.zeros((num, len(rows)))
    variance = np.zeros(len(rows))
    if not (missing > 0).any():
      return total
    fold = np.where(rows >= 0, self.fold[rows], -1)
    for number in np.unique(fold[fold >= 0]):
      own = fold == number
      size = int(self.images[rows[own][0]])
      share = own / (rows >= 0).sum(-1, keepdims=True)
      mean = np.empty((len(rows), size))
      step = max(1, CHUNK // (size * rows.shape[1]))
      for part in np.split(np.arange(len(rows)), range(step, len(rows), step)):
        bits = np.unpackbits(self.bits[rows[part]], axis=-1, count=size)
        mean[part] = np.einsum("as,asi->ai", share[part], bits)
      counts = rng.multinomial(size, np.full(size, 1 / size), size=num)
      total += (counts / size - 1 / size) @ mean.T
      variance += mean.var(-1) / size
    with np.errstate(invalid="ignore", divide="ignore"):
      scale = np.sqrt(np.maximum(missing, 0) / variance)
    return total * np.where(variance > 0, scale, 0.0)

  def _signs(self, rows: Array, others: Array | None) -> tuple[Array, Array]:
    """Where y is 1 and where it is -1, packed [..., S, bytes]."""
    one = self.bits[rows]
    if others is None:
      return one, np.zeros_like(one)
    other = self.bits[others]
    return other & ~one, one & ~other


NONE = Hits.of(pl.DataFrame(schema=records_lib.SCHEMAS["hits"]))


def from_counts(up: Array, down: Array, images: Array, fold: Array) -> Images:
  """Judges packed signs; see the head of this file.

  Args:
    up, down: uint8 [..., S, bytes], where y is 1 and where it is -1.
    images: int [..., S], 0 = the seed is missing.
    fold: int [..., S], -1 = missing.
  """
  there = images > 0
  n = there.sum(-1)
  with np.errstate(invalid="ignore", divide="ignore"):
    plus, minus = _count(up) / images, _count(down) / images
    value = plus - minus
    each = np.where(there, plus + minus - value**2, 0.0).sum(-1) / n
    size = np.where(there, images, 0).sum(-1) / n
  overlap, union = _overlap(images, fold)
  # The rule of three for the mean over all images: see image_variance.
  each = np.maximum(union * each + 2, 3.3) / union
  shared = _shared(up, down, images, fold, value)
  # Where no two seeds share images nothing hangs on it.
  shared = np.where(np.isnan(shared), each, np.clip(shared, 0, each))
  return combined(each / size, shared / size, overlap, n)


def combined(
  one: Array, shared: Array | None, overlap: Array, n: Array
) -> Images:
  """Combines what images add to one seed's value, and what seeds share of it.

  Args:
    one: [...] variance of one seed's value.
    shared: [...] the part of it that seeds on the same images have in common;
      None = unknown, see `statistics.image_part`.
    overlap: [...] sum over folds of the squared share of the seeds.
    n: [...] seeds.
  """
  one = np.asarray(one)
  if shared is None:
    return Images(np.broadcast_to(one, np.shape(one * overlap)), one * overlap)
  rest = one - shared
  return Images(rest + shared * _apart(overlap, n), shared * overlap + rest / n)


def _apart(overlap: Array, n: Array) -> Array:
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(n > 1, (1 - overlap) * n / (n - 1), 0.0)


def apart(fold: Array) -> Array:
  """Which part of what seeds of a fold share is in the variance over seeds.

  0 where all share their images, 1 where none does; int [..., S], -1 = missing.
  """
  return _apart(overlap_of(fold), (fold >= 0).sum(-1))


def overlap_of(fold: Array) -> Array:
  """Sum over folds of (share of the seeds)^2; int [..., S], -1 = missing."""
  there = fold >= 0
  same = (fold[..., :, None] == fold[..., None, :]) & there[..., None, :]
  same &= there[..., :, None]
  with np.errstate(invalid="ignore", divide="ignore"):
    return same.sum((-1, -2)) / there.sum(-1) ** 2


def _overlap(images: Array, fold: Array) -> tuple[Array, Array]:
  """`overlap_of`, and the number of images of all folds together."""
  there = images > 0
  fold = np.where(there, fold, -1)
  first = np.ones(fold.shape, bool)
  for i in range(1, fold.shape[-1]):
    first[..., i] = (fold[..., :i] != fold[..., i : i + 1]).all(-1)
  union = np.where(first & there, images, 0).sum(-1)
  return overlap_of(fold), union


def _shared(
  up: Array, down: Array, images: Array, fold: Array, value: Array
) -> Array:
  """Mean covariance over images of two seeds of one fold; nan without any."""
  total = np.zeros(value.shape[:-1])
  pairs = np.zeros(value.shape[:-1])
  for i in range(value.shape[-1]):
    for j in range(i):
      both = (fold[..., i] == fold[..., j]) & (fold[..., i] >= 0)
      if not both.any():
        continue
      equal = _count(up[..., i, :] & up[..., j, :])
      equal = equal + _count(down[..., i, :] & down[..., j, :])
      opposite = _count(up[..., i, :] & down[..., j, :])
      opposite = opposite + _count(down[..., i, :] & up[..., j, :])
      size = np.maximum(images[..., i], 2)
      product = np.nan_to_num(value[..., i] * value[..., j])
      covariance = (equal - opposite) / size - product
      total += np.where(both, covariance * size / (size - 1), 0.0)
      pairs += both
  with np.errstate(invalid="ignore", divide="ignore"):
    return total / pairs


def _count(bits: Array) -> Array:
  return np.bitwise_count(bits).sum(-1, dtype=np.int64)


def from_numbers(
  mean: Any, images: Array | float, fold: Array, n: Array
) -> Images:
  """What images add where hits are not known: of their number and the folds.

  Args:
    mean: [...] mean accuracy or difference.
    images: of one fold.
    fold: int [..., S], -1 = missing.
    n: [...] seeds.
  """
  one = statistics.image_variance(mean, images)
  return combined(one, None, np.broadcast_to(overlap_of(fold), one.shape), n)
