"""Selects the k largest of many scores, exactly, without sorting.

Scores become uint32 keys of the same order; the k-th largest key is found by
bisection, and among equal keys the position from which on they are kept. Each
step is one comparison and count over all entries, which vectorises and maps
over seeds, where a sort does not: LeNet-300-100 (266,200 weights), one level,
2 CPU cores: 2 ms against 20 ms for one sort.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
import jax.numpy as jnp

from minarch_jax.types import Array

GONE = 0  # key of an entry that does not exist or is already pruned


def sort_keys(scores: Array, alive: Array) -> jax.Array:
  """Maps float scores to uint32 keys of the same order, 0 where not alive.

  Scores are compared as float32; -0 equals 0 and NaN is below everything.
  """
  x = jnp.asarray(scores).astype(jnp.float32)
  x = jnp.where(jnp.isnan(x), -jnp.inf, jnp.where(x == 0, 0.0, x))
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  # Negative floats order backwards; flipping them leaves -inf at 0x007fffff,
  # so that every score is above GONE.
  negative = bits >> 31 == 1
  keys = jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))
  return jnp.where(alive, keys, jnp.uint32(GONE))


def keep_largest(keys: Sequence[Array], kept: Array) -> list[jax.Array]:
  """Marks the `kept` largest keys of all arrays together.

  Among equal keys those that come later (array by array, in row-major order)
  are kept, as after a stable ascending sort.

  Args:
    keys: uint32 arrays; entries with key 0 are never kept.
    kept: int32 scalar; all other entries are kept when there are fewer.

  Returns:
    bool arrays of the same shapes.
  """
  positions, start = [], 0
  for array in keys:
    iota = lax.iota(jnp.uint32, array.size).reshape(array.shape)
    positions.append(iota + jnp.uint32(start))
    start += array.size

  def at_least(threshold):
    return _count([array >= threshold for array in keys])

  threshold, reached = largest(at_least, kept, 1, 2**32 - 2)
  tied = [array == threshold for array in keys]
  needed = kept - (reached - _count(tied))

  def tied_from(position):
    pairs = zip(tied, positions, strict=True)
    return _count([t & (p >= position) for t, p in pairs])

  first, _ = largest(tied_from, needed, 0, start)
  return [
    (array > threshold) | (t & (p >= first))
    for array, t, p in zip(keys, tied, positions, strict=True)
  ]


def _count(marks: Sequence[Array]) -> jax.Array:
  return sum((jnp.sum(mark, dtype=jnp.int32) for mark in marks), jnp.int32(0))


def largest(
  count: Callable[[jax.Array], jax.Array], needed: Array, low: int, high: int
) -> tuple[jax.Array, jax.Array]:
  """Finds the largest bound with count(bound) >= needed, or `low`.

  `count` falls as the bound rises. Stops early at a bound that counts exactly
  `needed`: any such bound selects the same entries.

  Returns:
    the bound (uint32) and its count.
  """

  def unfinished(state):
    low, high, reached = state
    return (low < high) & (reached != needed)

  def halve(state):
    low, high, reached = state
    middle = high - (high - low) // 2
    found = count(middle)
    enough = found >= needed
    return (
      jnp.where(enough, middle, low),
      jnp.where(enough, high, middle - 1),
      jnp.where(enough, found, reached),
    )

  start = jnp.uint32(low)
  state = (start, jnp.uint32(high), count(start))
  bound, _, reached = lax.while_loop(unfinished, halve, state)
  return bound, reached
