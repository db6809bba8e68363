"""Criteria from derivatives of a loss, or of the network's own output."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from minarch_jax import random
from minarch_jax.pruning import trees
from minarch_jax.pruning.criteria import Context, Criterion
from minarch_jax.types import Params

PROBES = 32  # random directions of the Hessian's diagonal
TEMPERATURE = 200.0  # of GraSP's softmax


def _gradient(context: Context) -> Params:
  assert context.loss is not None
  return jax.grad(context.loss)(context.params, context.batch)


def _product(a: Params, b: Params) -> Params:
  return jax.tree.map(jnp.multiply, a, b)


def saliency(context: Context) -> Params:
  """|w dL/dw|: by how much the loss moves when w goes to 0, to first order.

  On a trained network: Mozer & Smolensky 1989. On a network at its
  initialisation the same numbers are SNIP (Lee et al. 2019, arXiv 1810.02340,
  equation 6), whose normalisation does not change the order. Groups: sum.
  """
  return jax.tree.map(
    lambda w, g: jnp.abs(w * g), context.params, _gradient(context)
  )


def taylor(context: Context) -> Params:
  """w dL/dw with its sign; the score of a group is |sum|.

  The first-order change of the loss when the whole group goes to 0 (Molchanov
  et al. 2017, arXiv 1611.06440, equation 5). For trained networks and units;
  the same order as `gradient` for single elements.
  """
  return _product(context.params, _gradient(context))


def grasp(context: Context) -> Params:
  """w (H g): how much of the gradient's norm the weight carries.

  Removing w changes |g|^2 by -2 w (H g) to first order, so weights that carry
  it are kept (Wang et al. 2020, arXiv 2002.07376, equation 8: remove the
  largest -w (H g)). At initialisation only. The loss is cross-entropy of the
  logits divided by TEMPERATURE, as in the authors' code; without it the scores
  are worse than random on small networks. Groups: sum.
  """
  apply, batch = context.apply, context.batch
  assert apply is not None

  def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(
      apply(params, batch.x) / TEMPERATURE, batch.y
    ).mean()

  gradient = jax.grad(loss)
  direction = gradient(context.params)
  _, curved = jax.jvp(gradient, (context.params,), (direction,))
  return _product(context.params, curved)


def fisher(context: Context) -> Params:
  """w^2 F / 2 with F the mean of squared per-example gradients.

  The rise of the loss when w goes to 0, to second order, with the empirical
  Fisher matrix for the Hessian (Theis et al. 2018, arXiv 1801.05787). For
  trained networks. Groups: sum.
  """
  loss = context.loss
  assert loss is not None

  def add(total, example):
    one = jax.tree.map(lambda x: x[None], example)
    gradient = jax.grad(loss)(context.params, one)
    return jax.tree.map(lambda t, g: t + g * g, total, gradient), None

  zeros = jax.tree.map(jnp.zeros_like, context.params)
  total, _ = jax.lax.scan(add, zeros, context.batch)
  count = _examples(context.batch)
  return jax.tree.map(
    lambda w, f: w * w * f / (2 * count), context.params, total
  )


def obd(context: Context) -> Params:
  """w^2 h / 2 with h the diagonal of the Hessian: optimal brain damage.

  The rise of the loss at a minimum when w goes to 0 (LeCun et al. 1990,
  equation 5). The diagonal is estimated by Hutchinson's method, the mean of
  v (H v) over PROBES random signs v. For trained networks. Groups: sum.
  """
  loss, batch, key = context.loss, context.batch, context.key
  assert loss is not None and key is not None
  gradient = jax.grad(lambda params: loss(params, batch))

  def add(total, key):
    signs = _signs(key, context.params)
    _, curved = jax.jvp(gradient, (context.params,), (signs,))
    return jax.tree.map(lambda t, v, h: t + v * h, total, signs, curved), None

  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(PROBES))
  zeros = jax.tree.map(jnp.zeros_like, context.params)
  total, _ = jax.lax.scan(add, zeros, keys)
  return jax.tree.map(
    lambda w, h: w * w * h / (2 * PROBES), context.params, total
  )


def _signs(key: jax.Array, params: Params) -> Params:
  """Draws -1 or 1 for every weight, by its path and coordinate."""
  shapes = [(path, w.shape) for path, w in trees.named_leaves(params)]
  leaves = [
    jnp.where(draw < 0.5, -1, 1).astype(w.dtype)
    for draw, w in zip(
      random.uniforms(key, shapes), jax.tree.leaves(params), strict=True
    )
  ]
  return jax.tree.unflatten(jax.tree.structure(params), leaves)


def synflow(context: Context) -> Params:
  """|w dR/dw|, R the summed output of the network |params| on an image of 1s.

  Data free, at initialisation; meant to be repeated while few weights are
  removed at a time: `prune(..., rounds=100)` (Tanaka et al. 2020, arXiv
  2006.05467, equation 2 and algorithm 1). Groups: sum.
  """
  apply, shape = context.apply, context.input_shape
  assert apply is not None and shape is not None
  positive = jax.tree.map(jnp.abs, context.params)
  dtype = jax.tree.leaves(positive)[0].dtype
  image = jnp.ones((1, *shape), dtype)
  flow = jax.grad(lambda params: jnp.sum(apply(params, image)))(positive)
  return jax.tree.map(lambda w, g: jnp.abs(w * g), positive, flow)


def movement(context: Context) -> Params:
  """-sum over training steps of w dL/dw: weights that moved away from zero.

  For fine-tuning, where small weights may be on their way up (Sanh et al.
  2020, arXiv 2005.07683, equation 4). Groups: sum.
  """
  return context.movement


def accumulate_movement(total: Params, params: Params, grads: Params) -> Params:
  """Adds one training step to what `movement` reads; starts from zeros.

  >>> total = jax.tree.map(jax.numpy.zeros_like, params)
  >>> grads = jax.grad(loss)(params, batch)
  >>> total = ma.accumulate_movement(total, params, grads)
  >>> masks = ma.prune(params, 0.5, "movement", movement=total)

  Args:
    total: sum so far, in the structure of params.
    params: parameters before the step.
    grads: gradient of the loss there.
  """
  return jax.tree.map(lambda t, w, g: t - w * g, total, params, grads)


def _examples(batch: Any) -> int:
  return jax.tree.leaves(batch)[0].shape[0]


_DATA = ("loss", "batch")

GRADIENT = Criterion(saliency, "trained", _DATA)
TAYLOR = Criterion(taylor, "trained", _DATA, "absolute")
SNIP = Criterion(saliency, "initialisation", _DATA)
GRASP = Criterion(grasp, "initialisation", ("apply", "batch"))
SYNFLOW = Criterion(synflow, "initialisation", ("apply", "input_shape"))
FISHER = Criterion(fisher, "trained", _DATA)
OBD = Criterion(obd, "trained", (*_DATA, "key"))
MOVEMENT = Criterion(movement, "training", ("movement",))
