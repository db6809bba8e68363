"""From scores to masks: one ranking, then one mask for each sparsity."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import architectures
from minarch_jax.pruning import counting, granularity as shapes, scopes
from minarch_jax.pruning import selection, trees
from minarch_jax.types import Array, Masks, Params

Scope = str | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static half of a ranking: which leaves, in which groups, how shared.

  `sparsities` holds, for each layer, the sparsity a dictionary scope gave it
  (None = the one asked for).
  """

  treedef: Any
  num_leaves: int
  granularity: shapes.Granularity
  layers: tuple[shapes.Layer, ...]
  scope: str
  sparsities: tuple[float | None, ...]


@flax.struct.dataclass
class Ranking:
  """Everything `masks_at` needs to make the masks of any sparsity.

  Attributes:
    keys: uint32 order of each layer's groups, 0 = already gone.
    sizes: int32 number of groups that exist: [L], or [rows] for each layer of
      an N:M granularity.
    density: float32 [L], (sum of dimensions) / (their product), for ERK.
    alive: which entries of each leaf are there before pruning.
    plan: what is static.
  """

  keys: tuple[jax.Array, ...]
  sizes: Any
  density: jax.Array
  alive: tuple[jax.Array, ...]
  plan: Plan = flax.struct.field(pytree_node=False)


def rank(
  scores: Params,
  scope: Scope = "global",
  within: Masks | None = None,
  *,
  masks: Masks | None = None,
  granularity: str = "element",
  pool: str = "mean",
  exclude: Sequence[str] = (),
  names: Sequence[str] = trees.NAMES,
  spec: architectures.Spec | None = None,
) -> Ranking:
  """Orders what can be pruned, from the first to go to the last.

  Args:
    scores: importance of each entry, in the structure of the parameters; only
      leaves that are pruned are read.
    scope: one of SCOPES, or a dictionary from layers to sparsities.
    within: entries that exist, for a network inside a parent (None = all).
    masks: entries that are still there; those pruned before stay pruned, count
      as existing and go first.
    granularity: one of GRANULARITIES, with its sizes ("nm:4", "block:4x4").
    pool: one of POOLS, or "first": how a group's score comes from its entries'.
    exclude: layers that are not pruned; "input" and "output" name the first and
      last layer of `spec`.
    names: last names of the leaves that are pruned.
    spec: named axes of the tree; units need it.

  Raises:
    ValueError: nothing to prune, unknown layers or names, shapes that do not
      fit the granularity, or trees of another structure.
  """
  plan = _plan(scores, scope, granularity, exclude, names, spec)
  leaves = jax.tree.leaves(scores)
  exists, alive = _entries(plan, scores, within, masks)
  keys, sizes, densities = [], [], []
  for layer in plan.layers:
    score, here = plan.granularity.group(layer, leaves, alive, pool)
    _, existing = plan.granularity.group(layer, leaves, exists, pool)
    keys.append(selection.sort_keys(score, here))
    axis = -1 if plan.granularity.rows else None
    sizes.append(jnp.sum(existing, axis, dtype=jnp.int32))
    densities.append(_erk_density(layer, exists))
  if not plan.granularity.rows:
    sizes = jnp.stack(sizes)
  if masks is None and within is None:
    alive = [jnp.ones((), bool) for _ in alive]
  return Ranking(tuple(keys), sizes, jnp.stack(densities), tuple(alive), plan)


def masks_at(ranking: Ranking, sparsity: float | Array) -> Masks:
  """Makes the masks of one sparsity: bool, 1 = kept, scalar 1 = not pruned.

  Args:
    ranking: as made by `rank`.
    sparsity: fraction of groups removed, in [0, 1); may be traced. A layer or
      pool of n groups keeps `round((1 - sparsity) * n)`, or all that are left.

  Raises:
    ValueError: a known sparsity outside [0, 1).
  """
  counting.check(sparsity)
  plan = ranking.plan
  kept = _kept_rows if plan.granularity.rows else _kept_layers
  masks: list[Any] = [None] * plan.num_leaves
  for layer, mask in zip(plan.layers, kept(ranking, sparsity), strict=True):
    for leaf, cut in plan.granularity.expand(layer, mask).items():
      masks[leaf] = cut if masks[leaf] is None else masks[leaf] & cut
  masks = [
    alive if mask is None else mask & alive
    for mask, alive in zip(masks, ranking.alive, strict=True)
  ]
  return jax.tree.unflatten(plan.treedef, masks)


def _kept_layers(ranking: Ranking, sparsity) -> list[jax.Array]:
  """Marks the groups kept, when each layer (or all of them) is one pool."""
  plan, sizes = ranking.plan, ranking.sizes
  scope = scopes.SCOPES[plan.scope]
  kept = scope.kept(sizes, ranking.density, sparsity)
  if scope.pooled:
    return selection.keep_largest(ranking.keys, kept)
  for i, own in enumerate(plan.sparsities):
    if own is not None:
      kept = kept.at[i].set(scope.kept(sizes, ranking.density, own)[i])
  return [
    selection.keep_largest([keys], count)[0]
    for keys, count in zip(ranking.keys, kept, strict=True)
  ]


def _kept_rows(ranking: Ranking, sparsity) -> list[jax.Array]:
  """Marks the entries kept, when each row of a layer is a pool of its own."""
  marks = []
  for keys, sizes, own in zip(
    ranking.keys, ranking.sizes, ranking.plan.sparsities, strict=True
  ):
    kept = counting.kept_count(sparsity if own is None else own, sizes)
    marks.append(
      jax.vmap(lambda k, n: selection.keep_largest([k], n)[0])(keys, kept)
    )
  return marks


def _plan(tree, scope, granularity, exclude, names, spec) -> Plan:
  """Checks everything that does not depend on values, and fixes it."""
  named = trees.named_leaves(tree)
  paths = [path for path, _ in named]
  open_paths = [p for p, x in named if trees.prunable(p, x, names)]
  if not open_paths:
    raise ValueError(
      f"no array is named {' or '.join(names)}, so nothing can be pruned; the "
      f"leaves are {', '.join('/'.join(path) for path in paths)}; name others "
      "with names="
    )
  exclude = [_alias(layer, spec) for layer in exclude]
  trees.check_layers("exclude", exclude, open_paths)
  open_paths = [
    path
    for path in open_paths
    if not any(trees.in_layer(path, layer) for layer in exclude)
  ]
  chosen, args = shapes.parse(granularity)
  scopes.check(scope, chosen.rows)
  cut = shapes.Tree(
    paths,
    [np.shape(x) for _, x in named],
    [p in open_paths for p in paths],
    spec,
  )
  layers = tuple(chosen.layers(cut, args))
  if not layers:
    raise ValueError(
      f"every layer is excluded ({', '.join(exclude)}), or has no groups of "
      f"granularity {granularity!r}; exclude fewer"
    )
  own: Sequence[float | None] = [None] * len(layers)
  if isinstance(scope, Mapping):
    own = _own_sparsities(scope, layers, paths)
    scope = "layerwise"
  return Plan(
    jax.tree.structure(tree), len(paths), chosen, layers, scope, tuple(own)
  )


def _alias(layer: str, spec: architectures.Spec | None) -> str:
  """Turns "input" and "output" into the names they have in this network."""
  if spec is None or layer not in ("input", "output"):
    return layer
  kernels = [leaf.path for leaf in spec.leaves if leaf.is_kernel]
  return "/".join(kernels[0 if layer == "input" else -1][:-1])


def _own_sparsities(scope, layers, paths) -> list[float | None]:
  """Looks each layer up; of several names that fit, the longest counts."""
  places = [
    [tuple(layer.name.split("/"))]
    + [paths[member.leaf] for member in layer.members if member.scored]
    for layer in layers
  ]
  trees.check_layers("scope", scope, [p for place in places for p in place])
  own = []
  for place in places:
    fitting = [
      name
      for name in scope
      if any(trees.in_layer(path, name) for path in place)
    ]
    own.append(scope[max(fitting, key=len)] if fitting else None)
  return own


def _entries(plan: Plan, tree, within, masks):
  """Lists, leaf by leaf, which entries exist and which are still there."""
  covered = {m.leaf for layer in plan.layers for m in layer.members}
  for what, given in (("within", within), ("masks", masks)):
    if given is not None:
      trees.check_like(what, given, tree)

  def marks(given, i, leaf):
    mask = jnp.asarray(
      True if given is None else jax.tree.leaves(given)[i], bool
    )
    return jnp.broadcast_to(mask, np.shape(leaf)) if i in covered else mask

  leaves = list(enumerate(jax.tree.leaves(tree)))
  exists = [marks(within, i, leaf) for i, leaf in leaves]
  alive = [marks(masks, i, leaf) for i, leaf in leaves]
  alive = [a & exists[i] if i in covered else a for i, a in enumerate(alive)]
  return exists, alive


def _erk_density(layer: shapes.Layer, exists) -> jax.Array:
  """(Sum of dimensions) / (their product) of what exists of a layer.

  Kernels of four axes are convolutions; others are matrices from all input
  axes together to all output axes together.
  """
  member = next(member for member in layer.members if member.scored)
  axes = range(len(member.shape))
  entries = exists[member.leaf]
  # What exists is a product of ranges, so an axis is as long as its longest
  # line through the entries.
  sizes = [
    jnp.max(jnp.sum(entries, axis, dtype=jnp.float32), initial=1.0)
    for axis in axes
  ]
  if len(sizes) != 4:
    split = max(len(sizes) - member.outputs, 0)
    sizes = [_product(sizes[:split]), _product(sizes[split:])]
  return sum(sizes, jnp.float32(0)) / _product(sizes)


def _product(sizes) -> jax.Array:
  return jnp.prod(jnp.stack([jnp.float32(1), *sizes]))
