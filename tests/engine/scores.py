"""Scores of whole splits, from the sums that the engine makes."""

from minarch_jax.engine import evaluation


def make_evaluate(apply):
  """Makes `evaluate(params, chunks, sizes) -> Score`, mean loss and hits."""
  totals = evaluation.make_totals(apply)

  def evaluate(params, chunks, sizes):
    count = chunks.y.shape[0]
    sums = totals(params, sizes, chunks, 0, count)
    return evaluation.mean(sums, chunks, 0, count)

  return evaluate
