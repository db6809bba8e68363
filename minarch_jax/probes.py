"""Cheap measurements of one network that may foretell unstable training.

Pure functions of one network and one batch, for the caller to map. None of
them changes training.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minarch_jax import evaluation
from minarch_jax.architectures import Leaf, Spec
from minarch_jax.types import (
  Array,
  Batch,
  Masks,
  Model,
  Params,
  record_inputs,
  Sizes,
)

ITERATIONS = 20  # of the power iteration: within a few percent on digits


class Probe(NamedTuple):
  """What was measured of one network on one batch; float32 scalars.

  Attributes:
    loss: mean cross-entropy.
    dead: share of the hidden units that are not positive for any image.
    logit_scale: root mean square of the logits about each image's mean.
    gradient_norm: Euclidean norm of the loss's gradient.
    sharpness: curvature of the loss along its steepest direction, see there.
  """

  loss: jax.Array
  dead: jax.Array
  logit_scale: jax.Array
  gradient_norm: jax.Array
  sharpness: jax.Array


ProbeFn = Callable[[Params, Batch, Sizes, Masks, jax.Array], Probe]


def make_probe(
  model: Model, spec: Spec, *, iterations: int = ITERATIONS
) -> ProbeFn:
  """Makes `probe(params, batch, sizes, masks, key) -> Probe` of one network.

  `spec` describes the parent; `sizes` and `masks` (1 = exists) say which part
  of it is the network.
  """

  def probe(
    params: Params, batch: Batch, sizes: Sizes, masks: Masks, key: jax.Array
  ) -> Probe:
    def loss(params):
      logits = model.apply(params, batch.x, sizes)
      return evaluation.losses(logits, batch.y)[0].mean()

    value, gradient = jax.value_and_grad(loss)(params)
    logits, hidden = tapped(model, params, batch.x, sizes)
    return Probe(
      value,
      dead_share(hidden, spec, sizes),
      logit_scale(logits),
      norm(_masked(gradient, masks)),
      sharpness(loss, params, masks, key, iterations=iterations),
    )

  return probe


def tapped(
  model: Model, params: Params, x: Array, sizes: Sizes
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs a network and keeps every layer's input, by the kernel it meets."""

  def apply(params, x, **hooks):
    return model.apply(params, x, sizes, **hooks)

  return record_inputs(apply, params, x)


def dead_share(
  hidden: Mapping[str, jax.Array], spec: Spec, sizes: Mapping[str, Any]
) -> jax.Array:
  """Gives the share of activated units that are positive for no image.

  Such a ReLU unit passes no gradient: it stays dead until its inputs change
  (Lu et al. 2020, arXiv 1903.06733). Units are hidden units of a dnn, channels
  of a cnn and MLP units of a vit; those outside the member do not count.
  """
  dead, count = jnp.float32(0), jnp.float32(0)
  for axis, layer, name in activated(spec):
    values = hidden[name].reshape(-1, spec.sizes[axis])
    unit = jnp.arange(spec.sizes[axis])
    exists = unit < (sizes or spec.sizes)[axis]
    exists &= layer < (sizes or {}).get("depth", jnp.inf)
    dead += (exists & ~(values > 0).any(axis=0)).sum()
    count += exists.sum()
  return dead / count


def activated(spec: Spec) -> list[tuple[str, int, str]]:
  """Lists (unit axis, layer, name of the tap) of what an activation yields."""
  made: dict[str, Leaf] = {}
  found = []
  for leaf in spec.leaves:
    if not leaf.is_kernel:
      continue
    axis = leaf.axes[-leaf.outputs - 1]
    if axis in made and _is_activation(made[axis]):
      found.append((axis, made[axis].layer, "/".join(leaf.path)))
    made |= {name: leaf for name in leaf.axes[-leaf.outputs :]}
  return found


def _is_activation(leaf: Leaf) -> bool:
  """Whether the layer ends in a ReLU, or is the first of a vit's MLP."""
  return leaf.gain == 2 or leaf.path[-3:-1] == ("mlp", "in")


def logit_scale(logits: jax.Array) -> jax.Array:
  """Root mean square of logits [B, C] about each image's mean over classes."""
  centred = logits - logits.mean(axis=-1, keepdims=True)
  return jnp.sqrt((centred**2).mean())


def norm(tree: Any) -> jax.Array:
  """Euclidean norm of all leaves together."""
  return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def sharpness(
  loss: Callable[[Params], jax.Array],
  params: Params,
  masks: Masks,
  key: jax.Array,
  *,
  iterations: int = ITERATIONS,
) -> jax.Array:
  """Estimates the Hessian's eigenvalue of largest magnitude.

  Power iteration on Hessian-vector products, by forward over reverse
  differentiation (Pearlmutter 1994); the Rayleigh quotient is returned.
  Gradient descent at a rate above 2 / sharpness leaves a quadratic (Cohen et
  al. 2021, arXiv 2103.00065); under Adam the bound is on the preconditioned
  Hessian, and this one is only a measurement.
  """
  gradient = jax.grad(loss)

  def product(vector):
    return _masked(jax.jvp(gradient, (params,), (vector,))[1], masks)

  def unit(tree):
    size = norm(tree)
    scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    return jax.tree.map(lambda leaf: leaf * scale, tree)

  def body(_, carry):
    vector, _ = carry
    after = product(vector)
    pairs = jax.tree.map(jnp.vdot, vector, after)
    return unit(after), jnp.asarray(sum(jax.tree.leaves(pairs)))

  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  start = structure.unflatten(
    jax.random.normal(k, leaf.shape, leaf.dtype)
    for k, leaf in zip(keys, leaves, strict=True)
  )
  zero = jnp.zeros((), jnp.result_type(*leaves))
  start = (unit(_masked(start, masks)), zero)
  return jax.lax.fori_loop(0, iterations, body, start)[1]


def _masked(tree: Any, masks: Masks) -> Any:
  return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), tree, masks)
