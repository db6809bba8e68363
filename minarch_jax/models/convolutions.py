"""Convolutions that stay fast inside a compiled loop, in several formulations.

XLA:CPU brings convolutions into the form of its fast kernel outside loops only
(jax issue 12868), and a training loop is one; so gradients are written out.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax import registries


def _shifts(x: jax.Array, size: tuple[int, ...]) -> list[jax.Array]:
  """All windows' entries: size[0] * size[1] shifted views of [B, H, W, C]."""
  height = x.shape[1] - size[0] + 1
  width = x.shape[2] - size[1] + 1
  return [
    x[:, i : i + height, j : j + width]
    for i in range(size[0])
    for j in range(size[1])
  ]


@jax.custom_vjp
def _product(patches: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, ..., K] @ [K, O] whose weight gradient is one product per image.

  Short products that are then added keep XLA:CPU's fast kernel, at twice the
  speed of the one long and narrow product that autodiff emits.
  """
  return patches @ kernel


def _product_forward(patches, kernel):
  return patches @ kernel, (patches, kernel)


def _product_backward(residuals, g):
  patches, kernel = residuals
  batch, inputs, outputs = len(g), *kernel.shape
  images = patches.reshape(batch, -1, inputs)
  dk = jnp.einsum("bpi,bpo->boi", images, g.reshape(batch, -1, outputs))
  return g @ kernel.T, dk.sum(axis=0).T


_product.defvjp(_product_forward, _product_backward)


def _patches(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
  """Unfolds the windows of [B, H, W, I]: [B, H', W', size[0] * size[1] * I]."""
  return jnp.concatenate(_shifts(x, size), axis=-1)


def _unfolded(x: jax.Array, kernel: jax.Array, product: Any) -> jax.Array:
  flat = kernel.reshape(-1, kernel.shape[-1])
  return product(_patches(x, kernel.shape[:2]), flat)


@jax.custom_vjp
def _thin(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """im2col of one channel; its weight gradient unfolds the images once more.

  With a row for each entry of the window that copy is cheap, and the product
  with it twice as fast as with a row for each window.
  """
  return _unfolded(x, kernel, jnp.matmul)


def _thin_forward(x, kernel):
  return _unfolded(x, kernel, jnp.matmul), (x, kernel)


def _thin_backward(residuals, g):
  x, kernel = residuals
  size, outputs = kernel.shape[:2], kernel.shape[-1]
  _, pull = jax.vjp(lambda x: _patches(x, size), x)
  (dx,) = pull(g @ kernel.reshape(-1, outputs).T)
  rows = jnp.stack([shift.reshape(-1) for shift in _shifts(x, size)])
  dk = rows @ g.reshape(-1, outputs)
  return dx, dk.reshape(kernel.shape)


_thin.defvjp(_thin_forward, _thin_backward)

# Inputs of a window, and outputs, from which these gradients are faster.
WIDE, MANY = 64, 8


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Unfolds the windows of the images and multiplies once."""
  if kernel.shape[2] == 1 and kernel.shape[3] >= MANY:
    return _thin(x, kernel)
  wide = math.prod(kernel.shape[:3]) >= WIDE
  return _unfolded(x, kernel, _product if wide else jnp.matmul)


def stock(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Is XLA's own convolution, with the gradients that autodiff emits."""
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@jax.custom_vjp
def _canonical(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The stock convolution with gradients that stay fast in a loop on CPU.

  XLA:CPU has a fast kernel for NHWC/HWIO only and rewrites convolutions into
  that form outside loops only (jax issue 12868); the gradients autodiff emits
  are in other layouts.
  """
  return stock(x, kernel)


def _canonical_forward(x, kernel):
  return stock(x, kernel), (x, kernel)


def _canonical_backward(residuals, g):
  x, kernel = residuals
  rows, columns = kernel.shape[:2]
  margin = ((0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0))
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  dx = stock(jnp.pad(g, margin), flipped)
  flat = g.reshape(-1, g.shape[-1])
  dk = [
    s.reshape(-1, s.shape[-1]).T @ flat for s in _shifts(x, (rows, columns))
  ]
  return dx, jnp.stack(dk).reshape(kernel.shape)


_canonical.defvjp(_canonical_forward, _canonical_backward)


PATCH_BYTES = 2**21  # what stays in the second-level cache of one core


def hybrid(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """im2col for thin inputs or few pixels, its copies are small; else canonical.

  8x8 images, channels 16-32-32, batch 64, a CPU core: 3.3 times as fast.
  """
  patches = x.size // x.shape[-1] * math.prod(kernel.shape[:3])
  few = patches * x.dtype.itemsize <= PATCH_BYTES
  form = im2col if kernel.shape[2] < 8 or few else _canonical
  return form(x, kernel)


def convolve(
  x: jax.Array, kernel: jax.Array, padding: str, form: str
) -> jax.Array:
  """Convolves [B, H, W, I] with [h, w, I, O] at stride 1.

  Args:
    x: images or feature maps.
    kernel: the filters; odd height and width when padding is SAME.
    padding: VALID or SAME (zeros).
    form: a formulation of `registries.CONVOLUTIONS`; all give the same values
      and gradients up to rounding.

  Returns:
    [B, H', W', O].
  """
  if padding == "SAME":
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    x = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
  return registries.CONVOLUTIONS[form](x, kernel)
