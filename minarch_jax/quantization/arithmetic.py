"""The arithmetic of quantization, written once: scale, encode, decode.

Every function is elementwise up to broadcasting, so it is the same for one
array and for blocks, packs and seeds. Products and divisions are arranged so
that XLA has no rewriting to choose: results are equal bit for bit whether
jitted, eager, vmapped or with a traced width.
"""

import jax
import jax.numpy as jnp

from minarch_jax.quantization import formats

_TINY = float(jnp.finfo(jnp.float32).tiny)


def step_size(
  low: jax.Array, high: jax.Array, format: formats.Format
) -> tuple[jax.Array, jax.Array | None]:
  """Returns the scale and zero point that spread a format over a range.

  Symmetric: scale = high / format.high. Asymmetric: scale =
  (high - low) / (format.high - format.low), and the integer zero point stands
  for 0 exactly (Jacob et al. 2018, arXiv 1712.05877, equation 1). A range of
  nothing but 0 has scale 1.
  """
  if format.symmetric:
    width, codes = high, format.high
  else:
    width, codes = high - low, format.high - format.low
  real = width > _TINY * codes
  # Both sides vary by element: XLA would turn a division by one number into
  # a product with its reciprocal, one unit in the last place off.
  scale = jnp.where(real, width, 1.0) / jnp.where(real, codes, 1.0)
  if format.symmetric:
    return scale, None
  # A range as wide below 0 as above puts its zero point halfway between two
  # integers: lean upwards, so that the last bit of the scale cannot decide.
  zero_point = jnp.floor(format.low - low / scale + (0.5 + 2**-10))
  return scale, jnp.clip(zero_point, format.low, format.high)


def round_trip(
  blocks: jax.Array,
  low: jax.Array,
  high: jax.Array,
  format: formats.Format,
) -> jax.Array:
  """Rounds real numbers to those that the format has over a range."""
  scale, zero_point = step_size(low, high, format)
  codes = encode(blocks, scale, zero_point, format)
  return decode(codes, scale, zero_point, format)


def encode(
  blocks: jax.Array,
  scale: jax.Array,
  zero_point: jax.Array | None,
  format: formats.Format,
) -> jax.Array:
  """Returns the nearest codes of real numbers."""
  # A product with the reciprocal, in so many words: XLA turns some divisions
  # into it and not others, and the codes must not depend on which.
  steps = blocks * (1.0 / scale)
  if zero_point is not None:
    # Rounded before the sum, so that no fused multiply-add changes it.
    steps = jnp.round(steps) + zero_point
  return format.encode(steps)


def decode(
  codes: jax.Array,
  scale: jax.Array,
  zero_point: jax.Array | None,
  format: formats.Format,
) -> jax.Array:
  """Returns the real numbers that codes stand for, float32."""
  steps = format.decode(codes)
  return (steps if zero_point is None else steps - zero_point) * scale
