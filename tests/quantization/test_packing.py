"""Bit packing: exactly as many bits as it says, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax.quantization import packing

WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32]


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_round_trip(bits):
  """Equal to numpy's bit order, of the formula's length, jitted and eager."""
  raw = np.random.default_rng(bits).integers(0, 2**bits, 77, np.uint64)
  raw = raw.astype(packing.raw_dtype(bits))
  packed = jax.jit(packing.pack, static_argnums=1)(raw, bits)
  digits = np.unpackbits(
    raw.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little"
  )
  expected = np.packbits(digits[:, :bits].reshape(-1), bitorder="little")
  np.testing.assert_array_equal(packed, expected)
  assert packed.size == packing.num_bytes(77, bits) == -(-77 * bits // 8)
  unpack = jax.jit(packing.unpack, static_argnums=(1, 2))
  back = unpack(packed, bits, 77)
  assert back.dtype == raw.dtype
  np.testing.assert_array_equal(back, raw)


def test_packing_rejects():
  with pytest.raises(ValueError, match="bits 9 cannot be packed"):
    packing.pack(jnp.zeros(3, jnp.uint8), 9)
  with pytest.raises(ValueError, match="take 3 bytes"):
    packing.unpack(jnp.zeros(2, jnp.uint8), 4, 5)
