"""The accuracy of networks that somebody holds in a notebook."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import models
from minarch_jax.architectures import Architecture, Problem, Shape
from minarch_jax.engine import evaluation, population
from minarch_jax.types import Batch, Params, QTensor

CHUNK = 512  # images scored at a time


def accuracy(
  architecture: Architecture, params: Params, batch: Batch
) -> jax.Array:
  """Returns the accuracy of each seed's network on a batch, float32 [S].

  Args:
    architecture: what the parameters belong to.
    params: a tree with a leading seed axis.
    batch: x [N, H, W, C], y [N].

  Raises:
    ValueError: an empty batch, or parameters of another architecture, of one
      network alone, or quantized.
  """
  if not len(batch.y):
    raise ValueError("accuracy of an empty batch; pass some images")
  height, width, channels = batch.x.shape[1:]
  shape = (height, width, channels)
  score = _scorer(architecture, _problem(architecture, params, shape))
  chunks = evaluation.chunk(batch, min(CHUNK, len(batch.y)))
  return score(params, chunks) / len(batch.y)


def _problem(
  architecture: Architecture, params: Params, input_shape: Shape
) -> Problem:
  """Completes a problem; ValueError unless all leaves fit [S, ...]."""
  flat = models.flatten(params)
  num_classes = (np.shape(flat.get(("output", "bias"), 0)) or (0,))[-1]
  problem = Problem(input_shape, num_classes)
  spec = architecture.spec(problem)
  for leaf in spec.leaves:
    name, value = leaf.name, flat.get(leaf.path)
    if value is None or isinstance(value, QTensor):
      found = "is quantized; dequantize it" if value else "is missing"
      raise ValueError(f"leaf {name!r} of {architecture} {found}")
    if np.shape(value)[1:] != spec.shape(leaf):
      wanted = ", ".join(["seeds", *map(str, spec.shape(leaf))])
      raise ValueError(
        f"leaf {name!r} has shape {np.shape(value)}; {architecture} on images "
        f"{tuple(input_shape)} has ({wanted}): every leaf needs a leading axis "
        "of seeds"
      )
  return problem


@functools.lru_cache(maxsize=32)
def _scorer(
  architecture: Architecture, problem: Problem
) -> Callable[[Params, evaluation.Chunks], jax.Array]:
  """Compiles the correct answers of each seed, once for all later calls."""
  model = models.make_model(architecture, problem)
  totals = evaluation.make_totals(model.apply)

  def correct(params: Params, chunks: evaluation.Chunks) -> jax.Array:
    def one(params):
      # The model knows its own sizes.
      sizes: Any = None
      count = chunks.y.shape[0]
      order = jnp.arange(count)
      return totals(params, sizes, chunks, order, 0, count).hits.sum()

    return jax.lax.map(one, params)

  return jax.jit(population.in_full(correct, jax.local_devices()))
