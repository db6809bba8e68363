"""What compression compiles: almost nothing.

Networks are ranked and cut on the host, as vectors (`networks`), and scored by
the program that trained them. One program rounds the rows of all networks,
whatever their architectures. Only what looks at a network's images or layers is
compiled for each parent: criteria that read data, narrow activations,
connections that move, and methods that round a network as a whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax import pruning, quantization, random, registries, types
from minarch_jax.architectures import Spec
from minarch_jax.engine import evaluation
from minarch_jax.engine.programs import Program
from minarch_jax.engine.session import Network
from minarch_jax.pruning import criteria as criteria_lib
from minarch_jax.quantization import Rounding, rows
from minarch_jax.types import Array, Batch, Model, Params, Sizes


class Outcome(NamedTuple):
  """What networks score in each cell and weigh, on the host.

  Attributes:
    validation, test: int [S, A, cells], correct answers.
    hits: uint8 [S, A, cells, bytes], which validation images were classified
      correctly, as bits in the order of the seed's fold.
    nonzeros: int [S, A, cells, leaves], entries of each leaf of the spec that
      are not zero once pruned and rounded; zeros outside a member do not count.
  """

  validation: np.ndarray
  test: np.ndarray
  hits: np.ndarray
  nonzeros: np.ndarray


def make_scores(
  model: Model, spec: Spec, criterion: str
) -> Callable[..., Params]:
  """Makes the scores of one network's weights by a criterion.

  Args:
    model, spec: the (parent) network.
    criterion: its name.

  Returns:
    `score(params, seed, sizes, batch) -> tree`; `batch` is what data-dependent
    criteria may look at. What the tree holds of padding means nothing.
  """
  chosen = criteria_lib.find(criterion)

  def score(params: Params, seed: Array, sizes: Sizes, batch: Batch):
    def apply(params, x, **hooks):
      return model.apply(params, x, sizes, **hooks)

    def loss(params, batch):
      logits = apply(params, batch.x)
      each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
      return each.mean()

    seen = None
    if "activations" in chosen.needs:
      _, seen = types.record_inputs(apply, params, batch.x)
    context = pruning.Context(
      params,
      key=random.key_for(seed, random.Purpose.PRUNE),
      loss=loss,
      batch=batch,
      apply=apply,
      input_shape=batch.x.shape[1:],
      activations=seen,
      outputs={leaf.name: leaf.outputs for leaf in spec.leaves},
    )
    return chosen.score(context)

  return score


def make_rounded_totals(model: Model) -> Callable[..., evaluation.Totals]:
  """Makes the score of one network that rounds the input of every layer.

  Args:
    model: the (parent) network.

  Returns:
    `totals(params, bits, sizes, x, chunks, order, first, last) -> Totals`, as
    of `evaluation.make_totals`. A layer's range is that of its input
    on the images `x`, in the network of these parameters, quantized already.
    The bits, 2 to 8 or 32 = as computed, are data. Padding is 0, which every
    range holds and rounding keeps: a member's result is its own.
  """

  def totals(params, bits, sizes, x, chunks, order, first, last):
    def apply(params, x, sizes=sizes, **hooks):
      return model.apply(params, x, sizes, **hooks)

    tap = quantization.make_tap(quantization.calibrate(apply, params, x), bits)

    def rounded(params, x, sizes):
      return apply(params, x, sizes, tap=tap)

    score = evaluation.make_totals(rounded)
    return score(params, sizes, chunks, order, first, last)

  return totals


# --- programs ----------------------------------------------------------------


def _make_scores(*, network: Network, criterion: str) -> Callable:
  scores = make_scores(network.model, network.spec, criterion)

  def function(params, seed, sizes, view, data):
    return scores(params, seed, sizes, evaluation.leading(data, view))

  return function


SCORES = Program(
  _make_scores,
  {
    "params": "network",
    "seed": "seed",
    "sizes": "member",
    "view": "seed",
    "data": "shared",
  },
)


def _make_round(*, rounding: Rounding) -> Callable:
  return rows.make_round(rounding)


# A device's share of rows stands where programs of networks have a seed.
ROUND = Program(
  _make_round,
  {
    "table": "seed",
    "lengths": "seed",
    "bits": "shared",
  },
)


def _make_rounded_scores(
  *, network: Network, chunks: tuple[int, int]
) -> Callable:
  totals = make_rounded_totals(network.model)

  def function(params, bits, sizes, view, data):
    x = evaluation.leading(data, view).x
    return totals(params, bits, sizes, x, data, view.chunks, *chunks)

  return function


ROUNDED = Program(
  _make_rounded_scores,
  {
    "params": "network",
    "bits": "shared",
    "sizes": "member",
    "view": "seed",
    "data": "shared",
  },
)


def _make_move(*, network: Network, move: str) -> Callable:
  """Moves connections of the leaves that are pruned; the rest stay as they are.

  The gradient is that of the loss on leading training images.
  """
  chosen, model = registries.MOVES[move], network.model

  def function(params, masks, exists, seed, member, round, view, data):
    fraction, sizes = member
    batch = evaluation.leading(data, view)

    def loss(params):
      logits = model.apply(params, batch.x, sizes)
      return evaluation.losses(logits, batch.y)[0].mean()

    grads = jax.grad(loss)(params) if chosen.needs_gradient else None
    key = random.key_for(seed, random.Purpose.MOVE)
    key = jax.random.fold_in(key, round)
    free = [leaf.path for leaf in network.spec.leaves if leaf.is_weight]

    def movable(path, mask):
      names = tuple(entry.key for entry in path)
      return mask if names in free else jnp.ones((), bool)

    moved = chosen.update(
      params,
      jax.tree_util.tree_map_with_path(movable, masks),
      fraction,
      key,
      grads,
      exists,
    )
    after = jax.tree.map(
      lambda new, old: new if jnp.ndim(new) else old, moved.masks, masks
    )
    return moved.params, after

  return function


MOVE = Program(
  _make_move,
  {
    "params": "network",
    "masks": "network",
    "exists": "network",
    "seed": "seed",
    "member": "member",  # share of the connections that move, and true sizes
    "round": "shared",
    "view": "seed",
    "data": "shared",
  },
)


def _make_whole(
  *, network: Network, settings: tuple[tuple[int, Rounding], ...]
) -> Callable:
  """Rounds one network as a whole at every setting of (bits, rounding)."""
  model = network.model

  def apply(params, x, **hooks):
    sizes: Any = None  # the model knows its own
    return model.apply(params, x, sizes, **hooks)

  def function(params, view, data):
    x = evaluation.leading(data, view).x
    return tuple(
      quantization.dequantize(
        registries.METHODS[rounding.method](
          apply, params, x, bits, rounding.granularity
        )
      )
      for bits, rounding in settings
    )

  return function


WHOLE = Program(
  _make_whole, {"params": "network", "view": "seed", "data": "shared"}
)
