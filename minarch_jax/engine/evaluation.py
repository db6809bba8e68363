"""Exact loss and accuracy of one network on a split of any size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax.types import Array, Batch, Params, Sizes


class Chunks(NamedTuple):
  """A split cut into equal chunks; padding images weigh 0.

  Attributes:
    x: float32 [n, B, H, W, C].
    y: int32 [n, B].
    weight: float32 [n, B], 1 for real images.
  """

  x: Array
  y: Array
  weight: Array


class Score(NamedTuple):
  """Mean losses and number of correct answers, scalars for one network.

  Attributes:
    loss: of all images.
    even, odd: of the images at even and at odd places: on one half of a split
      something can be chosen that the other half measures.
    correct: of all images.
  """

  loss: jax.Array
  even: jax.Array
  odd: jax.Array
  correct: jax.Array


class Totals(NamedTuple):
  """What scoring chunks one after another gives for one network.

  Attributes:
    loss: float [n, 2], sums over the images of each chunk at even and at odd
      places.
    hits: bool [n, B], which images were classified correctly; padding is not.
  """

  loss: jax.Array
  hits: jax.Array


class View(NamedTuple):
  """How a seed sees the chunks of all images, int32.

  Attributes:
    chunks: [n], places of its training, validation and test chunks, in turn.
    leading: [m], places among all images of training images that criteria and
      ranges look at.
  """

  chunks: Array
  leading: Array


def chunk(batch: Batch, size: int, least: int = 0) -> Chunks:
  """Cuts [N, ...] into ceil(N / size) chunks, or more, padded with zeros.

  Args:
    batch: images.
    size: of a chunk.
    least: number of chunks, where N images fill fewer.
  """
  count = len(batch.y)
  padding = max(-(-count // size), least) * size - count

  def cut(array):
    array = np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(-1, size, *array.shape[1:])

  weight = np.ones(count, np.float32)
  return Chunks(cut(np.asarray(batch.x)), cut(batch.y), cut(weight))


def images(chunks: Chunks) -> Batch:
  """Lists the images of all chunks, padding included."""
  return Batch(
    *(part.reshape(-1, *part.shape[2:]) for part in (chunks.x, chunks.y))
  )


def losses(logits: jax.Array, y: Array) -> tuple[jax.Array, jax.Array]:
  """Returns cross-entropy and correctness per image, both [B].

  An image whose loss is not finite is not correct, so a diverged network
  scores 0 rather than the frequency of class 0.
  """
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  correct = (jnp.argmax(logits, axis=-1) == y) & jnp.isfinite(loss)
  return loss, correct


def no_totals(chunks: Chunks) -> Totals:
  """Returns sums of nothing."""
  shape = chunks.y.shape
  return Totals(
    jnp.zeros((shape[0], 2), jnp.result_type(float)), jnp.zeros(shape, bool)
  )


def _halves(values: Array) -> jax.Array:
  """Sums of the even and of the odd places along the last axis: [..., 2]."""
  return jnp.stack([values[..., i::2].sum(axis=-1) for i in (0, 1)], axis=-1)


def make_totals(
  apply: Callable[..., Any], losses: Callable[..., Any] = losses
) -> Callable[..., Totals]:
  """Makes the score of one network on any range of chunks.

  Args:
    apply: `apply(params, x, sizes) -> logits`.
    losses: of logits and labels, per image, as the function of that name.

  Returns:
    `totals(params, sizes, chunks, order, first, last) -> Totals` in the order
    of `order`, int32 [n] places of chunks, and zero outside [first, last): one
    program scores any neighbouring splits of any seed.
  """

  def totals(
    params: Params,
    sizes: Sizes,
    chunks: Chunks,
    order: Array,
    first: Array,
    last: Array,
  ) -> Totals:
    def body(i, found):
      part = jax.tree.map(lambda leaf: leaf[order[i]], chunks)
      loss, correct = losses(apply(params, part.x, sizes), part.y)
      # A padding image may have an infinite loss: select, never multiply.
      real = part.weight > 0
      return Totals(
        found.loss.at[i].set(_halves(jnp.where(real, loss, 0))),
        found.hits.at[i].set(correct & real),
      )

    return jax.lax.fori_loop(first, last, body, no_totals(chunks))

  return totals


def mean(
  totals: Totals,
  chunks: Chunks,
  order: Array,
  first: Array | int,
  last: Array | int,
) -> Score:
  """Adds the chunks [first, last) up to mean loss and number of hits.

  Args:
    totals: zero elsewhere, as of `make_totals`.
    chunks, order, first, last: what was scored; padding does not count.
  """
  weights = _halves(chunks.weight)[order]
  inside = jnp.arange(len(weights))[:, None]
  inside = (first <= inside) & (inside < last)
  images = jnp.where(inside, weights, 0).sum(axis=0).astype(totals.loss.dtype)
  loss = totals.loss.sum(axis=0)
  even, odd = loss / jnp.maximum(images, 1)
  return Score(loss.sum() / images.sum(), even, odd, totals.hits.sum())


def leading(chunks: Chunks, view: View) -> Batch:
  """Takes the leading training images of a view."""
  return Batch(*(part[view.leading] for part in images(chunks)))
