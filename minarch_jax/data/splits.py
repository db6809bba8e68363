"""Stratified splits that are the same on every machine and numpy version."""

import math

import numpy as np

from minarch_jax.config import ConfigError

TEST_FRACTION = 0.2  # where no test split exists
TEST, VALIDATION = 0, 1  # purposes of `stratified` and `folds`


def random_bits(seed: int, purpose: int, count: int) -> np.ndarray:
  """Draws uint64 [count].

  Philox and SeedSequence streams are frozen by numpy's compatibility policy;
  the methods of Generator (permutation, normal, ...) are not, so only raw bits
  are used.
  """
  sequence = np.random.SeedSequence(seed, spawn_key=(purpose,))
  return np.random.Philox(sequence).random_raw(count)


def held_out(total: int, fraction: float) -> int:
  """Counts the images held out of `total`: the fraction, rounded half up.

  Raises:
    ConfigError: one of the two parts would be empty.
  """
  held = math.floor(total * fraction + 0.5)
  if not 0 < held < total:
    raise ConfigError(
      f"holding out {fraction} of {total} images leaves one part empty; "
      "use another fraction or a larger data set"
    )
  return held


def largest_fold(total: int, count: int) -> int:
  """Counts the images of the largest of `count` equal folds.

  Raises:
    ConfigError: there are fewer images than folds.
  """
  if total < count:
    raise ConfigError(
      f"{total} images cannot be divided among {count} folds; use fewer"
    )
  return -(-total // count)


def folds(y: np.ndarray, count: int, seed: int, purpose: int) -> np.ndarray:
  """Divides images among folds, every class in proportion.

  Images are dealt out in turn, class by class and each class shuffled: folds
  differ by at most one image, and by at most one of any class.

  Args:
    y: int [N], class indices.
    count: number of folds.
    seed: decides which images of a class share a fold.
    purpose: separates divisions that are made with equal seeds.

  Returns:
    int [N], the fold of every image.

  Raises:
    ConfigError: there are fewer images than folds.
  """
  largest_fold(len(y), count)
  order = np.lexsort((random_bits(seed, purpose, len(y)), y))
  fold = np.empty(len(y), int)
  fold[order] = np.arange(len(y)) % count
  return fold


def stratified(
  y: np.ndarray, fraction: float, seed: int, purpose: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits image indices so that every class is held out in proportion.

  Each class gives floor or ceil of its exact share, the largest remainders
  rounding up, so the parts add up exactly.

  Args:
    y: int [N], class indices.
    fraction: share of the images held out, in (0, 1).
    seed: decides which images of a class are held out.
    purpose: separates splits that are made with equal seeds.

  Returns:
    (kept, held): sorted int64 indices, disjoint, together all of N.

  Raises:
    ConfigError: one of the two parts would be empty.
  """
  sizes = np.bincount(y)
  held = held_out(len(y), fraction)
  shares, remainders = np.divmod(sizes.astype(np.int64) * held, len(y))
  largest = np.argsort(-remainders, kind="stable")[: held - shares.sum()]
  shares[largest] += 1
  order = np.lexsort((random_bits(seed, purpose, len(y)), y))
  rank = np.empty(len(y), np.int64)  # place of each image within its class
  rank[order] = np.arange(len(y)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  is_held = rank < shares[y]
  return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def carved(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Carves a test split where there is none; returns as `stratified`."""
  return stratified(y, TEST_FRACTION, 0, TEST)
