"""Layers: normalisation over a member's true size, pooling."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from minarch_jax.models import layers


@pytest.mark.parametrize("size", [5, 3, 1])
def test_norm_is_layer_norm_over_the_true_size(size):
  rng = np.random.default_rng(0)
  x = np.zeros((2, 4, 5), np.float32)
  x[..., :size] = rng.normal(size=(2, 4, size))
  scale, bias = rng.normal(size=(2, size)).astype(np.float32)
  params = {
    "scale": np.pad(scale, (0, 5 - size)),
    "bias": np.pad(bias, (0, 5 - size)),
  }
  found = layers.Norm(5).apply({"params": params}, x, size)
  expected = nn.LayerNorm().apply(
    {"params": {"scale": scale, "bias": bias}}, x[..., :size]
  )
  np.testing.assert_allclose(found[..., :size], expected, rtol=1e-5, atol=1e-5)
  assert not np.asarray(found)[..., size:].any()


# --- pooling -----------------------------------------------------------------


def feature_maps(*shape):
  return np.random.default_rng(4).normal(size=shape).astype("float32")


@pytest.mark.parametrize("height", [2, 5])
@pytest.mark.parametrize("width", [3, 6])
def test_max_pool_is_flax_max_pool(height, width):
  x = feature_maps(2, height, width, 3)
  expected = nn.max_pool(x, (2, 2), (2, 2))
  found = layers.max_pool(x)
  np.testing.assert_array_equal(found, expected)
  assert found.shape == (2, height // 2, width // 2, 3)


def test_the_gradient_of_max_pool_goes_to_the_largest():
  x = feature_maps(2, 5, 4, 3)

  def slope(pool):
    return jax.grad(lambda x: (pool(x) ** 2).sum())(x)

  expected = slope(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
  np.testing.assert_allclose(slope(layers.max_pool), expected, rtol=1e-6)
