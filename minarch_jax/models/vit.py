"""Vision transformers: patch embedding, pre-norm blocks, mean or class token.

The standard encoder of Dosovitskiy et al. 2021 (arXiv 2010.11929). In a padded
parent normalisation uses the member's true dim and attention its true head
size; an absent head has zero values and an absent MLP unit outputs gelu(0) = 0.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from minarch_jax.architectures import Architecture, Problem, vit
from minarch_jax.models import layers
from minarch_jax.types import Array, Sizes, Tap


class Embedding(nn.Module):
  """A learned table that is added to, or put before, the tokens."""

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("embedding", layers.declared, self.shape)


FEW_TOKENS = 8


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Mixes values by the softmax of q k: [B, tokens, heads, head_dim] each.

  A product per image and head costs XLA:CPU half a microsecond however small
  it is. Between few tokens, multiplying out and adding up is up to four times
  as fast for a whole training step; between 16 it is slower.
  """
  real = jnp.result_type(float)
  if q.shape[1] < FEW_TOKENS:
    scores = jnp.sum(q[:, :, None] * k[:, None], axis=-1)  # [B, q, k, heads]
    weights = nn.softmax(scores.astype(real), axis=2).astype(v.dtype)
    return jnp.sum(weights[..., None] * v[:, None], axis=2)
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
  weights = nn.softmax(scores.astype(real), axis=-1).astype(v.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class Attention(nn.Module):
  """Multi-head self-attention; kernels [dim, heads, head_dim]."""

  heads: int
  head_dim: int
  block: str
  dtype: object = None
  tap: Tap = layers.no_tap

  @nn.compact
  def __call__(self, x: jax.Array, head_dim: Array) -> jax.Array:
    dim = x.shape[-1]
    shape = (dim, self.heads, self.head_dim)
    names = ("query", "key", "value")
    weights = [
      layers.Kernel(shape, 2, self.dtype, name=name)() for name in names
    ]
    q, k, v = (
      layers.dense(self.tap(f"{self.block}/attention/{name}/kernel", x), *w)
      for name, w in zip(names, weights, strict=True)
    )
    scale = jax.lax.rsqrt(jnp.asarray(head_dim).astype(q.dtype))
    y = attend(q * scale, k, v)
    out = layers.Kernel(
      (self.heads, self.head_dim, dim), 1, self.dtype, name="out"
    )()
    return layers.dense(self.tap(f"{self.block}/attention/out/kernel", y), *out)


class MLP(nn.Module):
  """Two layers with a GELU between them."""

  features: int
  block: str
  dtype: object = None
  tap: Tap = layers.no_tap

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dim = x.shape[-1]
    inner = layers.Kernel((dim, self.features), 1, self.dtype, name="in")()
    outer = layers.Kernel((self.features, dim), 1, self.dtype, name="out")()
    x = layers.dense(self.tap(f"{self.block}/mlp/in/kernel", x), *inner)
    x = self.tap(f"{self.block}/mlp/out/kernel", nn.gelu(x))
    return layers.dense(x, *outer)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  heads: int
  head_dim: int
  mlp: int
  dtype: object = None
  tap: Tap = layers.no_tap

  @nn.compact
  def __call__(self, x: jax.Array, sizes: Sizes) -> jax.Array:
    dim, block = x.shape[-1], str(self.name)
    y = layers.Norm(dim, name="attention_norm")(x, sizes["dim"])
    x = x + Attention(
      self.heads, self.head_dim, block, self.dtype, self.tap, name="attention"
    )(y, sizes[f"{block}/head_dim"])
    y = layers.Norm(dim, name="mlp_norm")(x, sizes["dim"])
    return x + MLP(self.mlp, block, self.dtype, self.tap, name="mlp")(y)


def patches(x: jax.Array, size: int) -> jax.Array:
  """Cuts [B, H, W, C] into [B, tokens, size * size * C], row by row."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
    batch, -1, size * size * channels
  )


class ViT(nn.Module):
  """The transformer of the architecture on images cut into patches."""

  architecture: Architecture
  problem: Problem
  dtype: object = None
  convolution: str = "stock"
  tap: Tap = layers.no_tap

  @nn.compact
  def __call__(self, x: jax.Array, sizes: Sizes) -> jax.Array:
    dim, heads, head_dims, mlp = vit.split(self.architecture.widths)
    x = patches(x, int(self.architecture.options[0]))
    embed = layers.Kernel((x.shape[-1], dim), 1, self.dtype, name="embed")()
    x = layers.dense(self.tap("embed/kernel", x), *embed)
    class_token = self.architecture.options[1] == "cls"
    if class_token:
      token = Embedding((dim,), name="class_token")().astype(x.dtype)
      token = jnp.broadcast_to(token.reshape(1, 1, dim), (x.shape[0], 1, dim))
      x = jnp.concatenate([token, x], axis=1)
    position = Embedding((x.shape[1], dim), name="position")()
    x = x + position.astype(x.dtype)[None]
    for i in range(self.architecture.depth):
      x = Block(
        heads[i], head_dims[i], mlp[i], self.dtype, self.tap, name=f"block_{i}"
      )(x, sizes)
    x = layers.Norm(dim, name="norm")(x, sizes["dim"])
    x = x[:, 0] if class_token else x.mean(axis=1)
    output = layers.Kernel(
      (dim, self.problem.num_classes), 1, self.dtype, name="output"
    )()
    return layers.dense(self.tap("output/kernel", x), *output)
