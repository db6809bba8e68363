"""Compression of one network on a grid: prune by a rule, round to bits, score.

A *rule* is (criterion, scope, granularity). A *cell* of the grid is (rule,
sparsity, bits, what shares a scale); dense and 32 bits are its neutral values.
Sparsity, bits and the rule's number are data, so a grid of any cells is one
compiled program, and each rule ranks the weights once.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax import evaluation, models, pruning, quantization, training
from minarch_jax.architectures import Spec
from minarch_jax.pruning import positions
from minarch_jax.types import Array, Batch, Masks, Model, Params, Sizes


class Rule(NamedTuple):
  """Which weights go: names of the pruning registries."""

  criterion: str
  scope: str
  granularity: str = "element"


class Cells(NamedTuple):
  """A grid's cells as arrays of one length.

  Attributes:
    rule: int32, index into the rules.
    sparsity: float32, fraction removed.
    bits: int32, 32 = as trained.
    share: int32, index into the quantization granularities.
  """

  rule: Array
  sparsity: Array
  bits: Array
  share: Array


class Outcome(NamedTuple):
  """What became of one network in each cell.

  Attributes:
    validation, test: int32 [cells], correct answers.
    nonzeros: int32 [cells, leaves], entries of each leaf of the spec that are
      not zero once pruned and rounded; zeros outside a member do not count.
  """

  validation: jax.Array
  test: jax.Array
  nonzeros: jax.Array


def make_cells(
  pairs: Sequence[tuple[int, float]], settings: Sequence[tuple[int, int]]
) -> Cells:
  """Crosses (rule, sparsity) pairs with (bits, share) settings."""
  rows = [(*pair, *setting) for pair in pairs for setting in settings]
  rule, sparsity, bits, share = zip(*rows, strict=True)
  return Cells(
    np.array(rule, np.int32),
    np.array(sparsity, np.float32),
    np.array(bits, np.int32),
    np.array(share, np.int32),
  )


def join(*parts: Cells) -> Cells:
  """Puts grids one after the other."""
  return Cells(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _rankings(
  model: Model,
  spec: Spec,
  rules: Sequence[Rule],
  params: Params,
  sizes: Sizes,
  seed: Array,
  batch: Batch,
) -> list[pruning.Ranking]:
  """Orders the weights once for each rule."""

  def apply(params, x, **hooks):
    return model.apply(params, x, sizes, **hooks)

  def loss(params, batch):
    logits = apply(params, batch.x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
    return losses.mean()

  needs = {
    need for rule in rules for need in pruning.CRITERIA[rule.criterion].needs
  }
  context = pruning.Context(
    params,
    key=training.key_for(seed, training.PRUNE),
    loss=loss,
    batch=batch,
    apply=apply,
    input_shape=batch.x.shape[1:],
    activations=(
      pruning.capture(apply, params, batch.x)
      if "activations" in needs
      else None
    ),
    outputs={"/".join(leaf.path): leaf.outputs for leaf in spec.leaves},
  )
  within = models.width_masks(spec, sizes)
  scores = {}
  for rule in rules:
    if rule.criterion not in scores:
      criterion = pruning.CRITERIA[rule.criterion]
      scores[rule.criterion] = criterion.score(context)
  return [
    pruning.rank(
      scores[rule.criterion],
      rule.scope,
      within,
      granularity=rule.granularity,
      pool=pruning.CRITERIA[rule.criterion].pool,
      spec=spec,
    )
    for rule in rules
  ]


def _mask_maker(
  rankings: Sequence[pruning.Ranking],
) -> Callable[[Array, Array], Masks]:
  """Makes `masks(rule, sparsity)`; each ranking is sorted once, here."""
  branches = [
    functools.partial(positions.masks_at, positions.positions(ranking))
    for ranking in rankings
  ]
  return lambda rule, sparsity: jax.lax.switch(rule, branches, sparsity)


def _nonzeros(params: Params, spec: Spec) -> jax.Array:
  """Counts what is stored of each leaf, int32 [leaves]."""
  flat = traverse_util.flatten_dict(params)
  counts = [jnp.count_nonzero(flat[leaf.path]) for leaf in spec.leaves]
  return jnp.stack(counts).astype(jnp.int32)


def make_grid(
  model: Model,
  spec: Spec,
  rules: Sequence[Rule],
  shares: Sequence[str],
  splits: Callable[[Any], tuple[Batch, evaluation.Chunks, int]],
) -> Callable[..., Outcome]:
  """Makes the evaluation of one network on a grid of cells.

  Args:
    model, spec: the (parent) network.
    rules: the pruning rules that cells may name.
    shares: the quantization granularities that cells may name.
    splits: maps the resident data to (training images that criteria may look
      at, validation and test chunks end to end, number of validation chunks).

  Returns:
    `grid(params, seed, sizes, cells, count, data) -> Outcome`: the first
    `count` cells are scored; the rest of the outcome is zero.
  """

  totals = evaluation.make_totals(model.apply)

  def grid(
    params: Params,
    seed: Array,
    sizes: Sizes,
    cells: Cells,
    count: Array,
    data: Any,
  ) -> Outcome:
    batch, chunks, num_validation = splits(data)
    rankings = _rankings(model, spec, rules, params, sizes, seed, batch)
    masks_of = _mask_maker(rankings)

    def one_cell(i, outcome):
      masks = masks_of(cells.rule[i], cells.sparsity[i])
      pruned = pruning.apply_masks(params, masks)
      rounded = jax.lax.switch(
        cells.share[i],
        [
          lambda p, b, s=share: quantization.fake_quantize(p, b, s)
          for share in shares
        ],
        pruned,
        cells.bits[i],
      )
      correct = totals(rounded, chunks, sizes).correct
      found = Outcome(
        correct[:num_validation].sum().astype(jnp.int32),
        correct[num_validation:].sum().astype(jnp.int32),
        _nonzeros(rounded, spec),
      )
      return jax.tree.map(lambda o, f: o.at[i].set(f), outcome, found)

    length = cells.rule.shape[0]
    hits = jnp.zeros(length, jnp.int32)
    nonzeros = jnp.zeros((length, len(spec.leaves)), jnp.int32)
    outcome = Outcome(hits, hits, nonzeros)
    return jax.lax.fori_loop(0, count, one_cell, outcome)

  return grid


def make_start(
  model: Model,
  spec: Spec,
  tx: optax.GradientTransformation,
  rules: Sequence[Rule],
  splits: Callable[[Any], tuple[Batch, evaluation.Chunks, int]],
) -> Callable[..., tuple[training.TrainState, Masks]]:
  """Makes the pruning that fine-tuning starts from.

  Returns:
    `start(params, seed, sizes, rule, sparsity, data) -> (state, masks)`: the
    pruned parameters with a fresh optimizer state, and full-shape masks that
    are 0 outside the member.
  """

  def start(
    params: Params,
    seed: Array,
    sizes: Sizes,
    rule: Array,
    sparsity: Array,
    data: Any,
  ) -> tuple[training.TrainState, Masks]:
    batch, _, _ = splits(data)
    rankings = _rankings(model, spec, rules, params, sizes, seed, batch)
    masks = _mask_maker(rankings)(rule, sparsity)
    masks = jax.tree.map(
      jnp.logical_and, models.width_masks(spec, sizes), masks
    )
    params = pruning.apply_masks(params, masks)
    return training.TrainState(params, tx.init(params)), masks

  return start
