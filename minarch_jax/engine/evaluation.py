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
  """Mean loss and number of correct answers, scalars for one network."""

  loss: jax.Array
  correct: jax.Array


def chunk(batch: Batch, size: int) -> Chunks:
  """Cuts [N, ...] into ceil(N / size) chunks, padding the last with zeros."""
  count = len(batch.y)
  padding = -count % size

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


def no_totals(chunks: Chunks) -> Score:
  """Returns sums of nothing, one per chunk."""
  count = chunks.y.shape[0]
  return Score(jnp.zeros(count, jnp.result_type(float)), jnp.zeros(count, int))


def make_totals(apply: Callable[..., Any]) -> Callable[..., Score]:
  """Makes the sums per chunk of one network, for any range of chunks.

  Returns:
    `totals(params, sizes, chunks, first, last) -> Score` of arrays [n], zero
    outside [first, last): one program scores any neighbouring splits.
  """

  def totals(
    params: Params, sizes: Sizes, chunks: Chunks, first: Array, last: Array
  ) -> Score:
    def body(i, score):
      part = jax.tree.map(lambda leaf: leaf[i], chunks)
      loss, correct = losses(apply(params, part.x, sizes), part.y)
      # A padding image may have an infinite loss: select, never multiply.
      real = part.weight > 0
      return Score(
        score.loss.at[i].set(jnp.where(real, loss, 0).sum()),
        score.correct.at[i].set((correct & real).sum()),
      )

    return jax.lax.fori_loop(first, last, body, no_totals(chunks))

  return totals


def mean(
  score: Score, chunks: Chunks, first: Array | int, last: Array | int
) -> Score:
  """Adds the sums of the chunks [first, last) up to mean loss and hits.

  Args:
    score: sums per chunk [n], zero elsewhere, as of `make_totals`.
    chunks: those that were scored; padding images do not count.
    first, last: the range that was scored.
  """
  weights = chunks.weight.sum(axis=1)
  inside = jnp.arange(len(weights))
  inside = (first <= inside) & (inside < last)
  images = jnp.where(inside, weights, 0).sum().astype(score.loss.dtype)
  return Score(score.loss.sum() / images, score.correct.sum())
