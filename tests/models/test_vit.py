"""Vision transformers: patches, and attention between few tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax.models import vit
from tests.models.networks import images


def test_patches_are_squares_of_the_image_row_by_row():
  x, _ = images(2, (4, 6, 3))
  found = vit.patches(jnp.asarray(x), 2)
  assert found.shape == (2, 6, 12)
  for token, (row, column) in enumerate(np.ndindex(2, 3)):
    square = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(found[:, token], square.reshape(2, -1))


@pytest.mark.parametrize("tokens", [1, 3])
def test_few_tokens_attend_as_many_do(tokens, monkeypatch):
  with jax.enable_x64(True):
    shape = (3, 2, tokens, 2, 5)  # query, key and value
    q, k, v = np.random.default_rng(tokens).normal(size=shape)

    def value_and_gradients(q, k, v):
      y, pull = jax.vjp(vit.attend, q, k, v)
      return y, *pull(jnp.cos(jnp.arange(y.size, dtype=float)).reshape(y.shape))

    few = jax.jit(value_and_gradients)(q, k, v)
    monkeypatch.setattr(vit, "FEW_TOKENS", 0)
    many = jax.jit(lambda *args: value_and_gradients(*args))(q, k, v)
  for a, b in zip(few, many, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
