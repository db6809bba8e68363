"""Layers that stay exact in a padded parent and fast inside a compiled loop."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from minarch_jax.types import Array


def no_tap(name: str, x: jax.Array) -> jax.Array:
  """Leaves a layer's input as it is."""
  del name
  return x


def declared(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Declares a parameter's shape; `models.make_model` draws the values.

  Initial values depend on a member's true sizes, which a module does not know.
  """
  del key
  return jnp.zeros(shape, jnp.result_type(float))


class Kernel(nn.Module):
  """The `kernel` and `bias` of one layer, in the type of the computation.

  Attributes:
    shape: kernel shape; the last `outputs` axes are the layer's outputs and
      the shape of its bias.
    dtype: type of the products (None = the parameters' own).
  """

  shape: tuple[int, ...]
  outputs: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    kernel = self.param("kernel", declared, self.shape)
    bias = self.param("bias", declared, self.shape[-self.outputs :])
    dtype = self.dtype or kernel.dtype
    return kernel.astype(dtype), bias.astype(dtype)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Contracts the last axes of x with the first of the kernel.

  Args:
    x: [..., *inputs].
    kernel: [*inputs, *outputs] with one output axis for each axis of `bias`.
    bias: [*outputs].

  Returns:
    [..., *outputs].
  """
  inputs = kernel.ndim - bias.ndim
  y = jnp.tensordot(x, kernel, axes=inputs)
  return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def shared_dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Is `dense` for [B, I] that the members of a pack share.

  With units before images in the product, mapped over members, XLA:CPU reads
  kernels with units as rows (see `models.unit_rows`) where they lie.
  """
  return jnp.einsum("io,bi->ob", kernel, x).T + bias[None]


class Norm(nn.Module):
  """Layer normalisation over the first `size` entries of a padded last axis.

  Mean and variance are taken over the member's true width (Ba et al. 2016,
  arXiv 1607.06450), so padding changes neither values nor gradients; padded
  outputs are 0 because their scale and bias are.
  """

  features: int
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array, size: Array) -> jax.Array:
    scale = self.param("scale", declared, (self.features,))
    bias = self.param("bias", declared, (self.features,))
    dtype = x.dtype
    x = x.astype(scale.dtype)
    lead = (1,) * (x.ndim - 1)
    exists = (jnp.arange(self.features) < size).astype(x.dtype)
    exists = exists.reshape(*lead, -1)
    size = jnp.asarray(size).astype(x.dtype)
    mean = jnp.sum(x * exists, axis=-1, keepdims=True) / size
    centred = (x - mean) * exists
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / size
    y = centred * jax.lax.rsqrt(variance + self.epsilon)
    y = y * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)
    return y.astype(dtype)


def max_pool(x: jax.Array) -> jax.Array:
  """Takes the maximum over 2x2 windows of [B, H, W, C], flooring odd sizes.

  Written as the maximum of four strided slices: XLA:CPU's `reduce_window`
  doubles the time of a whole training step.
  """
  height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  x = x[:, :height, :width]
  rows = jnp.maximum(x[:, 0::2], x[:, 1::2])
  return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
