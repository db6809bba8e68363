"""How many entries a sparsity keeps: Python's `round((1 - s) * n)`, compiled.

The expression is float64 arithmetic: its value at s = 0.9, n = 35 is 3 and not
4, because 1 - 0.9 is a little less than a tenth. Compiled programs have float32
only (and XLA may replace a division by a product), so it is carried out here in
int32 digits; a traced sparsity then counts like the number in the flag.
"""

import jax
from jax import core, lax
import jax.numpy as jnp
import numpy as np

from minarch_jax.types import Array

# Fractions have 54 bits: six digits of nine, along axis 0, the lowest first.
_BITS = 9
_MASK = (1 << _BITS) - 1
_DIGITS = 6
_DECIMALS = 10**6


def check(sparsity: float | Array) -> None:
  """Raises ValueError unless sparsity is a number, in [0, 1) where known."""
  known = not isinstance(sparsity, core.Tracer)
  kind = np.asarray(sparsity).dtype.kind if known else "f"
  if kind not in "iuf" or np.ndim(sparsity):
    raise ValueError(
      f"sparsity {sparsity!r} is not one number; map over several with jax.vmap"
    )
  if known and not 0.0 <= float(sparsity) < 1.0:
    raise ValueError(
      f"sparsity {float(sparsity):g} is outside [0, 1); it is the fraction of "
      "weights removed, for example 0.6"
    )


def kept_count(sparsity: float | Array, n: int | Array) -> Array:
  """Counts the entries kept: `round((1 - sparsity) * n)` of Python floats.

  Args:
    sparsity: fraction removed, in [0, 1). A Python float is taken exactly; an
      array (concrete or traced, scalar) stands for its nearest number of six
      decimals, so float32 0.9 means 0.9.
    n: int32 number of entries, any shape.

  Returns:
    int32, the shape of n.
  """
  if isinstance(sparsity, (int, float)):
    if isinstance(n, (int, np.ndarray, np.generic)):
      return np.round((1 - float(sparsity)) * np.asarray(n)).astype(np.int32)
    # Exact: 1 - s is a multiple of 2**-53 for every float s in [0, 1).
    kept = int((1 - float(sparsity)) * 2**54)
    low, high = jnp.int32(kept & (1 << 27) - 1), jnp.int32(kept >> 27)
  else:
    removed = jnp.round(jnp.asarray(sparsity) * _DECIMALS).astype(jnp.int32)
    low, high = _kept_fraction(jnp.clip(removed, 0, _DECIMALS - 1))
  n = jnp.asarray(n, jnp.int32)
  column = (-1,) + (1,) * n.ndim
  digits = jnp.concatenate([_digits(low, 3), _digits(high, 8)]).reshape(column)
  product = sum(
    jnp.roll(digits, i, axis=0) * factor[None]
    for i, factor in enumerate(_digits(n, 4))
  )
  product = _carry(jnp.asarray(product))
  places = (1 << _BITS * np.arange(4)).astype(np.int32).reshape(column)
  whole = jnp.sum(places * product[_DIGITS : _DIGITS + 4], axis=0)
  return _round(whole, product[:_DIGITS])


def _digits(x: jax.Array, count: int) -> jax.Array:
  """The lowest digits of x >= 0, along a new axis 0."""
  places = np.minimum(_BITS * np.arange(count), 31).astype(np.int32)
  return x[None] >> places.reshape((-1,) + (1,) * x.ndim) & _MASK


def _carry(digits: jax.Array) -> jax.Array:
  """Brings sums back to digits along axis 0."""

  def step(_, digits):
    carry = jnp.roll(digits >> _BITS, 1, axis=0)
    return (digits & _MASK) + carry  # the highest digit never overflows

  return lax.fori_loop(0, digits.shape[0], step, digits)


def _kept_fraction(removed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The float64 number 1 - removed / 10**6: 27 low, 28 high bits of 2**-54.

  Two roundings: the decimal to a float, then the difference to 2**-53.
  """
  # Shift until the fraction is in [1/2, 1): its 53 bits are those of the float.
  shift = lax.clz(jnp.maximum(removed, 1)) - lax.clz(jnp.int32(_DECIMALS))
  shift -= ((removed << shift) >= _DECIMALS).astype(jnp.int32)

  def divide(rest, _):
    rest = rest << _BITS
    return rest % _DECIMALS, rest // _DECIMALS

  rest, digits = lax.scan(divide, removed << shift, length=_DIGITS)
  # To 53 bits; no ties, a decimal is never halfway between two such floats.
  up = (digits[5] & 1) * _DECIMALS + rest > _DECIMALS
  places = (1 << _BITS * np.arange(3)[::-1]).astype(np.int32)
  high, low = places @ digits[:3], places @ digits[3:]
  low = (low >> 1) + up.astype(jnp.int32) << 1
  high, low = high + (low >> 27), low & (1 << 27) - 1
  # Back by `shift`, to the nearest even multiple of 2**-53.
  drop = shift + 1
  dropped = low & (1 << drop) - 1
  spilled = (high & (1 << drop) - 1) << 27 - drop
  high, low = high >> drop, low >> drop | spilled
  half = 1 << shift
  up = (dropped > half) | ((dropped == half) & (low & 1 == 1))
  low = low + up.astype(jnp.int32) << 1  # from units of 2**-53 to 2**-54
  kept = (1 << 27) - (high << 1) - (low >> 27) - (low & (1 << 27) - 1 > 0)
  return -low & (1 << 27) - 1, kept.astype(jnp.int32)


def _round(whole: jax.Array, fraction: jax.Array) -> jax.Array:
  """Rounds whole + fraction to even, after the float64 product's rounding."""
  above = fraction[-1] >> _BITS - 1 == 1
  # Distance to one half; complementing the digits mirrors what is below it (a
  # unit of 2**-54 short).
  mirrored = jnp.where(above[None], fraction, _MASK - fraction)
  mirrored = mirrored.at[-1].set(mirrored[-1] & _MASK >> 1)
  places = 2.0 ** (_BITS * (np.arange(_DIGITS) - _DIGITS))
  places = places.astype(np.float32).reshape((-1,) + (1,) * whole.ndim)
  distance = jnp.sum(places * mirrored.astype(jnp.float32), axis=0)
  distance = jnp.where(above, distance, distance + 2.0**-54)
  # The product is a float64: within half its last bit of the middle IS it.
  exponent = 31 - lax.clz(jnp.maximum(whole, 1))
  exponent = jnp.where(whole > 0, exponent, jnp.where(above, -1, -2))
  bit = lax.bitcast_convert_type((exponent - 53 + 127) << 23, jnp.float32)
  up = jnp.where(distance <= bit, whole & 1 == 1, above)
  return whole + up.astype(jnp.int32)
