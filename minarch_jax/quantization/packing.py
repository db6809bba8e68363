"""Bit packing: unsigned values of 1 to 8, 16 or 32 bits into bytes and back.

Values lie one after another, least significant bit first, across byte borders;
unused bits of the last byte are 0. So n values of b bits take exactly
ceil(n * b / 8) bytes, and bitmaps are the case of one bit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax import types

_BYTE = (1, 2, 4, 8, 16, 32, 64, 128)


def num_bytes(count: Any, bits: Any) -> Any:
  """Counts the bytes of packed values: ceil(count * bits / 8), elementwise."""
  return -(-count * bits // 8)


def raw_dtype(bits: int) -> jnp.dtype:
  """The unsigned type that holds one value of `bits` bits.

  Raises:
    ValueError: no type of that width is packed.
  """
  if bits not in (*range(1, 9), 16, 32):
    raise ValueError(f"bits {bits} cannot be packed; use 1 to 8, 16 or 32")
  return jnp.dtype(f"uint{max(bits, 8)}")


# Compiled whole: a file would take a second of single operations otherwise.
@functools.partial(jax.jit, static_argnums=1)
def pack(raw: types.Array, bits: int) -> jax.Array:
  """Packs unsigned values into bytes.

  Args:
    raw: unsigned integers below 2**bits, any shape, read in row-major order.
    bits: 1 to 8, 16 or 32.

  Returns:
    uint8 [ceil(raw.size * bits / 8)].
  """
  raw = raw.reshape(-1).astype(raw_dtype(bits))
  if bits >= 8:
    return jax.lax.bitcast_convert_type(raw, jnp.uint8).reshape(-1)
  digits = (raw[:, None] >> jnp.arange(bits, dtype=jnp.uint8)[None]) & 1
  digits = digits.reshape(-1)
  digits = jnp.pad(digits, (0, -digits.size % 8)).reshape(-1, 8)
  places = jnp.array([_BYTE], jnp.uint8)
  return jnp.sum(digits * places, 1, dtype=jnp.uint8)


@functools.partial(jax.jit, static_argnums=(1, 2))
def unpack(packed: types.Array, bits: int, count: int) -> jax.Array:
  """Inverts `pack`.

  Args:
    packed: uint8 [ceil(count * bits / 8)].
    bits: 1 to 8, 16 or 32.
    count: how many values there are.

  Returns:
    Unsigned integers [count]: uint8, uint16 or uint32.

  Raises:
    ValueError: the number of bytes is not that of `count` values.
  """
  dtype = raw_dtype(bits)
  if packed.shape != (num_bytes(count, bits),):
    raise ValueError(
      f"{count} values of {bits} bits take {num_bytes(count, bits)} bytes, "
      f"got an array of shape {packed.shape}"
    )
  if bits == 8:
    return jnp.asarray(packed)
  if bits > 8:
    return jax.lax.bitcast_convert_type(packed.reshape(count, -1), dtype)
  digits = (packed[:, None] >> jnp.arange(8, dtype=jnp.uint8)[None]) & 1
  digits = digits.reshape(-1)[: count * bits].reshape(count, bits)
  places = jnp.array([_BYTE[:bits]], jnp.uint8)
  return jnp.sum(digits * places, 1, dtype=jnp.uint8)
