"""`prune`: score, rank and cut one tree in one call."""

from typing import Any
import warnings

import jax
from jax import core, lax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import counting, criteria, granularity, ranking, trees
from minarch_jax.pruning import masks as masking
from minarch_jax.types import Array, Masks, Params

_GROUPING = ranking.Grouping._fields
_READ = tuple(
  field
  for field in criteria.Context._fields
  if field not in ("params", "names", "described")
)


def prune(
  params: Params,
  sparsity: float | Array,
  criterion: str = "magnitude",
  scope: ranking.Scope = "global",
  *,
  within: Masks | None = None,
  masks: Masks | None = None,
  rounds: int = 1,
  **options: Any,
) -> Masks:
  """Makes masks that remove a fraction of one tree's weights.

  >>> masks = ma.prune(params, 0.6)
  >>> sparse = ma.apply_masks(params, masks)
  >>> round(float(ma.sparsity(masks)), 2)
  0.6

  Args:
    params: one network; map over seeds with `jax.vmap`.
    sparsity: fraction removed, in [0, 1); may be traced.
    criterion: one of CRITERIA.
    scope, within, masks: as for `rank`.
    rounds: cuts this often, scoring what is left anew, with the kept fraction
      falling geometrically (SynFlow: 100). No training in between.
    **options: how entries are grouped (granularity, exclude, names, spec, axes;
      see ranking.Grouping) and what criteria read (key, loss, batch, apply,
      input_shape, activations, outputs, movement; see criteria.Context).

  Returns:
    bool tree of the structure of params, 1 = kept, scalar 1 = never pruned. A
    warning tells leaves that nothing is left of (seen outside jit only).

  Raises:
    TypeError: an unknown keyword.
    ValueError: the value, the place and the remedy, before anything compiles.
  """
  ranking.check_keywords("prune", options, (*_GROUPING, *_READ))
  counting.check(sparsity)
  cut_into = granularity.parse(options.get("granularity", "element"))
  granularity.check_sparsity(*cut_into, sparsity)
  if rounds < 1:
    raise ValueError(f"rounds {rounds} is below 1; one cut is rounds=1")
  chosen = criteria.find(criterion)
  grouping = {name: options[name] for name in _GROUPING if name in options}
  read = {name: options[name] for name in _READ if name in options}
  names = grouping.get("names")
  described = ranking.axes_of(
    params, grouping.get("spec"), grouping.get("axes")
  )
  known = criteria.Context(params, **read, names=names, described=described)
  criteria.check_needs(criterion, known)

  def cut(masks, sparsity):
    seen = known
    if masks is not None:
      seen = known._replace(params=masking.apply_masks(params, masks))
    order = ranking.rank(
      *(chosen.score(seen), scope, within),
      masks=masks,
      pool=chosen.pool,
      **grouping,
    )
    return ranking.masks_at(order, sparsity)

  if rounds == 1:
    return _told(cut(masks, sparsity), within)
  kept = 1.0 - jnp.asarray(sparsity, jnp.float32)

  def repeat(i, masks):
    return cut(masks, 1.0 - kept ** ((i + 1) / rounds))

  # The first cut gives the masks their shapes, the last the exact sparsity.
  masks = repeat(0, masks)
  masks = lax.fori_loop(1, rounds - 1, repeat, masks)
  return _told(cut(masks, sparsity), within)


def _told(masks: Masks, within: Masks | None) -> Masks:
  """Warns of leaves that nothing is left of, where masks are known."""
  if any(isinstance(mask, core.Tracer) for mask in jax.tree.leaves(masks)):
    return masks
  # On the host the first kept entry answers; a program would be compiled.
  dead = [
    "/".join(path)
    for path, mask in trees.named_leaves(masks)
    if np.ndim(mask) and not np.asarray(mask).any()
  ]
  if within is not None and dead:
    gone = masking.dead_layers(masks, within)
    dead = [name for name in dead if gone[name]]
  if dead:
    warnings.warn(
      "prune keeps nothing of some layers; scope='layerwise' or 'erk' keeps at "
      "least one weight of each, exclude= spares some, a lower sparsity all: "
      f"{', '.join(dead)}",
      stacklevel=3,
    )
  return masks
