"""Convolution: every formulation equals the stock one."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import registries
from minarch_jax.models import convolutions

# Thin and thick inputs: `hybrid` changes its mind at 8 channels, and gradients
# at one channel for many.
CHANNELS = [(1, 3), (1, 9), (3, 1), (7, 4), (8, 5), (12, 8)]
KERNELS = [(3, 3), (1, 1), (5, 3)]


def reference(x, kernel, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@functools.cache
def arrays(channels, size=(3, 3), images=(2, 6, 7), dtype="float64"):
  rng = np.random.default_rng(sum(channels))
  x = rng.normal(size=(*images, channels[0])).astype(dtype)
  kernel = rng.normal(size=(*size, *channels)).astype(dtype)
  return x, kernel


def pulled_back(function, x, kernel):
  """The value and the gradients of both arguments for a fixed cotangent."""

  def all_three(x, kernel):
    y, pull = jax.vjp(function, x, kernel)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return y, *pull(cotangent)

  return jax.jit(all_three)(x, kernel)


@functools.cache
def expectation(channels, padding, size, dtype):
  x, kernel = arrays(channels, size, dtype=dtype)
  return pulled_back(lambda x, k: reference(x, k, padding), x, kernel)


def compare(form, channels, padding, size, dtype, tolerance):
  x, kernel = arrays(channels, size, dtype=dtype)
  found = pulled_back(
    lambda x, k: convolutions.convolve(x, k, padding, form), x, kernel
  )
  expected = expectation(channels, padding, size, dtype)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == b.dtype == dtype and a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", registries.CONVOLUTIONS)
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_value_and_gradients_equal_the_stock_convolution(form, padding):
  for channels in CHANNELS:
    compare(form, channels, padding, (3, 3), "float32", 2e-4)
  with jax.enable_x64(True):
    compare(form, CHANNELS[0], padding, (3, 3), "float64", 1e-12)
    compare(form, CHANNELS[-1], padding, (3, 3), "float64", 1e-12)


@pytest.mark.parametrize("form", registries.CONVOLUTIONS)
@pytest.mark.parametrize("channels", [(1, 9), (8, 5)], ids=str)
def test_curvature_equals_that_of_the_stock_convolution(form, channels):
  """Derivatives of gradients along a direction, as probes and GraSP take."""
  with jax.enable_x64(True):
    x, kernel = arrays(channels)

    def curvature(convolve):
      def loss(x, kernel):
        return jnp.tanh(convolve(x, kernel)).sum()

      def along(x, kernel):
        gradient = jax.grad(loss, (0, 1))
        return jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]

      return jax.jit(along)(x, kernel)

    found = curvature(lambda x, k: convolutions.convolve(x, k, "SAME", form))
    expected = curvature(lambda x, k: reference(x, k, "SAME"))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", registries.CONVOLUTIONS)
@pytest.mark.parametrize("size", KERNELS[1:], ids=str)
def test_other_odd_kernels(form, size):
  for channels in (CHANNELS[0], CHANNELS[-1]):
    compare(form, channels, "SAME", size, "float32", 2e-4)


@pytest.mark.parametrize("form", registries.CONVOLUTIONS)
@pytest.mark.parametrize("channels", [(1, 3), (8, 5)], ids=str)
def test_mapped_weights_and_loops_change_nothing(form, channels):
  x, kernel = arrays(channels, dtype="float32")
  kernels = jnp.stack([kernel, 2 * kernel, kernel[::-1]])

  def slope(kernel, x):
    def loss(kernel):
      return (convolutions.convolve(x, kernel, "SAME", form) ** 2).sum()

    return jax.grad(loss)(kernel)

  expected = np.stack([jax.jit(slope)(kernel, x) for kernel in kernels])
  mapped = jax.jit(jax.vmap(slope, (0, None)))(kernels, x)
  in_loop = jax.jit(lambda k, x: jax.lax.map(lambda k: slope(k, x), k))
  for found in (mapped, in_loop(kernels, x)):
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("form", registries.CONVOLUTIONS)
def test_absent_channels_stay_absent(form):
  x, kernel = arrays((8, 5), dtype="float32")
  x = x * (np.arange(8) < 6)
  kernel = kernel * (np.arange(8) < 6)[:, None] * (np.arange(5) < 3)
  mask = (kernel != 0).any((0, 1))

  def masked(x, k):
    return nn.relu(convolutions.convolve(x, k, "SAME", form))

  y, dx, dk = pulled_back(masked, x, kernel)
  assert not np.asarray(y)[..., 3:].any()
  assert not np.asarray(dx)[..., 6:].any()
  assert not np.asarray(dk)[:, :, ~mask].any()


@pytest.mark.parametrize("form", registries.CONVOLUTIONS)
def test_narrow_types_are_kept(form):
  x, kernel = (a.astype(jnp.bfloat16) for a in arrays((3, 4)))
  y = convolutions.convolve(jnp.asarray(x), jnp.asarray(kernel), "VALID", form)
  assert y.dtype == jnp.bfloat16
  exact = reference(x.astype(np.float32), kernel.astype(np.float32), "VALID")
  np.testing.assert_allclose(y.astype(np.float32), exact, atol=0.3)
