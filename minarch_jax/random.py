"""Random arrays whose value at a coordinate does not depend on the shape.

A narrow network lives in the leading block of a wider parent (DESIGN.md). It
is the same network only if its random numbers are those it would draw alone,
so every element has its own Threefry block (Salmon et al. 2011), counted by
its coordinate: `bits(key, (2, 3))` is the leading block of `bits(key, (5, 9))`.
"""

from collections.abc import Sequence
import enum
import itertools
import math
from typing import Any
import zlib

import jax
from jax import lax
from jax.extend import random as jex_random
import jax.numpy as jnp
import numpy as np

MAX_AXIS = 1 << 16


@enum.unique
class Purpose(enum.IntEnum):
  """What a seed is used for; each folds its own number into the key."""

  INIT = 0  # initial weights
  PRUNE = 1  # criteria that draw
  AGAIN = 2  # new weights and shuffled masks, the controls of pruning
  MOVE = 4  # connections that grow at random
  PROBE = 3  # the start of a probe's power iteration
  LOSS = 5  # what a loss of one's own draws, as dropout


def key_for(seed: Any, purpose: Any) -> jax.Array:
  """Derives a key from (seed, purpose) alone, not from how many seeds run.

  Both may be traced; a traced purpose is the number of a `Purpose`.
  """
  number = int(purpose) if isinstance(purpose, Purpose) else purpose
  return jax.random.fold_in(jax.random.key(seed), number)


def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws uniform uint32 [*shape], one Threefry block per element.

  Args:
    key: a Threefry key (typed, or raw uint32 [2]).
    shape: up to 4 axes of up to 65,536 entries each.

  Raises:
    ValueError: too many or too long axes, or a key of another generator.
  """
  return _words(key, shape)[0]


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws float32 [*shape], uniform on the 2**24 grid points of [0, 1)."""
  return _grid(*_words(key, shape))


def normal(
  key: jax.Array,
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike = "float32",
) -> jax.Array:
  """Draws N(0, 1) [*shape] by inverting the distribution function.

  float64 values refine the float32 ones: they share their leading bits.

  Raises:
    ValueError: as `bits`.
  """
  return _invert(*_words(key, shape), dtype)


def normals(
  key: jax.Array,
  leaves: Sequence[tuple[tuple[str, ...], tuple[int, ...]]],
) -> list[jax.Array]:
  """Draws N(0, 1) values of several leaves by one call of the generator.

  One Threefry over all entries compiles in the time of one leaf's. A value
  depends on (key, path, coordinate) alone.

  Args:
    key: a Threefry key.
    leaves: path and shape of each leaf.

  Returns:
    One array per leaf, in the default float type.

  Raises:
    ValueError: as `bits`.
  """
  dtype = jnp.result_type(float)
  return _each(key, leaves, lambda high, low: _invert(high, low, dtype))


def uniforms(
  key: jax.Array,
  leaves: Sequence[tuple[tuple[str, ...], tuple[int, ...]]],
) -> list[jax.Array]:
  """Draws float32 values in [0, 1) of several leaves, as `normals` does."""
  return _each(key, leaves, _grid)


def coordinates(
  leaves: Sequence[tuple[tuple[str, ...], tuple[int, ...]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Lists the name and the coordinate of every entry of several leaves.

  Args:
    leaves: path and shape of each leaf.

  Returns:
    Three uint32 [entries]: a hash of the path, and two words of coordinate.

  Raises:
    ValueError: as `bits`.
  """
  names, highs, lows = [], [], []
  for path, shape in leaves:
    _check(shape)
    axes = np.indices(shape, np.uint32).reshape(len(shape), -1)
    axes = np.concatenate([np.zeros((4 - len(shape), axes.shape[1])), axes])
    axes = axes.astype(np.uint32)
    names.append(np.full(axes.shape[1], zlib.crc32("/".join(path).encode())))
    highs.append(axes[0] << 16 | axes[1])
    lows.append(axes[2] << 16 | axes[3])
  names, highs, lows = map(np.concatenate, (names, highs, lows))
  return names.astype(np.uint32), highs, lows


def normal_at(
  key: jax.Array, names: jax.Array, highs: jax.Array, lows: jax.Array
) -> jax.Array:
  """Draws N(0, 1) at any listed coordinates, the values of `normals` there."""
  high, low = _named_words(key, names, highs, lows)
  return _invert(high, low, jnp.result_type(float))


def uniform_at(
  key: jax.Array, names: jax.Array, highs: jax.Array, lows: jax.Array
) -> jax.Array:
  """Draws in [0, 1) at listed coordinates, the values of `uniforms` there."""
  return _grid(*_named_words(key, names, highs, lows))


LAWS = {"normal": normal_at, "uniform": uniform_at}


def _each(key, leaves, convert) -> list[jax.Array]:
  """Draws the words of all leaves in one call; the path enters the key."""
  counts = [_counts(shape) for _, shape in leaves]
  names = [zlib.crc32("/".join(path).encode()) for path, _ in leaves]
  sizes = [math.prod(shape) for _, shape in leaves]

  def joined(parts):
    return jnp.concatenate([part.reshape(-1) for part in parts])

  first = joined(
    jnp.full(size, name, jnp.uint32)
    for size, name in zip(sizes, names, strict=True)
  )
  high, low = _named_words(
    key,
    first,
    joined(high for high, _ in counts),
    joined(low for _, low in counts),
  )
  # Fused with what follows, a value's last bit would depend on its neighbours.
  values = lax.optimization_barrier(convert(high, low))
  ends = itertools.accumulate(sizes)
  return [
    values[end - size : end].reshape(shape)
    for end, size, (_, shape) in zip(ends, sizes, leaves, strict=True)
  ]


def _grid(high, low) -> jax.Array:
  """Maps random words to the grid of `uniform`."""
  del low
  return (high >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def _invert(high, low, dtype) -> jax.Array:
  """Maps random words to N(0, 1) by inverting the distribution function."""
  # The middle of cell b of 2**23 (2**52) cells of (-1, 1): never -1 or 1,
  # where the inverse is infinite, and the sum is exact.
  if jnp.dtype(dtype) == jnp.float64:
    cell = high.astype(dtype) * 2.0**20 + (low >> 12).astype(dtype)
    u = (cell + 0.5) * 2.0**-51 - 1.0
  else:
    cell = (high >> 9).astype(jnp.float32)
    u = (cell + 0.5) * jnp.float32(2**-22) - 1.0
  return (math.sqrt(2) * lax.erf_inv(u)).astype(dtype)


def _named_words(key, names, highs, lows) -> tuple[jax.Array, jax.Array]:
  """Two uint32 [entries]: the Threefry block at each coordinate of a name."""
  first, second = _key_words(key)
  high, low = jex_random.threefry2x32_p.bind(
    names ^ first, jnp.broadcast_to(second, names.shape), highs, lows
  )
  return high, low


def _words(key, shape) -> tuple[jax.Array, jax.Array]:
  """Two uint32 [*shape]: the Threefry block at each coordinate."""
  counts = _counts(shape)
  first, second = (jnp.broadcast_to(word, shape) for word in _key_words(key))
  high, low = jex_random.threefry2x32_p.bind(first, second, *counts)
  return high, low


def _key_words(key: jax.Array) -> jax.Array:
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  if key.shape != (2,):
    raise ValueError(
      f"key data of shape {key.shape} is no Threefry key; make it with "
      "jax.random.key(seed, impl='threefry2x32')"
    )
  return key


def _check(shape) -> None:
  if len(shape) > 4 or any(size > MAX_AXIS for size in shape):
    raise ValueError(
      f"shape {tuple(shape)}: at most 4 axes of at most {MAX_AXIS} entries "
      "can be drawn by coordinate; reshape before drawing"
    )


def _counts(shape) -> tuple[jax.Array, jax.Array]:
  """Two uint32 [*shape]: the coordinate of each element, two axes a word."""
  _check(shape)
  axes = [lax.broadcasted_iota(jnp.uint32, shape, i) for i in range(len(shape))]
  axes = [jnp.zeros(shape, jnp.uint32)] * (4 - len(axes)) + axes
  return axes[0] << 16 | axes[1], axes[2] << 16 | axes[3]
