"""How many entries a sparsity keeps: Python's `round((1 - s) * n)`, compiled.

The expression is float64 arithmetic: its value at s = 0.9, n = 35 is 3 and not
4, because 1 - 0.9 is a little less than a tenth. Compiled programs have float32
only (and XLA may replace a division by a product), so it is carried out here in
int32, bit by bit; a sparsity that is traced then counts like the number in the
flag.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from minarch_jax.types import Array

# Fractions are 54 bits: six digits of nine bits, least significant first.
_BITS = 9
_DIGITS = 6
_DECIMALS = 10**6


def check(sparsity: float | Array) -> None:
  """Raises ValueError unless sparsity, where it is known, is in [0, 1)."""
  if isinstance(sparsity, jax.core.Tracer):
    return
  values = jnp.ravel(jnp.asarray(sparsity, jnp.float32)).tolist()
  if isinstance(sparsity, (int, float)):
    values = [float(sparsity)]
  for value in values:
    if not 0.0 <= value < 1.0:
      raise ValueError(
        f"sparsity {value:g} is outside [0, 1); it is the fraction of weights "
        "removed, for example 0.6"
      )


def kept_count(sparsity: float | Array, n: int | Array) -> jax.Array:
  """Counts the entries kept: `round((1 - sparsity) * n)` of Python floats.

  Args:
    sparsity: fraction removed, in [0, 1). A Python float is taken exactly; an
      array (concrete or traced, scalar) stands for its nearest number of six
      decimals, so float32 0.9 means 0.9.
    n: int32 number of entries, any shape.

  Returns:
    int32, the shape of n.
  """
  n = jnp.asarray(n, jnp.int32)
  kept = _kept_digits(sparsity)
  factors = [(n >> _BITS * i) & _MASK for i in range(4)]
  product = [jnp.zeros_like(n) for _ in range(len(kept) + len(factors))]
  for i, digit in enumerate(kept):
    for j, factor in enumerate(factors):
      product[i + j] += digit * factor
  product = _carry(product)
  whole = sum(d << _BITS * i for i, d in enumerate(product[_DIGITS:-1]))
  return _round(jnp.asarray(whole), product[:_DIGITS])


_MASK = (1 << _BITS) - 1


def _carry(digits: Sequence[Array]) -> list[jax.Array]:
  """Brings signed sums back to digits; the last takes what is left over."""
  out, carry = [], jnp.int32(0)
  for digit in digits[:-1]:
    total = digit + carry
    out.append(total & _MASK)
    carry = total >> _BITS
  return [*out, digits[-1] + carry]


def _kept_digits(sparsity) -> list:
  """Seven digits of the float64 number 1 - sparsity, in units of 2**-54."""
  if isinstance(sparsity, (int, float)):
    # Exact: 1 - s is a multiple of 2**-53 for every float64 s in [0, 1).
    whole = int((1.0 - float(sparsity)) * 2.0**54)
    return [jnp.int32(whole >> _BITS * i & _MASK) for i in range(7)]
  removed = jnp.round(jnp.asarray(sparsity) * _DECIMALS).astype(jnp.int32)
  removed = jnp.clip(removed, 0, _DECIMALS - 1)
  low, high = _float64(removed)
  digits = [(low >> _BITS * i) & _MASK for i in range(3)]
  digits += [(high >> _BITS * i) & _MASK for i in range(3)]
  return _carry([-digit for digit in digits] + [jnp.int32(1)])


def _float64(removed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds removed / 10**6 as float64 does, then to a multiple of 2**-53.

  Both roundings happen in `1 - s`: that of the decimal to the float s, and that
  of the difference. Returns 27 low and 27 high bits, in units of 2**-54.
  """
  # Shift until the fraction is in [1/2, 1): its 53 bits are those of the float.
  shift = jnp.zeros_like(removed)
  for bits in (16, 8, 4, 2, 1):
    small = (removed > 0) & (removed < -(-_DECIMALS >> bits))
    removed = jnp.where(small, removed << bits, removed)
    shift = jnp.where(small, shift + bits, shift)
  rest, quotient = removed, []
  for _ in range(_DIGITS):
    rest = rest << _BITS
    quotient.append(rest // _DECIMALS)
    rest = rest % _DECIMALS
  last = quotient[-1]
  # No ties: a decimal is never halfway between two such floats.
  last = (last >> 1) + ((last & 1) * _DECIMALS + rest > _DECIMALS)
  high = quotient[0] << 2 * _BITS | quotient[1] << _BITS | quotient[2]
  low = (quotient[3] << 2 * _BITS | quotient[4] << _BITS) + (last << 1)
  high, low = high + (low >> 27), low & (1 << 27) - 1
  # Back by `shift`, to the nearest even multiple of 2**-53.
  drop = (shift + 1).astype(jnp.uint32)
  one = jnp.uint32(1)
  high, low = high.astype(jnp.uint32), low.astype(jnp.uint32)
  dropped = low & ((one << drop) - one)
  low = (low >> drop | high << (27 - drop)) & ((one << 27) - one)
  high = high >> drop
  half = one << (drop - one)
  up = (dropped > half) | ((dropped == half) & (low & one == one))
  low = low + up.astype(jnp.uint32)
  # Here the unit is 2**-53; callers count in 2**-54.
  low, high = low << one, (high << one) + (low >> 26)
  low = low & ((one << 27) - one)
  return low.astype(jnp.int32), high.astype(jnp.int32)


def _round(whole: jax.Array, fraction: list[jax.Array]) -> jax.Array:
  """Rounds whole + fraction to even, after the float64 product's rounding."""
  above = fraction[-1] >> _BITS - 1
  # Distance to one half; complementing digits below it mirrors them (a unit of
  # 2**-54 short, which the comparison allows for).
  mirrored = [jnp.where(above == 1, d, _MASK - d) for d in fraction]
  mirrored[-1] = mirrored[-1] & (_MASK >> 1)
  distance = sum(
    d.astype(jnp.float32) * 2.0 ** (_BITS * (i - _DIGITS))
    for i, d in enumerate(mirrored)
  )
  distance = jnp.where(above == 1, distance, distance + 2.0**-54)
  # The product is a float64: within half its last bit of the middle IS it.
  exponent = 31 - lax.clz(jnp.maximum(whole, 1))
  exponent = jnp.where(whole == 0, jnp.where(above == 1, -1, -2), exponent)
  half_bit = lax.bitcast_convert_type(exponent - 53 + 127 << 23, jnp.float32)
  tie = distance <= half_bit
  up = jnp.where(tie, whole & 1, above)
  return whole + up
