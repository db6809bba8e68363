"""Random arrays whose value at a coordinate does not depend on the shape.

A narrow network lives in the leading block of a wider parent (DESIGN.md). It
is the same network only if its random numbers are those it would draw alone,
so every element has its own Threefry block (Salmon et al. 2011), counted by
its coordinate: `bits(key, (2, 3))` is the leading block of `bits(key, (5, 9))`.
"""

import math
import zlib

import jax
from jax import lax
from jax.extend import random as jex_random
import jax.numpy as jnp

MAX_AXIS = 1 << 16


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
  return (bits(key, shape) >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def rademacher(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws float32 [*shape], -1 or 1 with equal probability."""
  return 1.0 - 2.0 * (bits(key, shape) >> 31).astype(jnp.float32)


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
  high, low = _words(key, shape)
  # The middle of cell b of 2**23 (2**52) cells of (-1, 1): never -1 or 1,
  # where the inverse is infinite, and the sum is exact.
  if jnp.dtype(dtype) == jnp.float64:
    cell = high.astype(dtype) * 2.0**20 + (low >> 12).astype(dtype)
    u = (cell + 0.5) * 2.0**-51 - 1.0
  else:
    cell = (high >> 9).astype(jnp.float32)
    u = (cell + 0.5) * jnp.float32(2**-22) - 1.0
  return (math.sqrt(2) * lax.erf_inv(u)).astype(dtype)


def fold_path(key: jax.Array, path: tuple[str, ...]) -> jax.Array:
  """Derives the key of one leaf from its names, in whatever tree it stands."""
  return jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))


def _words(key, shape) -> tuple[jax.Array, jax.Array]:
  """Two uint32 [*shape]: the Threefry block at each coordinate."""
  if len(shape) > 4 or any(size > MAX_AXIS for size in shape):
    raise ValueError(
      f"shape {tuple(shape)}: at most 4 axes of at most {MAX_AXIS} entries "
      "can be drawn by coordinate; reshape before drawing"
    )
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  if key.shape != (2,):
    raise ValueError(
      f"key data of shape {key.shape} is no Threefry key; make it with "
      "jax.random.key(seed, impl='threefry2x32')"
    )
  axes = [lax.broadcasted_iota(jnp.uint32, shape, i) for i in range(len(shape))]
  axes = [jnp.zeros(shape, jnp.uint32)] * (4 - len(axes)) + axes
  counts = (axes[0] << 16 | axes[1], axes[2] << 16 | axes[3])
  first, second = (jnp.broadcast_to(word, shape) for word in key)
  high, low = jex_random.threefry2x32_p.bind(first, second, *counts)
  return high, low
