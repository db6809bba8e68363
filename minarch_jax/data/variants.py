"""Variants of any data set: digits:blurred, mnist:noisy.

A variant is a function of the stored images; it changes neither the shape nor
the number of images, and is the same on every machine.
"""

import numpy as np

from minarch_jax.data import sources, splits

BLUR = 0.177  # deviation of the blur, in sides of an image: 1.4 of 8 pixels
PASSES = 3  # of a box; three are close to a Gaussian
SHARE = 0.1  # of the labels that are wrong
_NOISY = 2  # purpose of the draws
_CHUNK = 2048  # images


def blurred(raw: sources.Raw) -> sources.Raw:
  """Blurs every image, the test split's too: the same task, less sharp.

  Three passes of a box along rows and columns, edges repeated, in integers and
  rounded once (half up).
  """
  return sources.raw(_blur(raw.x), raw.y, _blur(raw.test_x), raw.test_y)


def noisy(raw: sources.Raw) -> sources.Raw:
  """Replaces a tenth of the labels outside the test split by other classes.

  Which, and by which, depends on the place of the image alone. Labels of a test
  split that is carved from the images later are as noisy as the others.
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
  out = np.empty_like(x)
  sides = [box(size) for size in x.shape[1:3]]
  for start in range(0, len(x), _CHUNK):
    part = x[start : start + _CHUNK].astype(np.int64)
    for axis, width in enumerate(sides, start=1):
      for _ in range(PASSES):
        part = _sums(part, width, axis)
    total = (sides[0] * sides[1]) ** PASSES
    out[start : start + _CHUNK] = (part + total // 2) // total
  return out


def box(size: int) -> int:
  """The odd width of a box whose passes blur by `BLUR` of a side."""
  variance = (BLUR * size) ** 2 * 12 / PASSES
  return 2 * int((variance + 1) ** 0.5 / 2) + 1


def _sums(x: np.ndarray, width: int, axis: int) -> np.ndarray:
  """Adds `width` neighbours along an axis, edges repeated."""
  margin = width // 2
  padding = [(0, 0)] * x.ndim
  padding[axis] = (margin + 1, margin)
  sums = np.pad(x, padding, mode="edge").cumsum(axis)
  size = x.shape[axis]
  upper = np.arange(size) + width
  return np.take(sums, upper, axis) - np.take(sums, upper - width, axis)
