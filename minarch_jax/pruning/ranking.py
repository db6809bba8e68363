"""From scores to masks: one ranking, then one mask for each sparsity."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import architectures, leaves, registries
from minarch_jax.pruning import counting, scopes, selection, trees
from minarch_jax.pruning import granularity as shapes
from minarch_jax.types import Array, Masks, module_of, Params

Scope = str | Mapping[str, float]


class Grouping(NamedTuple):
  """Which leaves are pruned, and what of them goes as one.

  Attributes:
    granularity: one of GRANULARITIES, with its sizes ("nm:4", "block:4x4").
    exclude: layers that are not pruned; "input" and "output" name the first and
      last layer of `spec`.
    names: last names of the leaves that are pruned; None = the weights, as
      `minarch_jax.leaves.weights` finds them.
    spec: named axes of the tree; units need it.
    axes: without spec, what the axes of leaves are where names, biases and
      shapes do not tell, by patterns: {"*/proj/kernel": "ioo"}; see
      `minarch_jax.leaves`.
  """

  granularity: str = "element"
  exclude: Sequence[str] = ()
  names: Sequence[str] | None = None
  spec: architectures.Spec | None = None
  axes: leaves.Rules | None = None


def check_keywords(
  function: str, given: Iterable[str], known: Sequence[str]
) -> None:
  """Raises TypeError for a keyword that a function does not take."""
  for name in given:
    if name not in known:
      raise TypeError(
        f"{function} takes no argument {name!r}; it takes {', '.join(known)}"
        f"{registries.nearest(name, known)}"
      )


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static half of a ranking: which leaves, in which groups, how shared.

  `sparsities` holds, for each layer, the sparsity a dictionary scope gave it
  (None = the one asked for).
  """

  treedef: Any
  granularity: shapes.Granularity
  layers: tuple[shapes.Layer, ...]
  scope: scopes.Scope
  sparsities: tuple[float | None, ...]


@flax.struct.dataclass
class Ranking:
  """Everything `masks_at` needs to make the masks of any sparsity.

  Attributes:
    keys: uint32 table of the groups of all layers, 0 = gone; the order.
    sizes: int32 number of groups that exist, of each row of an N:M
      granularity, else of each layer.
    density: float32 [L], (sum of dimensions) / (their product), for a scope
      that reads it; [1], unused, for others.
    alive: which entries of each leaf are there before pruning.
    plan, pools: what is static, and how the table is laid out.
  """

  keys: Array
  sizes: Array
  density: Array
  alive: tuple[jax.Array, ...]
  plan: Plan = flax.struct.field(pytree_node=False)
  pools: selection.Pools = flax.struct.field(pytree_node=False)


def rank(
  scores: Params,
  scope: Scope = "global",
  within: Masks | None = None,
  *,
  masks: Masks | None = None,
  pool: str = "mean",
  **grouping: Any,
) -> Ranking:
  """Orders what can be pruned, from the first to go to the last.

  >>> ranking = ma.rank(jax.tree.map(abs, params), scope="layerwise")
  >>> grid = [ma.masks_at(ranking, sparsity) for sparsity in (0.5, 0.75)]
  >>> [int(masks["output"]["kernel"].sum()) for masks in grid]
  [9, 4]

  Args:
    scores: importance of each entry, in the structure of the parameters; only
      leaves that are pruned are read.
    scope: one of SCOPES, or a dictionary from layers to sparsities.
    within: entries that exist, for a network inside a parent (None = all).
    masks: entries that are still there; those pruned before stay pruned, count
      as existing and go first.
    pool: one of POOLS, or "first": how a group's score comes from its entries'.
    **grouping: granularity, exclude, names, spec, axes; see Grouping.

  Raises:
    TypeError: an unknown keyword.
    ValueError: nothing to prune, unknown layers or names, shapes that do not
      fit the granularity, or trees of another structure.
  """
  check_keywords("rank", grouping, Grouping._fields)
  plan = planned(scores, scope, Grouping(**grouping))
  for what, given in (("within", within), ("masks", masks)):
    if given is not None:
      trees.check_like(what, given, scores)
  trees_of_leaves = tuple(
    None if tree is None else tuple(map(_number, jax.tree.leaves(tree)))
    for tree in (scores, within, masks)
  )
  on_host = not any(
    isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees_of_leaves)
  )
  make = _order if on_host else _compiled_order
  order = make(plan, pool, *trees_of_leaves)
  if within is not None:
    return order
  # Known from shapes alone, so that a known sparsity is counted on the host.
  return dataclasses.replace(order, **counts_of(plan, order.pools))


def _number(leaf: Any) -> Any:
  """What ranking reads of a leaf: nothing of those that hold no numbers."""
  return leaves.on_host(leaf) if leaves.is_array(leaf) else np.float32(0)


def counts_of(plan: Plan, pools: selection.Pools) -> dict[str, np.ndarray]:
  """What `kept_groups` reads of a ranking of a network that is no member of a
  parent, from shapes alone: its `sizes` and `density`."""
  rows, lengths = pools.counts, np.array(pools.sizes)
  sizes = np.repeat(lengths // rows, rows).astype(np.int32)
  return {"sizes": sizes, "density": np.stack(_densities(plan, None))}


def check(
  shapes: Params,
  scope: Scope,
  granularity: str,
  spec: architectures.Spec,
  sparsities: Sequence[float] = (),
) -> None:
  """Raises what `rank` and `masks_at` would, from a network's shapes alone.

  Args:
    shapes: a tree of arrays or `jax.ShapeDtypeStruct`.
    scope, granularity, spec: as for `rank`.
    sparsities: that will be cut at.
  """
  plan = planned(shapes, scope, Grouping(granularity, spec=spec))
  for sparsity in sparsities:
    check_sparsity(plan, sparsity)


def check_sparsity(plan: Plan, sparsity: float | Array) -> None:
  """Raises ValueError for a known sparsity that cannot be cut at."""
  counting.check(sparsity)
  shapes.check_sparsity(plan.granularity, plan.layers[0].args, sparsity)


def _order(plan: Plan, pool: str, leaves, within, masks) -> Ranking:
  """Orders the groups of flat trees; see `rank`. Numpy in, numpy out."""
  given = jax.tree.leaves((leaves, within, masks))
  xp = module_of(*given)
  # Two kinds of absence: what does not exist (padding of a member inside its
  # parent) counts nowhere; what was pruned before counts in the sizes that
  # sparsities are fractions of, and goes first.
  exists, alive = _entries(plan, leaves, within, masks)
  table, there, sizes = [], [], []
  for layer in plan.layers:
    score, here = plan.granularity.group(layer, leaves, alive, pool)
    table.append(xp.asarray(score).astype(np.float32, copy=False))
    there.append(here)
    rows = score.shape[0] if plan.granularity.rows else 1
    existing = here
    if masks is not None:
      _, existing = plan.granularity.group(layer, leaves, exists, pool)
    sizes.append(xp.sum(existing.reshape(rows, -1), 1, dtype=np.int32))
  densities = _densities(plan, None if within is None else exists)
  if masks is None and within is None:
    # Scalars: a ranking carries no arrays that say nothing.
    alive = [xp.ones((), bool) for _ in alive]
  pools = pools_of(plan, [part.size for part in table], table[0].shape[-1])
  keys = selection.sort_keys(
    selection.lay_out(pools, table), selection.lay_out(pools, there)
  )
  return Ranking(
    keys,
    xp.concatenate(sizes),
    xp.stack(densities),
    tuple(alive),
    plan,
    pools,
  )


# Compiled whole: one operation after the other would take seconds to compile
# in a notebook. Inside a compiled function this changes nothing.
_compiled_order = jax.jit(_order, static_argnums=(0, 1))


def pools_of(plan: Plan, sizes: Sequence[int], last: int) -> selection.Pools:
  """Says who competes; `last` is the length of an N:M row."""
  if plan.granularity.rows:
    return selection.Pools(tuple(sizes), last, "rows")
  kind = "one" if plan.scope.pooled else "arrays"
  return selection.pools_of(sizes, kind)


def layerwise(ranking: Ranking) -> Ranking:
  """Lets no layer of a ranking compete with another, whatever its scope."""
  plan, pools = ranking.plan, ranking.pools
  kind = "rows" if plan.granularity.rows else "arrays"
  return dataclasses.replace(
    ranking,
    density=np.zeros(1, np.float32),
    plan=dataclasses.replace(
      plan, scope=scopes.LAYERWISE, sparsities=(None,) * len(plan.layers)
    ),
    pools=dataclasses.replace(pools, kind=kind),
  )


def masks_at(ranking: Ranking, sparsity: float | Array) -> Masks:
  """Makes the masks of one sparsity: bool, 1 = kept, scalar 1 = not pruned.

  Args:
    ranking: as made by `rank`.
    sparsity: fraction of groups removed, in [0, 1); may be traced. A layer or
      pool of n groups keeps `round((1 - sparsity) * n)`, or all that are left.

  Raises:
    ValueError: a known sparsity outside [0, 1), or one that leaves none of
      every M.
  """
  check_sparsity(ranking.plan, sparsity)
  kept = leaves.on_host(kept_groups(ranking, sparsity))
  given = (ranking.keys, ranking.sizes, *ranking.alive, kept)
  if module_of(*given) is np:
    return jax.tree.map(jnp.asarray, _cut(ranking, kept))
  return _compiled_cut(ranking, kept)


def _cut(ranking: Ranking, kept: Array) -> Masks:
  marks = selection.keep_largest(ranking.keys, kept, ranking.pools)
  return masks_of(ranking, marks)


_compiled_cut = jax.jit(_cut)


def masks_of(ranking: Ranking, marks: Array) -> Masks:
  """Turns a table of marks, 1 = kept, into masks."""
  plan = ranking.plan
  masks: list[Any] = [None] * len(ranking.alive)
  parts = selection.take_apart(ranking.pools, marks)
  parts = _passed_through(plan.layers, parts, ranking.sizes)
  stacks: dict[int, list[tuple[shapes.Member, jax.Array]]] = {}
  for layer, part in zip(plan.layers, parts, strict=True):
    # A leaf between two unit axes lives where both of its units do.
    for leaf, cut in plan.granularity.expand(layer, part).items():
      if layer.members[0].place:
        stacks.setdefault(leaf, []).append((layer.members[0], cut))
      else:
        masks[leaf] = cut if masks[leaf] is None else masks[leaf] & cut
  for leaf, stack in stacks.items():
    masks[leaf] = shapes.together(*zip(*stack, strict=True))
  masks = [
    alive if mask is None else mask & alive
    for mask, alive in zip(masks, ranking.alive, strict=True)
  ]
  return jax.tree.unflatten(plan.treedef, masks)


def _passed_through(layers, parts, sizes) -> list[Array]:
  """Gives a layer that a network lacks the units of the one before.

  What reads the missing layer's outputs in a parent reads theirs.
  """
  parts = list(parts)
  for i, layer in enumerate(layers):
    if layer.before >= 0:
      given, length = parts[layer.before], len(parts[i])
      xp = module_of(given, parts[i], sizes)
      given = xp.pad(given[:length], (0, max(0, length - len(given))))
      parts[i] = xp.where(sizes[i] > 0, parts[i], given)
  return parts


def kept_groups(ranking: Ranking, sparsity: float | Array) -> Array:
  """Counts the groups kept by each pool: int32 [pools]."""
  plan, sizes = ranking.plan, ranking.sizes
  if plan.granularity.rows:
    scope = scopes.pool_shares
  else:
    scope = plan.scope.kept
  kept = scope(sizes, ranking.density, sparsity).reshape(-1)
  if any(own is not None for own in plan.sparsities):
    ends = np.cumsum(ranking.pools.counts)[:-1]
    parts = zip(
      jnp.split(kept, ends),
      jnp.split(jnp.asarray(sizes), ends),
      plan.sparsities,
      strict=True,
    )
    kept = jnp.concatenate(
      [
        part if own is None else jnp.asarray(scope(size, ranking.density, own))
        for part, size, own in parts
      ]
    )
  return kept


def planned(tree: Params, scope: Scope, grouping: Grouping) -> Plan:
  """Checks everything that does not depend on values, and fixes it."""
  granularity, exclude, names, spec, rules = grouping
  for what, given in (("exclude", exclude), ("names", names)):
    if isinstance(given, str):
      raise ValueError(f"{what} is a text, {given!r}; write [{given!r}]")
  named = trees.named_leaves(tree)
  paths = [path for path, _ in named]
  if spec is not None:
    _check_spec(named, spec)
  wanted = trees.prunable(tree, names)
  open_paths = [path for path in paths if path in wanted]
  if not open_paths:
    raise ValueError(
      f"no array is named {' or '.join(names or registries.WEIGHTS)}, so "
      "nothing can be pruned; name "
      f"others with names={leaves.likely(tree)}; the leaves are "
      f"{', '.join('/'.join(path) for path in paths)}"
    )
  exclude = [_alias(layer, spec) for layer in exclude]
  trees.check_layers("exclude", exclude, open_paths)
  open_paths = [
    path
    for path in open_paths
    if not any(trees.in_layer(path, layer) for layer in exclude)
  ]
  chosen, args = shapes.parse(granularity)
  sharing = scopes.find(scope, chosen.rows)
  cut = shapes.Tree(
    paths,
    [np.shape(x) for _, x in named],
    [p in open_paths for p in paths],
    spec,
    axes_of(tree, spec, rules),
  )
  layers = tuple(chosen.layers(cut, args))
  if not sharing.pooled and not chosen.rows:
    layers = tuple(shapes.apart(layers))
  if not layers:
    raise ValueError(
      f"every layer is excluded ({', '.join(exclude)}), or has no groups of "
      f"granularity {granularity!r}; exclude fewer"
    )
  own: Sequence[float | None] = [None] * len(layers)
  if isinstance(scope, Mapping):
    for sparsity in scope.values():
      shapes.check_sparsity(chosen, args, sparsity)
    own = _own_sparsities(scope, layers, paths)
  return Plan(jax.tree.structure(tree), chosen, layers, sharing, tuple(own))


def axes_of(
  tree: Params, spec: architectures.Spec | None, rules: leaves.Rules | None
) -> dict[trees.Path, leaves.Axes | leaves.Readings]:
  """Describes the axes of a tree: by its spec, where there is one."""
  described = () if spec is None else spec.leaves
  return leaves.axes_of(leaves.named(tree), rules) | {
    leaf.path: leaves.trailing(len(leaf.axes), leaf.outputs)
    for leaf in described
  }


def _check_spec(named, spec: architectures.Spec) -> None:
  """Raises ValueError unless the tree is the network that spec describes."""
  shapes_of = {path: np.shape(leaf) for path, leaf in named}
  for leaf in spec.leaves:
    found = shapes_of.get(leaf.path)
    if found != spec.shape(leaf):
      raise ValueError(
        f"spec: leaf {'/'.join(leaf.path)!r} has shape {spec.shape(leaf)}, in "
        f"the tree {'it is missing' if found is None else found}; take the "
        "spec of this architecture, and one network at a time"
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


def _entries(plan: Plan, leaves, within, masks):
  """Lists, leaf by leaf, which entries exist and which are still there."""
  covered = {m.leaf for layer in plan.layers for m in layer.members}

  xp = module_of(*jax.tree.leaves((leaves, within, masks)))

  def marks(given, i, leaf):
    mask = xp.asarray(True if given is None else given[i], bool)
    return xp.broadcast_to(mask, np.shape(leaf)) if i in covered else mask

  exists = [marks(within, i, leaf) for i, leaf in enumerate(leaves)]
  alive = [marks(masks, i, leaf) for i, leaf in enumerate(leaves)]
  # A scalar mask says "not pruned" and stays a scalar.
  alive = [a & e if a.ndim else a for a, e in zip(alive, exists, strict=True)]
  return exists, alive


def _densities(plan: Plan, exists) -> list:
  """The density of each layer, for a scope that reads it."""
  if not plan.scope.reads_density:
    return [np.zeros((), np.float32)]
  return [_density(layer, exists) for layer in plan.layers]


def _density(layer: shapes.Layer, exists) -> Any:
  """(Sum of dimensions) / (their product) of what exists of a layer.

  Kernels of four axes are convolutions; others are matrices from all input
  axes together to all output axes together.
  """
  member = next(member for member in layer.members if member.scored)
  sizes = [np.float32(size) for size in member.shape]
  if exists is not None:
    # What exists is a product of ranges, so an axis is as long as its longest
    # line through the entries.
    entries = member.of(exists).astype(np.float32)
    sizes = [entries.sum(i).max() for i in range(len(sizes))]
  if len(sizes) != 4:
    axes = leaves.known(layer.name, member.axes)
    sizes = [
      math.prod(sizes[axis] for axis in part)
      for part in (axes.inputs, axes.outputs)
    ]
  if exists is None:
    return sum(sizes) / math.prod(sizes)
  # A layer that a shallow member of a deep parent lacks has no entries.
  whole = math.prod(sizes)
  return sum(sizes) / (whole + (whole == 0))
