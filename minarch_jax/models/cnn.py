"""Convolutional ReLU networks."""

import math

from flax import linen as nn
import jax

from minarch_jax.architectures import Architecture, cnn, Problem
from minarch_jax.models import convolutions, layers
from minarch_jax.types import Sizes, Tap


class CNN(nn.Module):
  """3x3 convolutions with ReLU, flatten, logits.

  One convolution is the paper's: stride 1, no padding. Several are padded to
  keep the size, with 2x2 max-pooling between them. The output kernel is
  [pixels, channels, classes], so a channel stays one axis of every leaf.
  """

  architecture: Architecture
  problem: Problem
  dtype: object = None
  convolution: str = "hybrid"
  tap: Tap = layers.no_tap

  @nn.compact
  def __call__(self, x: jax.Array, sizes: Sizes) -> jax.Array:
    del sizes
    widths = self.architecture.widths
    depth = self.architecture.depth
    padding = "VALID" if depth == 1 else "SAME"
    for i, channels in enumerate(widths):
      name = f"conv_{i}"
      if i:
        x = layers.max_pool(x)
      kernel, bias = layers.Kernel(
        (3, 3, x.shape[-1], channels), 1, self.dtype, name=name
      )()
      x = self.tap(f"{name}/kernel", x)
      x = convolutions.convolve(x, kernel, padding, self.convolution)
      x = nn.relu(x + bias.reshape(1, 1, 1, -1))
    pixels = math.prod(cnn.output_sizes(depth, self.problem.input_shape)[-1])
    x = x.reshape(x.shape[0], pixels, widths[-1])
    weights = layers.Kernel(
      (pixels, widths[-1], self.problem.num_classes),
      1,
      self.dtype,
      name="output",
    )()
    return layers.dense(self.tap("output/kernel", x), *weights)
