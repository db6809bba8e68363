"""Standardisation of uint8 images by exact statistics.

Stored values are integers, so sums are exact, and what follows is one
correctly rounded float32 operation after another: the result does not depend
on summation order, numpy version or processor.
"""

from collections.abc import Iterator
import math

import numpy as np

_CHUNK = 256  # images; a block stays in the processor's cache


def _chunks(x: np.ndarray, indices: np.ndarray) -> Iterator[tuple]:
  for start in range(0, len(indices), _CHUNK):
    part = slice(start, start + _CHUNK)
    yield part, x[indices[part]]


def statistics(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
  """Returns float32 [2, C]: what to subtract from and divide each channel by.

  The mean and the standard deviation over images and pixels; a channel that is
  constant is divided by 1.

  Args:
    x: uint8 [N, H, W, C].
    indices: int [M], the images that count.
  """
  channels = x.shape[-1]
  counts = np.zeros((channels, 256), np.int64)
  for _, block in _chunks(x, indices):
    for channel in range(channels):
      values = block[..., channel].ravel()
      counts[channel] += np.bincount(values, minlength=256)
  stats = []
  for row in counts.tolist():
    total = sum(row)
    first = sum(count * value for value, count in enumerate(row))
    second = sum(count * value**2 for value, count in enumerate(row))
    variance = (total * second - first**2) / total**2
    stats.append((first / total, math.sqrt(variance) or 1.0))
  return np.asarray(stats, np.float32).T


def standardise(
  x: np.ndarray, indices: np.ndarray, stats: np.ndarray
) -> np.ndarray:
  """Applies `statistics` to uint8 x [N, H, W, C]: float32 [M, H, W, C]."""
  out = np.empty((len(indices), *x.shape[1:]), np.float32)
  # Whole images: an inner loop over three channels takes three times as long.
  mean, scale = (np.broadcast_to(row, x.shape[1:]).copy() for row in stats)
  for part, block in _chunks(x, indices):
    np.subtract(block, mean, out=out[part], dtype=np.float32)
    out[part] /= scale
  return out
