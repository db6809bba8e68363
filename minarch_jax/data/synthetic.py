"""Small made-up sets whose difficulty is a dial, for tests.

Every image shows one of its class's patterns, shifted, before an uneven
background and under noise. Difficulty weakens the pattern, adds patterns per
class (so that no linear map tells the classes apart) and shifts, and raises
background and noise. Networks with one hidden layer of 2, 16 and 256 units
reach a test accuracy of 1.0, 1.0, 1.0 at easy, about 0.4, 0.5, 0.7 at hard, and
chance, 0.25, at difficulty 1.
"""

import numpy as np

from minarch_jax import config, registries
from minarch_jax.data import sources, splits

LEVELS = {"easy": 0.1, "medium": 0.4, "hard": 0.7}

_SIDE, _CLASSES = 8, 4
_TRAIN, _TEST = 1600, 400


def difficulty(name: str) -> float:
  """Reads synthetic:DIFFICULTY, a number in [0, 1] or a named level.

  Raises:
    ConfigError: it is neither.
  """
  text = name.partition(":")[2]
  try:
    value = LEVELS[text] if text in LEVELS else float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise config.ConfigError(
      f"data set {name!r}: write synthetic:DIFFICULTY with a number in [0, 1] "
      f"or one of {', '.join(LEVELS)}{registries.nearest(text, LEVELS)}"
    )
  return value


def _describe(name: str, data_dir: str | None) -> sources.Info:
  difficulty(name)
  return sources.Info((_SIDE, _SIDE, 1), _CLASSES, _TRAIN, _TEST, "")


def _uniform(purpose: int, *shape: int) -> np.ndarray:
  """Draws float64 in (0, 1); every purpose is a stream of its own."""
  bits = splits.random_bits(0, purpose, int(np.prod(shape)))
  return ((bits >> np.uint64(11)).reshape(shape) + 0.5) * 2.0**-53


def _normal(purpose: int, *shape: int) -> np.ndarray:
  """Draws standard normal float64 (Box and Muller 1958)."""
  radius, angle = _uniform(purpose, 2, *shape)
  return np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)


def _read(name: str, data_dir: str | None) -> sources.Raw:
  level = difficulty(name)
  count = _TRAIN + _TEST
  y = np.arange(count, dtype=np.int32) % _CLASSES
  modes, reach = 1 + round(3 * level), round(2 * level)

  patterns = np.sign(_normal(10, _CLASSES, 4, _SIDE, _SIDE))
  mode = (_uniform(11, count) * modes).astype(int)
  shift = np.floor(_uniform(12, count, 2) * (2 * reach + 1)).astype(int) - reach
  image = patterns[y, mode]
  rows = (np.arange(_SIDE) + shift[:, :1]) % _SIDE
  columns = (np.arange(_SIDE) + shift[:, 1:]) % _SIDE
  every = np.arange(count)[:, None, None]
  image = image[every, rows[:, :, None], columns[:, None, :]]

  slope = _normal(13, count, 2, 1, 1)
  ramp = np.linspace(-1, 1, _SIDE)
  background = slope[:, 0] * ramp[:, None] + slope[:, 1] * ramp
  noise = _normal(14, count, _SIDE, _SIDE)
  mixed = (
    (1 - 0.5 * level) * image + level * background + (0.25 + level) * noise
  )
  x = np.clip(np.rint(128 + 30 * mixed), 0, 255).astype(np.uint8)[..., None]
  return sources.raw(x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:])


SOURCE = sources.Source(_describe, _read, ":DIFFICULTY")
