"""Criteria from what the layers are given: recorded inputs."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves
from minarch_jax.pruning import criteria, trees
from minarch_jax.pruning.criteria import Context, Criterion
from minarch_jax.types import Array, Params


def wanda(context: Context) -> Params:
  """|w| |x|_2: magnitude times the norm of the input it is multiplied with.

  For trained networks, from a few calibration images; the norm is taken over
  images and positions (Sun et al. 2024, arXiv 2306.11695, equation 1; there
  compared within each output, here within the chosen scope). An embedding is
  added as it is, so its input is 1. Groups: mean.
  """
  recorded = context.activations or {}
  weights = trees.prunable(context.params)
  wanted = trees.prunable(context.params, context.names)
  images = max((x.shape[0] for x in recorded.values()), default=1)
  outputs, described = context.outputs or {}, context.described
  if described is None:
    described = leaves.axes_of(leaves.named(context.params))

  def score(path, w):
    name = "/".join(path)
    if path not in weights:
      if np.ndim(w) > 1 and path in wanted:
        raise ValueError(
          f"criterion 'wanda' does not know how {name!r} meets its input, only "
          "kernels and embeddings; leave "
          f"{path[-1]!r} out of names=, or take another criterion"
        )
      return w
    axes = leaves.known(name, described[path])
    if name in outputs:
      axes = leaves.trailing(np.ndim(w), outputs[name])
    if leaves.is_embedding(path):
      return jnp.abs(w) * images**0.5
    return jnp.abs(w) * _norms(name, w, axes, recorded)

  return criteria.map_named(score, context.params)


def _norms(
  name: str, w: Array, axes: leaves.Axes, recorded: Mapping[str, Array]
) -> jax.Array:
  """Norms of a kernel's inputs, shaped to multiply the kernel."""
  if name not in recorded:
    raise ValueError(
      f"criterion 'wanda': activations lack the input of {name!r}; they have "
      f"{', '.join(recorded) or 'none'} (see ma.record_inputs)"
    )
  x, seen = recorded[name], axes.inputs
  if axes.stacked:
    raise ValueError(
      f"criterion 'wanda': {name!r} holds several layers, and one input was "
      "recorded; take another criterion"
    )
  own = list(range(x.ndim - len(seen), x.ndim))
  fits = [x.shape[i] for i in own] == [w.shape[i] for i in seen]
  if len(seen) > 2 or (len(seen) == 2 and not fits):
    # A convolution: its windows see all of a channel.
    place = 0 if seen[0] > min(axes.outputs) else -1
    own, seen = [own[place]], (seen[place],)
  if [x.shape[i] for i in own] != [w.shape[i] for i in seen]:
    raise ValueError(
      f"criterion 'wanda': the input of {name!r} has shape {x.shape}, which "
      f"does not end in the kernel's inputs {[w.shape[i] for i in seen]}; give "
      "axes= where a kernel has more than one output axis"
    )
  lead = tuple(i for i in range(x.ndim) if i not in own)
  norms = jnp.sqrt(jnp.sum(jnp.square(x), lead)).astype(w.dtype)
  return norms.reshape([n if i in seen else 1 for i, n in enumerate(w.shape)])


WANDA = Criterion(wanda, "trained", ("activations",), "mean")
