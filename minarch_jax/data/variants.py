"""Variants of any data set: digits:blurred, mnist:noisy.

A variant is a function of the stored images, whose test split is never empty;
it changes neither the shape nor the number of images, and is the same on every
machine. The first line of its docstring tells readers what it does.
"""

import numpy as np

from minarch_jax.data import sources, splits

BLUR = 0.177  # deviation of the blur, in sides of an image: 1.4 of 8 pixels
PASSES = 3  # of a box; three are close to a Gaussian
SHARE = 0.1  # of the labels that are wrong
_NOISY = 2  # purpose of the draws
_CHUNK = 1024  # images


def blurred(raw: sources.Raw) -> sources.Raw:
  """Blurs every image, those of the test split too.

  The same task, less sharp: three passes of a box along rows and columns, edges
  repeated, in integers and rounded once (half up).
  """
  return sources.raw(_blur(raw.x), raw.y, _blur(raw.test_x), raw.test_y)


def noisy(raw: sources.Raw) -> sources.Raw:
  """Gives a tenth of the images outside the test split another class.

  Which, and by which, depends on the place of the image alone.
  """
  classes = int(max(raw.y.max(), raw.test_y.max(initial=0))) + 1
  order = np.argsort(splits.random_bits(0, _NOISY, len(raw.y)), kind="stable")
  wrong = order[: round(SHARE * len(raw.y))]
  steps = splits.random_bits(1, _NOISY, len(raw.y)) % np.uint64(classes - 1)
  y = raw.y.copy()
  y[wrong] = (y[wrong] + 1 + steps[wrong].astype(np.int64)) % classes
  return sources.raw(raw.x, y, raw.test_x, raw.test_y)


def _blur(x: np.ndarray) -> np.ndarray:
  """Blurs uint8 [N, H, W, C]."""
  _, height, width, channels = x.shape
  down, (across, total) = _passes(height), _passes(width)
  down, total = down[0], down[1] * total
  across = np.kron(across.T, np.eye(channels))
  out = np.empty_like(x)
  for start in range(0, len(x), _CHUNK):
    part = x[start : start + _CHUNK]
    # Products of integers below 2**53, hence exact in any order of summation.
    rows = part.reshape(-1, width * channels).astype(np.float64) @ across
    sums = down @ rows.reshape(-1, height, width * channels)
    mean = (sums.astype(np.int64) + total // 2) // total
    out[start : start + _CHUNK] = mean.reshape(part.shape)
  return out


def _passes(size: int) -> tuple[np.ndarray, int]:
  """What the passes do along an axis: integers [size, size], and their sum."""
  width = box(size)
  near = np.arange(size)[:, None] + np.arange(width) - width // 2
  once = np.zeros((size, size))
  np.add.at(once, (np.arange(size)[:, None], near.clip(0, size - 1)), 1)
  return np.linalg.matrix_power(once, PASSES), width**PASSES


def box(size: int) -> int:
  """The odd width of a box whose passes blur by `BLUR` of a side."""
  variance = (BLUR * size) ** 2 * 12 / PASSES
  return 2 * int((variance + 1) ** 0.5 / 2) + 1
