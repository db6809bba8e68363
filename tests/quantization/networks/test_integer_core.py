"""Integer products, bit for bit equal to numpy in 64-bit integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import quantization
from minarch_jax.quantization import packing
from minarch_jax.quantization.networks import integer_core as integer


def codes(seed, *shape, bits=8):
  high = 2 ** (bits - 1) - 1
  rng = np.random.default_rng(seed)
  return rng.integers(-high, high + 1, shape).astype(np.int8)


def test_dot_is_exact():
  qx, qw = codes(0, 5, 300), codes(1, 300, 7)
  acc = jax.jit(integer.dot)(qx, -3, qw)
  expected = (qx.astype(np.int64) + 3) @ qw.astype(np.int64)
  assert acc.dtype == jnp.int32
  np.testing.assert_array_equal(acc, expected)


def test_int4_weights_are_unpacked_for_the_product():
  """Packed to half a byte, unpacked to int8, multiplied exactly."""
  w = np.random.default_rng(2).normal(size=(30, 6)).astype(np.float32)
  q = quantization.quantize({"kernel": w}, 4)["kernel"]
  raw = quantization.FORMATS["int4"].to_raw(q.values)
  packed = packing.pack(raw, 4)
  assert packed.nbytes == w.size // 2

  @jax.jit
  def product(qx, packed):
    raw = packing.unpack(packed, 4, w.size).reshape(w.shape)
    return integer.dot(qx, 5, quantization.FORMATS["int4"].from_raw(raw))

  qx = codes(3, 4, 30)
  expected = (qx.astype(np.int64) - 5) @ np.asarray(q.values, np.int64)
  np.testing.assert_array_equal(product(qx, packed), expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("bits", [8, 4])
def test_convolution_is_exact(padding, bits):
  """Weight-only int4 too; the padding holds the code of 0."""
  qx, qw, zero = codes(4, 2, 6, 5, 3), codes(5, 3, 3, 3, 4, bits=bits), -17
  acc = jax.jit(integer.convolution, static_argnums=3)(qx, zero, qw, padding)
  x = qx.astype(np.int64) - zero
  if padding == "SAME":
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
  expected = np.einsum("bhwcij,ijco->bhwo", windows, qw.astype(np.int64))
  np.testing.assert_array_equal(acc, expected)


def reference(acc, multiplier, zero_point, low):
  """The docstring's formula in 64-bit integers."""
  mantissa, left, right, limit = (
    np.asarray(part, np.int64) for part in multiplier
  )
  acc = np.clip(acc.astype(np.int64), -limit, limit) << left
  scaled = (acc * mantissa + (1 << (right - 1))) >> right
  return np.clip(zero_point + scaled, low, 127)


def test_requantize_is_exact():
  """Over 14 decades of factors, the largest accumulators included."""
  factor = np.logspace(-9, 5, 57)
  rng = np.random.default_rng(6)
  spread = 300 / factor * rng.uniform(-1, 1, (400, 57))
  acc = np.clip(np.round(spread), -(2**30), 2**30).astype(np.int32)
  acc[:5] = np.array([[-(2**31)], [2**31 - 1], [0], [1], [-1]])
  multiplier = integer.make_multiplier(factor)
  for zero_point, low in ((-128, -128), (10, 10), (0, -128)):
    found = jax.jit(integer.requantize)(acc, multiplier, zero_point, low)
    assert found.dtype == jnp.int8
    np.testing.assert_array_equal(
      found, reference(acc, multiplier, zero_point, low)
    )
  # Products of a layer stay within 2**30.
  real = np.round(np.clip(acc, -(2**30), 2**30) * factor)
  real = np.clip(real, -128, 127)
  ordinary = factor > 2.0**-24
  assert np.all(np.abs(found - real)[:, ordinary] <= 1)
  assert np.mean((found != real)[:, ordinary]) < 0.01


def test_a_layer_end_to_end():
  """Real numbers in, codes through, real numbers out, to one step."""
  rng = np.random.default_rng(7)
  x, w = rng.normal(size=(50, 40)), 0.1 * rng.normal(size=(40, 8))
  sx, sw, sy = 0.03, np.abs(w).max(0) / 127, 0.02
  qx = np.clip(np.round(x / sx), -128, 127).astype(np.int8)
  qw = np.round(w / sw).astype(np.int8)
  acc = integer.dot(jnp.asarray(qx), 0, jnp.asarray(qw))
  multiplier = integer.make_multiplier(sx * sw / sy)
  qy = np.asarray(integer.requantize(acc, multiplier, 0), np.float64)
  real = np.clip((sx * qx) @ (sw * qw), -128 * sy, 127 * sy)
  assert np.abs(qy * sy - real).max() <= sy / 2 * 1.01


BAD = {
  "float inputs": (
    lambda: integer.dot(jnp.ones((2, 3)), 0, jnp.ones((3, 2), jnp.int8)),
    "take int8 inputs, got float32",
  ),
  "int4 weights": (
    lambda: integer.dot(
      jnp.ones((2, 3), jnp.int8), 0, jnp.ones((3, 2), jnp.int4)
    ),
    "take int8 weights, got int4",
  ),
  "overflow": (
    lambda: integer.dot(
      jnp.ones((1, 70000), jnp.int8), 0, jnp.ones((70000, 1), jnp.int8)
    ),
    "may overflow",
  ),
  "factor": (lambda: integer.make_multiplier(0.0), "must be in"),
  "padding": (
    lambda: integer.patches(jnp.ones((1, 3, 3, 1)), (3, 3), "FULL"),
    "'FULL' is not SAME or VALID",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
  call, message = BAD[case]
  with pytest.raises(ValueError, match=message):
    call()
