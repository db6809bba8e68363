"""`prune`: score, rank and cut one tree in one call."""

from collections.abc import Sequence

import jax

from minarch_jax import architectures
from minarch_jax.pruning import counting, criteria, masks as masking
from minarch_jax.pruning import ranking, trees
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
  key: jax.Array | None = None,
  exclude: Sequence[str] = (),
  names: Sequence[str] = trees.NAMES,
  spec: architectures.Spec | None = None,
) -> Masks:
  """Makes masks that remove a fraction of one tree's weights.

  Args:
    params: one network; map over seeds with `jax.vmap`.
    sparsity: fraction removed, in [0, 1); may be traced.
    criterion: one of CRITERIA.
    scope, granularity, within, masks, exclude, names, spec: as for `rank`.
    key: for criteria that draw.

  Returns:
    bool tree of the structure of params, 1 = kept, scalar 1 = never pruned.

  Raises:
    ValueError: the value, the place and the remedy, before anything compiles.
  """
  counting.check(sparsity)
  if masks is not None:
    params = masking.apply_masks(params, masks)
  context = criteria.Context(params, key)
  criteria.check_needs(criterion, context)
  chosen = criteria.find(criterion)
  order = ranking.rank(
    chosen.score(context),
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
