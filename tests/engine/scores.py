"""Scores of whole splits, from the sums that the engine makes."""

import jax.numpy as jnp

from minarch_jax.engine import evaluation


def make_evaluate(apply):
  """Makes `evaluate(params, chunks, sizes) -> Score`, mean loss and hits."""
  totals = evaluation.make_totals(apply)

  def evaluate(params, chunks, sizes):
    count = chunks.y.shape[0]
    order = jnp.arange(count)
    found = totals(params, sizes, chunks, order, 0, count)
    return evaluation.mean(found, chunks, order, 0, count)

  return evaluate
