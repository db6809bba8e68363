"""Criteria from what the layers are given: captured inputs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax.pruning import trees
from minarch_jax.pruning.context import Context, map_named
from minarch_jax.types import Array, Params


def capture(
  apply: Callable[..., Any], params: Params, x: Array
) -> dict[str, jax.Array]:
  """Collects the input of every layer in one forward pass.

  Args:
    apply: `apply(params, x, tap=tap)` that calls `y = tap(name, y)` on what
      each kernel is multiplied with; a `Model.apply` with its sizes bound.
    params: one network.
    x: images [B, ...].

  Returns:
    inputs by leaf name, [B, ..., *inputs] each.
  """
  captured = {}

  def tap(name: str, y: jax.Array) -> jax.Array:
    captured[name] = y
    return y

  apply(params, x, tap=tap)
  return captured


def wanda(context: Context) -> Params:
  """|w| |x|_2: magnitude times the norm of the input it is multiplied with.

  For trained networks, from a few calibration images; the norm is taken over
  images and positions (Sun et al. 2024, arXiv 2306.11695, equation 1; there
  compared within each output, here within the chosen scope). An embedding is
  added as it is, so its input is 1. Groups: mean.
  """
  captured = context.activations or {}
  outputs = context.outputs or {}
  images = max((x.shape[0] for x in captured.values()), default=1)

  def score(path, w):
    name = "/".join(path)
    if path[-1] not in trees.NAMES or w.ndim == 0:
      return jnp.abs(w)
    if path[-1] == "embedding":
      return jnp.abs(w) * images**0.5
    return jnp.abs(w) * _norms(name, w, captured, outputs.get(name, 1))

  return map_named(score, context.params)


def _norms(
  name: str, w: Array, captured: Mapping[str, Array], outputs: int
) -> jax.Array:
  """Norms of a kernel's inputs, shaped to multiply the kernel."""
  if name not in captured:
    raise ValueError(
      f"criterion 'wanda': activations lack the input of {name!r}; they have "
      f"{', '.join(captured) or 'none'} (see pruning.capture)"
    )
  x = captured[name]
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
