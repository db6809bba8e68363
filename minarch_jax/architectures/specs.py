"""The leaves of a network: what their axes mean and how large they are."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from minarch_jax import registries

Shape = tuple[int, int, int]  # (height, width, channels) of one image
Path = tuple[str, ...]


class Problem(NamedTuple):
  """What a network is asked: images of this shape, one of so many classes."""

  input_shape: Shape
  num_classes: int

  @classmethod
  def of(cls, dataset: Any) -> "Problem":
    """Returns the problem of a data set, or of its description."""
    return cls(tuple(dataset.input_shape), dataset.num_classes)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter array: where it is and what its axes mean.

  `axes` names each axis; the last `outputs` of them are output axes, the ones
  before are summed over (the fan-in). `positions` is how often the leaf is
  applied per image, so a kernel costs size * positions MACs. `gain` is the
  variance gain of its initial values (2 before a ReLU, 1 otherwise, He et al.
  2015); 0 stands for a leaf that starts constant. `layer` is the number of the
  hidden layer or block the leaf belongs to (-1 = in networks of any depth): a
  member has the leaf if it is deeper than that. `activated` says whether a
  ReLU, GELU or the like follows the layer.
  """

  path: Path
  axes: tuple[str, ...]
  outputs: int = 1
  positions: int = 1
  gain: float = 0.0
  layer: int = -1
  activated: bool = False

  @property
  def name(self) -> str:
    return "/".join(self.path)

  @property
  def is_kernel(self) -> bool:
    return self.path[-1] == "kernel"

  @property
  def is_weight(self) -> bool:
    return registries.is_weight(self.path)


@dataclasses.dataclass(frozen=True)
class Spec:
  """All leaves of a network and the size of every named axis.

  `unit_axes` are the axes whose entries are units (neurons, channels, heads,
  MLP units): their sizes may differ between the members of a pack. One entry
  can be removed from all leaves that carry the axis, unless the axis is one of
  `fixed_axes`, whose entries other layers mix (the residual stream, which
  normalisation reads as a whole; the inside of a head).
  `attention_macs` maps a (heads, head_dim) axis pair to the positions its
  score and value products are taken at.
  """

  leaves: tuple[Leaf, ...]
  sizes: Mapping[str, int]
  unit_axes: tuple[str, ...]
  fixed_axes: tuple[str, ...] = ()
  attention_macs: Mapping[tuple[str, str], int] = dataclasses.field(
    default_factory=dict
  )

  def shape(self, leaf: Leaf) -> tuple[int, ...]:
    return tuple(self.sizes[axis] for axis in leaf.axes)

  @functools.cached_property
  def num_params(self) -> int:
    return sum(math.prod(self.shape(leaf)) for leaf in self.leaves)

  @functools.cached_property
  def macs(self) -> int:
    products = sum(
      math.prod(self.shape(leaf)) * leaf.positions
      for leaf in self.leaves
      if leaf.is_kernel
    )
    attention = sum(
      self.sizes[heads] * self.sizes[dim] * positions
      for (heads, dim), positions in self.attention_macs.items()
    )
    return products + attention


def dense(
  path: Path,
  inputs: tuple[str, ...],
  outputs: tuple[str, ...],
  *,
  positions: int = 1,
  gain: float = 1.0,
  layer: int = -1,
  activated: bool = False,
) -> list[Leaf]:
  """Describes a kernel and its bias; `inputs` and `outputs` name axes."""
  count = len(outputs)
  kernel, bias = (*path, "kernel"), (*path, "bias")
  return [
    Leaf(kernel, inputs + outputs, count, positions, gain, layer, activated),
    Leaf(bias, outputs, count, positions, layer=layer),
  ]
