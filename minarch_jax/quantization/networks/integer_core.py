"""Integer execution: int8 x int8 -> int32 products, requantised to int8.

A real layer y = x W + b with x = sx (qx - zx) and W = sw qw is computed as

  acc = (qx - zx) qw + round(b / (sx sw))          int32
  qy  = clip(zy + round(acc * (sx sw / sy)))       int8

with the real multiplier sx sw / sy as a 15-bit integer and a shift, so nothing
but integers is touched and results are the same on every machine (Jacob et al.
2018, arXiv 1712.05877, section 2.2). Codes narrower than 8 bits are int8 too:
unpacked for the product, which XLA:CPU does not have for int4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import types

_MANTISSA = 15  # bits of the integer multiplier
_FINEST = 38  # largest right shift
_WIDEST = 9  # outputs beyond +-2**9 saturate every int8 code


class Multiplier(NamedTuple):
  """The factor mantissa * 2**(left - right), one for each output channel.

  All int32. An accumulator beyond +-limit saturates the result; clipped to it,
  no product leaves 32 bits.
  """

  mantissa: types.Array
  left: types.Array
  right: types.Array
  limit: types.Array


def make_multiplier(factor: types.Array) -> Multiplier:
  """Writes real factors as integers, within 2**-15 of their value.

  (Factors below 2**-24, whose products round to nearly nothing, within
  2**-39.) Runs on the host, where factors are known.

  Raises:
    ValueError: a factor that is not in (0, 2**20].
  """
  real = np.asarray(factor, np.float64)
  if not np.all((real > 0) & (real <= 2**20)):
    raise ValueError(
      f"requantisation factors must be in (0, 2**20], got {real.min()} to "
      f"{real.max()}; calibrate the output range"
    )
  _, exponent = np.frexp(real)  # real = f * 2**exponent, f in [0.5, 1)
  left = np.maximum(exponent + 1, 0)  # what is left of the factor is below 1/2
  right = np.minimum(_MANTISSA - (exponent - left), _FINEST)
  mantissa = np.round(np.ldexp(real, right - left))
  limit = np.minimum(np.ceil(2.0**_WIDEST / real), 2.0**30)
  parts = (mantissa, left, right, limit)
  return Multiplier(*(part.astype(np.int32) for part in parts))


def requantize(
  acc: jax.Array,
  multiplier: Multiplier,
  zero_point: types.Array | int,
  low: types.Array | int = -128,
  high: types.Array | int = 127,
) -> jax.Array:
  """Scales int32 accumulators to int8 codes.

  Computes clip(zero_point + floor(acc * factor + 1/2), low, high) exactly, in
  32-bit integers: the accumulator is cut into halves of 15 and 17 bits.

  Args:
    acc: int32 [..., N] within +-2**30.
    multiplier: of shape [N] or scalars.
    zero_point: code of the real number 0.
    low: lowest code; the zero point here makes a ReLU.
    high: highest code.
  """
  lead = (1,) * (acc.ndim - np.ndim(multiplier.mantissa))
  mantissa, left, right, limit = (
    jnp.asarray(part, jnp.int32).reshape(lead + np.shape(part))
    for part in multiplier
  )
  acc = jnp.clip(acc, -limit, limit) << left
  upper, lower = acc >> _MANTISSA, acc & (2**_MANTISSA - 1)
  # floor((acc m + 2**(right-1)) / 2**right), as the floor of a floor.
  total = upper * mantissa + ((lower * mantissa) >> _MANTISSA)
  rest = right - _MANTISSA
  scaled = (total + (1 << (rest - 1))) >> rest
  codes = jnp.asarray(zero_point, jnp.int32) + scaled
  return jnp.clip(codes, low, high).astype(jnp.int8)


def dot(
  qx: jax.Array, zero_point: types.Array | int, qw: jax.Array
) -> jax.Array:
  """Multiplies int8 matrices: (qx - zero_point) qw, exactly.

  Args:
    qx: int8 [..., K].
    zero_point: code of 0 in qx, a scalar.
    qw: int8 [K, N], symmetric.

  Returns:
    int32 [..., N].

  Raises:
    ValueError: inputs other than int8, or more than 33,000 of them, whose sum
      could leave +-2**30.
  """
  for what, q in (("inputs", qx), ("weights", qw)):
    if q.dtype != jnp.int8:
      raise ValueError(f"integer products take int8 {what}, got {q.dtype}")
  if qw.shape[0] * 255 * 127 >= 2**30:
    raise ValueError(f"{qw.shape[0]} inputs may overflow a sum of 2**30")
  acc = jax.lax.dot_general(
    qx,
    qw,
    (((qx.ndim - 1,), (0,)), ((), ())),
    preferred_element_type=jnp.int32,
  )
  sums = jnp.sum(qw, 0, dtype=jnp.int32)
  sums = sums.reshape((1,) * (acc.ndim - 1) + sums.shape)
  return acc - jnp.asarray(zero_point, jnp.int32) * sums


def patches(
  x: jax.Array,
  window: Sequence[int],
  padding: str,
  fill: types.Array | int = 0,
) -> jax.Array:
  """Writes [B, H, W, C] as the rows a convolution multiplies (im2col).

  Args:
    x: images or feature maps of any type.
    window: height and width of the kernel, odd under SAME.
    padding: SAME (size kept) or VALID.
    fill: what the padding holds; the zero point, for codes.

  Returns:
    [B, H', W', h * w * C] in the kernel's row-major order.

  Raises:
    ValueError: another padding.
  """
  if padding not in ("SAME", "VALID"):
    raise ValueError(f"padding {padding!r} is not SAME or VALID")
  height, width = window
  if padding == "SAME":
    rows, columns = height // 2, width // 2
    margin = ((0, 0), (rows, rows), (columns, columns), (0, 0))
    x = jnp.pad(x, margin, constant_values=jnp.asarray(fill, x.dtype))
  across = x.shape[1] - height + 1, x.shape[2] - width + 1
  shifted = [
    x[:, i : i + across[0], j : j + across[1]]
    for i in range(height)
    for j in range(width)
  ]
  return jnp.concatenate(shifted, axis=-1)


def padding_rule(shapes: Sequence[tuple[int, ...]]) -> str:
  """The architectures' rule: one convolution has no padding, several have."""
  return "SAME" if sum(len(shape) == 4 for shape in shapes) > 1 else "VALID"


def convolution(
  qx: jax.Array,
  zero_point: types.Array | int,
  qw: jax.Array,
  padding: str,
) -> jax.Array:
  """Convolves int8 feature maps with int8 kernels, exactly.

  Args:
    qx: int8 [B, H, W, I].
    zero_point: code of 0 in qx, which the padding holds too.
    qw: int8 [h, w, I, O], symmetric.
    padding: SAME or VALID.

  Returns:
    int32 [B, H', W', O].
  """
  rows = patches(qx, qw.shape[:2], padding, zero_point)
  return dot(rows, zero_point, qw.reshape(-1, qw.shape[-1]))
