"""Criteria from what the layers are given: recorded inputs."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import criteria, trees
from minarch_jax.pruning.criteria import Context, Criterion
from minarch_jax.registries import WEIGHTS
from minarch_jax.types import Array, Params


def wanda(context: Context) -> Params:
  """|w| |x|_2: magnitude times the norm of the input it is multiplied with.

  For trained networks, from a few calibration images; the norm is taken over
  images and positions (Sun et al. 2024, arXiv 2306.11695, equation 1; there
  compared within each output, here within the chosen scope). An embedding is
  added as it is, so its input is 1. Groups: mean.
  """
  recorded = context.activations or {}
  outputs = context.outputs or {}
  weights = trees.prunable(context.params)
  wanted = trees.prunable(context.params, context.names)
  images = max((x.shape[0] for x in recorded.values()), default=1)

  def score(path, w):
    name = "/".join(path)
    if path not in weights:
      if np.ndim(w) > 1 and path in wanted:
        raise ValueError(
          f"criterion 'wanda' does not know how {name!r} meets its input, only "
          f"{' and '.join(WEIGHTS)}; leave {path[-1]!r} out of names=, or take "
          "another criterion"
        )
      return w
    if path[-1] == "embedding":
      return jnp.abs(w) * images**0.5
    return jnp.abs(w) * _norms(name, w, recorded, outputs.get(name, 1))

  return criteria.map_named(score, context.params)


def _norms(
  name: str, w: Array, recorded: Mapping[str, Array], outputs: int
) -> jax.Array:
  """Norms of a kernel's inputs, shaped to multiply the kernel."""
  if name not in recorded:
    raise ValueError(
      f"criterion 'wanda': activations lack the input of {name!r}; they have "
      f"{', '.join(recorded) or 'none'} (see types.record_inputs)"
    )
  x = recorded[name]
  inputs = w.shape[: w.ndim - outputs]
  if len(inputs) == 3:  # a convolution: its windows see all of a channel
    inputs = inputs[-1:]
  if x.shape[x.ndim - len(inputs) :] != inputs:
    raise ValueError(
      f"criterion 'wanda': the input of {name!r} has shape {x.shape}, which "
      f"does not end in the kernel's inputs {inputs}; give outputs= where a "
      "kernel has more than one output axis"
    )
  lead = tuple(range(x.ndim - len(inputs)))
  norms = jnp.sqrt(jnp.sum(jnp.square(x), lead)).astype(w.dtype)
  before = w.ndim - outputs - len(inputs)
  return norms.reshape((1,) * before + inputs + (1,) * outputs)


WANDA = Criterion(wanda, "trained", ("activations",), "mean")
