"""Agreement with qwix on the same arrays; skips where qwix is absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import quantization

qwix = pytest.importorskip("qwix")

TYPES = {8: jnp.int8, 4: jnp.int4}


@pytest.fixture(params=[(300, 17), (3, 3, 8, 16)])
def kernel(request):
  rng = np.random.default_rng(0)
  return rng.normal(size=request.param).astype(np.float32)


@pytest.mark.parametrize("bits", TYPES)
def test_agrees_to_one_step(kernel, bits):
  """qwix spreads codes to half a step beyond the largest weight.

  Its scale is max|w| / (2**(bits-1) - 1/2), which clips the largest weight by
  half a step; ours is max|w| / (2**(bits-1) - 1), which is exact there.
  """
  theirs = qwix.quantize(
    kernel, TYPES[bits], channelwise_axes=(kernel.ndim - 1,)
  )
  ours = quantization.quantize({"kernel": kernel}, bits)
  highest = 2 ** (bits - 1) - 1
  np.testing.assert_allclose(
    theirs.scale * (highest + 0.5), ours["kernel"].scale * highest, rtol=1e-6
  )
  difference = np.abs(
    qwix.dequantize(theirs) - quantization.dequantize(ours)["kernel"]
  )
  assert np.all(difference <= ours["kernel"].scale)


@pytest.mark.parametrize("bits", TYPES)
def test_equal_where_scales_agree(kernel, bits):
  """A fixed range gives qwix our scale; then every code is equal."""
  highest = 2 ** (bits - 1) - 1
  largest = np.abs(kernel).max()
  limit = float(largest) * (highest + 0.5) / highest
  theirs = qwix.quantize(
    kernel, TYPES[bits], calibration_method=f"fixed,-{limit},{limit}"
  )
  ours = quantization.quantize({"kernel": kernel}, bits, "tensor")["kernel"]
  np.testing.assert_allclose(theirs.scale, ours.scale, rtol=1e-6)
  np.testing.assert_array_equal(np.asarray(theirs.qvalue, np.int8), ours.values)


def test_weight_only_int4_convolution(kernel):
  """Works here; qwix 0.1.8 raises for a float input and an int4 kernel."""
  if kernel.ndim != 4:
    pytest.skip("a convolution's kernel has four axes")
  ours = quantization.quantize({"kernel": kernel}, 4)
  x = jnp.ones((2, 6, 6, 8))
  convolve = jax.jit(
    lambda x, q: jax.lax.conv_general_dilated(
      x,
      quantization.dequantize(q)["kernel"],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  )
  y = convolve(x, ours)
  steps = np.asarray(ours["kernel"].values, np.float64)
  expected = (steps * ours["kernel"].scale).sum((0, 1, 2))
  np.testing.assert_allclose(y[0, 3, 3], expected, rtol=1e-4)
