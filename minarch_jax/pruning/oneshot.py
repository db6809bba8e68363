"""`prune`: score, rank and cut one tree in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from minarch_jax import architectures
from minarch_jax.pruning import context, counting, criteria, ranking, trees
from minarch_jax.pruning import masks as masking
from minarch_jax.types import Array, Masks, Params


def prune(
  params: Params,
  sparsity: float | Array,
  criterion: str = "magnitude",
  scope: ranking.Scope = "global",
  *,
  granularity: str = "element",
  within: Masks | None = None,
  masks: Masks | None = None,
  rounds: int = 1,
  exclude: Sequence[str] = (),
  names: Sequence[str] = trees.NAMES,
  spec: architectures.Spec | None = None,
  key: jax.Array | None = None,
  loss: context.Loss | None = None,
  batch: Any = None,
  apply: context.Apply | None = None,
  input_shape: tuple[int, ...] | None = None,
  activations: Mapping[str, Array] | None = None,
  movement: Params | None = None,
) -> Masks:
  """Makes masks that remove a fraction of one tree's weights.

  Args:
    params: one network; map over seeds with `jax.vmap`.
    sparsity: fraction removed, in [0, 1); may be traced.
    criterion: one of CRITERIA.
    scope, granularity, within, masks, exclude, names, spec: as for `rank`.
    rounds: cuts this often, scoring what is left anew, with the kept fraction
      falling geometrically (SynFlow: 100). No training in between.
    key, loss, batch, apply, input_shape, activations, movement: what criteria
      read; see Context.

  Returns:
    bool tree of the structure of params, 1 = kept, scalar 1 = never pruned.

  Raises:
    ValueError: the value, the place and the remedy, before anything compiles.
  """
  counting.check(sparsity)
  if rounds < 1:
    raise ValueError(f"rounds {rounds} is below 1; one cut is rounds=1")
  chosen = criteria.find(criterion)
  outputs = {}
  if spec is not None:
    outputs = {"/".join(leaf.path): leaf.outputs for leaf in spec.leaves}
  known = context.Context(
    params,
    key=key,
    loss=loss,
    batch=batch,
    apply=apply,
    input_shape=input_shape,
    activations=activations,
    outputs=outputs,
    movement=movement,
  )
  criteria.check_needs(criterion, known)

  def cut(masks, sparsity):
    seen = known
    if masks is not None:
      seen = known._replace(params=masking.apply_masks(params, masks))
    order = ranking.rank(
      chosen.score(seen),
      scope,
      within,
      masks=masks,
      granularity=granularity,
      pool=chosen.pool,
      exclude=exclude,
      names=names,
      spec=spec,
    )
    return ranking.masks_at(order, sparsity)

  if rounds == 1:
    return cut(masks, sparsity)
  kept = 1.0 - jnp.asarray(sparsity, jnp.float32)

  def repeat(i, masks):
    return cut(masks, 1.0 - kept ** ((i + 1) / rounds))

  # The first cut gives the masks their shapes, the last the exact sparsity.
  masks = repeat(0, masks)
  masks = lax.fori_loop(1, rounds - 1, repeat, masks)
  return cut(masks, sparsity)
