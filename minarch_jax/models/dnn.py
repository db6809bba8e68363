"""Fully connected ReLU networks."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from minarch_jax.architectures import Architecture, Problem
from minarch_jax.models import layers
from minarch_jax.types import Sizes, Tap


class DNN(nn.Module):
  """Flatten, then ReLU layers of the architecture's widths, then logits.

  Padding needs no care here: a unit with zero weights and bias outputs
  relu(0) = 0 and receives a zero gradient. A layer beyond a member's depth
  passes its input on.
  """

  architecture: Architecture
  problem: Problem
  dtype: object = None
  convolution: str = "stock"
  tap: Tap = layers.no_tap

  @nn.compact
  def __call__(self, x: jax.Array, sizes: Sizes) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    features = math.prod(self.problem.input_shape)
    for i, width in enumerate(self.architecture.widths):
      name = f"hidden_{i}"
      weights = layers.Kernel((features, width), 1, self.dtype, name=name)()
      dense = layers.dense if i else layers.shared_dense
      y = nn.relu(dense(self.tap(f"{name}/kernel", x), *weights))
      if i and "depth" in sizes:
        y = jnp.where(sizes["depth"] > i, y, _fit(x, width))
      x, features = y, width
    weights = layers.Kernel(
      (features, self.problem.num_classes), 1, self.dtype, name="output"
    )()
    return layers.dense(self.tap("output/kernel", x), *weights)


def _fit(x: jax.Array, width: int) -> jax.Array:
  """Cuts or pads the last axis; what is cut lies outside the member."""
  x = x[..., :width]
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
