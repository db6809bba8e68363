"""What shape is removed: elements, N of M, blocks, or whole units.

A granularity cuts the leaves into *groups* that live or die together. The
groups of one *layer* (a leaf; for units, an axis shared by several leaves)
share one array of scores; `GRANULARITIES` lists the ways to cut.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

from jax import core
import numpy as np

from minarch_jax import architectures, registries
from minarch_jax import leaves as leaves_lib
from minarch_jax.pruning import counting, trees
from minarch_jax.types import Array, module_of


@dataclasses.dataclass(frozen=True)
class Member:
  """A leaf that a layer's groups cover, along `axis` where that matters.

  Scores are read from members whose axis is an output (`scored`): the incoming
  weights of a unit. All members are masked.

  `axes` are those of the member, where they are known. A member that is one of
  several stacked layers has its `place` along the leaf's axes `stacked`; shape
  and axes are then its own.
  """

  leaf: int
  shape: tuple[int, ...]
  axes: leaves_lib.Axes | leaves_lib.Readings
  axis: int = 0
  scored: bool = True
  rows: tuple[int, ...] = ()
  stacked: tuple[int, ...] = ()
  place: tuple[int, ...] = ()

  def of(self, leaves: "Leaves") -> Any:
    """Takes the member out of the leaves."""
    leaf: Any = leaves[self.leaf]
    if not self.stacked:
      return leaf
    return np.moveaxis(leaf, self.stacked, _first(self))[self.place]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One array of groups: its name, the leaves it covers, its static sizes.

  `before` is the number of the layer whose units pass through this one in a
  network that lacks it (-1 = none).
  """

  name: str
  members: tuple[Member, ...]
  args: tuple[int, ...] = ()
  before: int = -1


def _first(member: Member) -> tuple[int, ...]:
  return tuple(range(len(member.stacked)))


class Tree(NamedTuple):
  """What is known of a parameter tree before any value is."""

  paths: Sequence[trees.Path]
  shapes: Sequence[tuple[int, ...]]
  prunable: Sequence[bool]
  spec: architectures.Spec | None
  axes: Mapping[trees.Path, leaves_lib.Axes | leaves_lib.Readings]


Leaves = Sequence[Array]
GRANULARITIES = registries.GRANULARITIES


class Granularity(NamedTuple):
  """How a tree is cut into groups.

  `layers(tree, args)` lists the layers, raising ValueError where the shapes do
  not fit. `group(layer, scores, alive, pool)` gives the groups' scores and
  which of them are alive; `expand(layer, mask)` gives the mask of each leaf
  covered, from marks of any shape in the groups' order. If `rows` is true,
  groups are [rows, M] and the entries of each row compete among themselves.
  Numpy in, numpy out: `vectors` numbers the groups of a network by them.
  """

  layers: Callable[[Tree, tuple[int, ...]], list[Layer]]
  group: Callable[[Layer, Leaves, Leaves, str], tuple[Any, Any]]
  expand: Callable[[Layer, Any], dict[int, Any]]
  usage: str
  rows: bool = False


def parse(text: str) -> tuple[Granularity, tuple[int, ...]]:
  """Reads "element", "unit", "nm:4" (N of every 4) or "block:4x4".

  Raises:
    ValueError: an unknown granularity or sizes it does not take.
  """
  name, _, sizes = text.partition(":")
  if name not in GRANULARITIES:
    raise ValueError(
      f"granularity {text!r} is not one of "
      f"{', '.join(each.usage for each in GRANULARITIES.values())}"
      f"{registries.nearest(name, GRANULARITIES)}"
    )
  chosen = GRANULARITIES[name]
  wanted = chosen.usage.count("x") + 1 if ":" in chosen.usage else 0
  args = tuple(int(n) for n in re.findall(r"(?<![0-9-])[1-9][0-9]*", sizes))
  if len(args) != wanted or "x".join(map(str, args)) != sizes:
    raise ValueError(
      f"granularity {text!r} should look like {chosen.usage}, with positive "
      "integers"
    )
  return chosen, args


def check_sparsity(
  granularity: Granularity, args: tuple[int, ...], sparsity: float | Array
) -> None:
  """Raises ValueError for a known sparsity that leaves none of every M."""
  if not granularity.rows or isinstance(sparsity, core.Tracer):
    return
  (m,) = args
  if int(counting.kept_count(sparsity, m)) < 1:
    raise ValueError(
      f"sparsity {float(sparsity):g} would keep 0 of every {m} (nm:{m}) and so "
      f"remove everything; at most {1 - 1 / m:g} can be removed, which keeps 1 "
      f"of every {m}"
    )


def apart(layers: Sequence[Layer]) -> list[Layer]:
  """Makes a layer of every layer that is stacked in one leaf.

  Raises:
    ValueError: it is not known whether some are.
  """
  found = []
  for layer in layers:
    member = layer.members[0]
    axes = leaves_lib.known(layer.name, member.axes)
    if len(layer.members) > 1 or not axes.stacked:
      found.append(layer)
      continue
    own = [i for i in range(len(member.shape)) if i not in axes.stacked]
    inputs, outputs = (
      tuple(own.index(i) for i in part) for part in (axes.inputs, axes.outputs)
    )
    one = dataclasses.replace(
      member,
      shape=tuple(member.shape[i] for i in own),
      axes=leaves_lib.Axes(inputs, outputs),
      stacked=axes.stacked,
    )
    for place in np.ndindex(*(member.shape[i] for i in axes.stacked)):
      name = "/".join([layer.name, *map(str, place)])
      each = dataclasses.replace(one, place=place)
      found.append(Layer(name, (each,), layer.args))
  return found


def together(members: Sequence[Member], parts: Sequence[Array]) -> Any:
  """Stacks again what `apart` took apart: all layers of one leaf, in order."""
  last = members[-1]
  sizes = [place + 1 for place in last.place]
  whole = module_of(*parts).stack(list(parts)).reshape(*sizes, *last.shape)
  return np.moveaxis(whole, _first(last), last.stacked)


# How element scores become one score of a group: from their sum and number.
POOLS: dict[str, Callable[[Any, Any], Any]] = {
  "mean": lambda total, size: total / (size + (size == 0)),
  "sum": lambda total, size: total,
  "absolute": lambda total, size: abs(total),
}
# Not a pool of sums: the score of the group's first element (random choice).
FIRST = "first"


# --- element -----------------------------------------------------------------


def _element_layers(tree: Tree, args) -> list[Layer]:
  return [
    Layer("/".join(path), (Member(i, shape, tree.axes[path]),), args)
    for i, (path, shape) in enumerate(zip(tree.paths, tree.shapes, strict=True))
    if tree.prunable[i]
  ]


def _element_group(layer, scores, alive, pool):
  (member,) = layer.members
  return _single(member.of(scores), pool), member.of(alive)


def _single(score, pool):
  """The score of a group of one."""
  alone = pool in (FIRST, "mean", "sum")
  return score if alone else POOLS[pool](score, np.int32(1))


def _element_expand(layer, mask):
  (member,) = layer.members
  return {member.leaf: mask.reshape(member.shape)}


# --- N of M ------------------------------------------------------------------


def _nm_layers(tree: Tree, args) -> list[Layer]:
  """Groups of M neighbours along the last input axis of each leaf.

  Where that is no multiple of M, along all inputs together: a matrix product
  sums over them in this order. Not within a spec, whose networks may lie in
  parents that are wider.
  """
  (m,) = args
  layers = []
  for layer in _element_layers(tree, args):
    (member,) = layer.members
    inputs = leaves_lib.known(layer.name, member.axes).inputs or (0,)
    rows = inputs[-1:]
    (size,) = (member.shape[axis] for axis in rows)
    together = math.prod(member.shape[axis] for axis in inputs)
    if size % m and together % m == 0 and tree.spec is None:
      rows = inputs
    elif size % m:
      raise ValueError(
        f"granularity nm:{m}: axis {rows[0]} of leaf {layer.name!r} has {size} "
        f"entries, not a multiple of {m}; exclude the layer or choose another "
        "size"
      )
    member = dataclasses.replace(member, rows=rows)
    layers.append(dataclasses.replace(layer, members=(member,)))
  return layers


def _nm_group(layer, scores, alive, pool):
  (member,) = layer.members
  score = _single(scores[member.leaf], pool)
  (m,) = layer.args
  return _rows(score, member, m), _rows(alive[member.leaf], member, m)


def _rows(x, member, m):
  return np.moveaxis(x, member.rows, _last(member)).reshape(-1, m)


def _last(member: Member) -> tuple[int, ...]:
  return tuple(range(-len(member.rows), 0))


def _nm_expand(layer, mask):
  (member,) = layer.members
  shape = [n for i, n in enumerate(member.shape) if i not in member.rows]
  shape += [member.shape[i] for i in member.rows]
  mask = np.moveaxis(mask.reshape(shape), _last(member), member.rows)
  return {member.leaf: mask}


# --- block -------------------------------------------------------------------


def _block_layers(tree: Tree, args) -> list[Layer]:
  return _element_layers(tree, args)


def _block_group(layer, scores, alive, pool):
  """Blocks of the last two axes; those at the far edges may be smaller."""
  (member,) = layer.members
  score, exists = member.of(scores), member.of(alive)
  blocks = [_blocks(x, layer.args) for x in (score, exists)]
  if pool == FIRST:
    return blocks[0][..., 0], blocks[1].any(-1)
  return _pooled(blocks[0], blocks[1], pool)


def _pooled(scores, alive, pool):
  xp = module_of(scores, alive)
  total = xp.sum(xp.where(alive, scores, 0), -1)
  size = xp.sum(alive, -1, dtype=np.int32)
  return POOLS[pool](total, size), size > 0


def _blocks(x, args):
  """[..., R, C] to [..., R / height, C / width, height * width], padded."""
  height, width = args
  x = x[None] if x.ndim == 1 else x
  rows, columns = -(-x.shape[-2] // height), -(-x.shape[-1] // width)
  pad = [(0, 0)] * (x.ndim - 2)
  pad += [
    (0, rows * height - x.shape[-2]),
    (0, columns * width - x.shape[-1]),
  ]
  x = module_of(x).pad(x, pad)
  x = x.reshape(*x.shape[:-2], rows, height, columns, width)
  x = np.moveaxis(x, -3, -2)
  return x.reshape(*x.shape[:-2], height * width)


def _block_expand(layer, mask):
  (member,) = layer.members
  height, width = layer.args
  shape = member.shape if len(member.shape) > 1 else (1, *member.shape)
  rows, columns = -(-shape[-2] // height), -(-shape[-1] // width)
  mask = mask.reshape(*shape[:-2], rows, columns)
  mask = mask.repeat(height, -2).repeat(width, -1)
  mask = mask[..., : shape[-2], : shape[-1]]
  return {member.leaf: mask.reshape(member.shape)}


# --- unit --------------------------------------------------------------------


def _unit_layers(tree: Tree, args) -> list[Layer]:
  """One layer for each axis of units; its members are all leaves with it."""
  if tree.spec is None:
    raise ValueError(
      "granularity unit needs spec=, as architecture.spec(problem) "
      "gives it: which leaves share a unit cannot be seen from "
      "their shapes"
    )
  index = {path: i for i, path in enumerate(tree.paths)}
  layers = []
  for axis in tree.spec.unit_axes:
    if axis in tree.spec.fixed_axes:
      continue
    members, inputs = [], ()
    for leaf in tree.spec.leaves:
      if axis in leaf.axes:
        i, position = index[leaf.path], leaf.axes.index(axis)
        output = position >= len(leaf.axes) - leaf.outputs
        scored = output and leaf.is_kernel
        inputs += leaf.axes[: -leaf.outputs] if scored else ()
        axes = tree.axes[leaf.path]
        members.append(Member(i, tree.shapes[i], axes, position, scored))
    if all(tree.prunable[m.leaf] for m in members if m.scored):
      before = [i for i, each in enumerate(layers) if each.name in inputs]
      layers.append(Layer(axis, tuple(members), args, *before[-1:]))
  return layers


def _unit_group(layer, scores, alive, pool):
  """Pools the incoming weights of each unit (Li et al. 2017)."""
  parts = []
  for member in layer.members:
    if member.scored:
      both = (scores[member.leaf], alive[member.leaf])
      parts.append([_by_unit(x, member.axis) for x in both])
  join = module_of(*scores).concatenate
  score, exists = (join(part, -1) for part in zip(*parts, strict=True))
  if pool == FIRST:
    return score[:, 0], exists.any(-1)
  return _pooled(score, exists, pool)


def _by_unit(x, axis):
  """Moves the unit axis first and flattens the rest."""
  return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def _unit_expand(layer, mask):
  out, mask = {}, mask.reshape(-1)
  for member in layer.members:
    across = [-1 if i == member.axis else 1 for i in range(len(member.shape))]
    spread = module_of(mask).broadcast_to
    out[member.leaf] = spread(mask.reshape(across), member.shape)
  return out


ELEMENT = Granularity(
  _element_layers, _element_group, _element_expand, "element"
)
NM = Granularity(_nm_layers, _nm_group, _nm_expand, "nm:4", rows=True)
BLOCK = Granularity(_block_layers, _block_group, _block_expand, "block:4x4")
UNIT = Granularity(_unit_layers, _unit_group, _unit_expand, "unit")
