"""Compression of one network: rank once, cut, round, score.

Transforms applied between training and scoring. A *rule* is (criterion, scope,
granularity); ranking by a rule and cutting at every sparsity is done once,
choosing one of the cuts and rounding to bits take both as data, and scoring is
the program that scored the trained network; narrow activations have their own.
So any grid of cells costs a constant number of compilations, and dense and 32
bits are its neutral values, not special cases.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax import (
  models,
  pruning,
  quantization,
  random,
  registries,
  types,
)
from minarch_jax.architectures import Spec
from minarch_jax.compression.grid import Rule
from minarch_jax.engine import evaluation
from minarch_jax.engine.programs import Program
from minarch_jax.engine.session import Network
from minarch_jax.pruning import criteria as criteria_lib
from minarch_jax.pruning import positions
from minarch_jax.quantization import Rounding
from minarch_jax.types import Array, Batch, Masks, Model, Params, Sizes


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


def make_rank(
  model: Model, spec: Spec, rules: Sequence[Rule]
) -> Callable[..., tuple[positions.Cuts, ...]]:
  """Makes the ranking of one network's weights by every rule.

  Args:
    model, spec: the (parent) network.
    rules: each ranks once; rules of one criterion share its scores.

  Returns:
    `rank(params, masks, seed, sizes, levels, batch) -> one Cuts per rule`;
    masks (1 = there, full) say what was not pruned before, levels float32 [K]
    are the sparsities cut at, and `batch` is what data-dependent criteria may
    look at.
  """
  criteria = {
    rule.criterion: criteria_lib.find(rule.criterion) for rule in rules
  }
  needs = {need for each in criteria.values() for need in each.needs}

  def rank(
    params: Params,
    masks: Masks,
    seed: Array,
    sizes: Sizes,
    levels: Array,
    batch: Batch,
  ):
    def apply(params, x, **hooks):
      return model.apply(params, x, sizes, **hooks)

    def loss(params, batch):
      logits = apply(params, batch.x)
      each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
      return each.mean()

    seen = None
    if "activations" in needs:
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
    scores = {name: each.score(context) for name, each in criteria.items()}
    within = models.width_masks(spec, sizes)
    return tuple(
      positions.cuts(
        pruning.rank(
          scores[rule.criterion],
          rule.scope,
          within,
          masks=masks,
          granularity=rule.granularity,
          pool=criteria[rule.criterion].pool,
          spec=spec,
        ),
        levels,
      )
      for rule in rules
    )

  return rank


def make_transform(
  spec: Spec, roundings: Sequence[Rounding]
) -> Callable[..., tuple[Params, Masks, jax.Array]]:
  """Makes the pruning and rounding of one network.

  Args:
    spec: the (parent) network.
    roundings: how weights may be rounded.

  Returns:
    `transform(params, cuts, level, bits, rounding, sizes) -> (params, masks,
    int32 [leaves] not zero)`. The parameters are those that the pruned,
    quantized network stands for: `dequantize(quantize(apply_masks(params,
    masks), ...))` by the format, granularity and calibration of
    `roundings[rounding]`. The masks are full and 0 outside the member. All of
    level (which of the cuts), bits (of integers) and rounding are data.
  """
  rounder = quantization.make_rounder(roundings)

  def transform(params, cuts, level, bits, rounding, sizes):
    exists = models.width_masks(spec, sizes)
    masks = jax.tree.map(
      jnp.logical_and, exists, positions.masks_at(cuts, level)
    )
    pruned = pruning.apply_masks(params, masks)
    rounded = rounder(pruned, rounding, bits, exists)
    flat = models.flatten(rounded)
    counts = [jnp.count_nonzero(flat[leaf.path]) for leaf in spec.leaves]
    return rounded, masks, jnp.stack(counts).astype(jnp.int32)

  return transform


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


def _make_ranking(*, network: Network, rules: tuple[Rule, ...]) -> Callable:
  rank = make_rank(network.model, network.spec, rules)

  def function(params, masks, seed, sizes, levels, view, data):
    batch = evaluation.leading(data, view)
    return rank(params, masks, seed, sizes, levels, batch)

  return function


RANK = Program(
  _make_ranking,
  {
    "params": "network",
    "masks": "network",
    "seed": "seed",
    "sizes": "member",
    "levels": "shared",  # sparsities cut at
    "view": "seed",
    "data": "shared",
  },
)


def _make_transform(
  *, network: Network, roundings: tuple[Rounding, ...]
) -> Callable:
  return make_transform(network.spec, roundings)


TRANSFORM = Program(
  _make_transform,
  {
    "params": "network",
    "cuts": "network",
    "level": "member",  # which of the cuts
    "bits": "shared",
    "rounding": "shared",  # which of the roundings
    "sizes": "member",
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


def _make_control(*, control: str) -> Callable:
  """Makes a control of found masks: (masked parameters, masks)."""

  def function(params, masks, seed, exists):
    if control == "shuffled":
      key = random.key_for(seed, random.Purpose.AGAIN)
      masks = pruning.shuffled(masks, key, exists)
    return pruning.apply_masks(params, masks), masks

  return function


CONTROL = Program(
  _make_control,
  {
    "params": "network",
    "masks": "network",
    "seed": "seed",
    "exists": "network",
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
