"""Granularity: which entries of an array share one scale.

Every granularity is one picture: the array is cut into *blocks*
[groups, group, *kept], and the axis `group` shares a scale. A whole tensor is
one group with nothing kept; a channel is one group for each output; groups of
g cut the inputs of each output into pieces of g, the last one shorter.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import jax

from minarch_jax import leaves
from minarch_jax.types import module_of


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array becomes blocks.

  Attributes:
    inputs: the axes that share a scale, slowest first.
    group: entries per group; 0 = all of them.
  """

  inputs: tuple[int, ...]
  group: int = 0

  def kept(self, ndim: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in self.inputs)


def make_layout(
  granularity: str,
  path: leaves.Path,
  shape: Sequence[int],
  axes: leaves.Axes | leaves.Readings | None = None,
) -> Layout:
  """Chooses the layout of the array at `path`.

  A vector is one channel: a scale for each entry would hold the entry itself.

  Args:
    granularity: "tensor", "channel" (each output has its scale) or "group:G"
      (each G inputs of each output have theirs; a shorter last group). Layers
      that are stacked in one array share no scale.
    path: names from the root to the leaf.
    shape: its shape.
    axes: what its axes are, as `leaves.axes_of` says of the whole tree; None =
      as its own name and shape tell.

  Raises:
    ValueError: unknown granularity, an empty array, a group larger than the
      inputs, or axes that are not known.
  """
  where = "/".join(path)
  if math.prod(shape) == 0:
    raise ValueError(f"{where}: cannot quantize an array of shape {shape}")
  axes = axes or leaves.axes_of([(tuple(path), tuple(shape))])[tuple(path)]
  inputs, outputs, stacked = leaves.known(where, axes)
  if granularity == "tensor":
    return Layout(tuple(a for a in range(len(shape)) if a not in stacked))
  if granularity == "channel":
    return Layout(inputs)
  match = re.fullmatch(r"group:([1-9][0-9]*)", granularity)
  if not match:
    raise ValueError(
      f"granularity {granularity!r} is not tensor, channel or group:G with a "
      "positive integer G, for example group:32"
    )
  if path[-2:-1] == ("out",) and (len(inputs), len(outputs)) == (2, 1):
    # Heads and their size are both units, so groups stay within a head: then
    # a narrow network's groups are the same inside a wider parent.
    inputs = inputs[1:]
  group, size = int(match[1]), math.prod(shape[a] for a in inputs)
  if group > size:
    raise ValueError(
      f"{where}: a group of {group} is larger than its {size} inputs; use "
      f"group:{size} or channel"
    )
  # The unit axis comes last; as the slowest one it makes a narrow network's
  # inputs the first ones of its parent's.
  return Layout((inputs[-1], *inputs[:-1]), group)


def to_blocks(x: Any, layout: Layout) -> Any:
  """Reshapes to [groups, group, *kept]; a remainder is filled with zeros.

  Numpy in, numpy out.
  """
  kept = layout.kept(x.ndim)
  x = x.transpose(*layout.inputs, *kept)
  x = x.reshape(-1, *x.shape[len(layout.inputs) :])
  group = layout.group or x.shape[0]
  missing = -x.shape[0] % group
  if missing:
    edges = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
    x = module_of(x).pad(x, edges)
  return x.reshape(-1, group, *x.shape[1:])


def from_blocks(
  blocks: jax.Array, layout: Layout, shape: Sequence[int]
) -> jax.Array:
  """Inverts `to_blocks` for an array of `shape`."""
  kept = layout.kept(len(shape))
  order = (*layout.inputs, *kept)
  size = math.prod(shape[axis] for axis in layout.inputs)
  x = blocks.reshape(-1, *blocks.shape[2:])[:size]
  x = x.reshape([shape[axis] for axis in order])
  return x.transpose([order.index(axis) for axis in range(len(shape))])


def scale_shape(layout: Layout, shape: Sequence[int]) -> tuple[int, ...]:
  """The shape in which scales are stored.

  Broadcastable to the array for tensors and channels; [groups, *kept] for
  groups.
  """
  if layout.group:
    size = math.prod(shape[axis] for axis in layout.inputs)
    kept = [shape[axis] for axis in layout.kept(len(shape))]
    return (-(-size // layout.group), *kept)
  return tuple(
    1 if axis in layout.inputs else size for axis, size in enumerate(shape)
  )


def scale_to_blocks(
  scale: jax.Array, layout: Layout, shape: Sequence[int]
) -> jax.Array:
  """Reshapes stored scales to [groups, 1, *kept]."""
  kept = [shape[axis] for axis in layout.kept(len(shape))]
  return scale.reshape(-1, 1, *kept)
