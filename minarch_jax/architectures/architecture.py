"""An architecture: a family and the sizes of one network of it."""

from collections.abc import Iterable
import dataclasses
import functools

from minarch_jax import names, registries
from minarch_jax.architectures.families import Family
from minarch_jax.architectures.specs import Problem, Shape, Spec


@dataclasses.dataclass(frozen=True, order=True)
class Architecture:
  """A network shape: family, the widths of its units, and what is not a width.

  `widths` holds every size that may differ between members of a pack and
  `options` the rest, both as the family's file says. Architectures of one
  *skeleton* can share a parent: those of one family and equal options, and
  where its members must be equally deep, of equal depth.

  `str(a)` round-trips through `Architecture.parse`.
  """

  family: str
  widths: tuple[int, ...]
  options: tuple[int | str, ...] = ()

  @classmethod
  def parse(cls, text: str) -> "Architecture":
    """Reads "dnn:30-30", "cnn:8", "cnn:8-16" or "vit:p7-d32-l2-h4".

    A ViT may also give, per block and joined by dots, its heads (h4.3), its
    MLP widths (m64.50; default 2 * dim) and its head sizes (k8.8; default
    dim / heads), and "-cls" for a class token instead of mean pooling.

    Raises:
      ValueError: the text is not an architecture; the message names the part.
    """
    family, colon, body = text.strip().partition(":")
    if not colon or family not in registries.FAMILIES:
      raise ValueError(
        f"architecture {text!r}: expected FAMILY:SIZES with FAMILY one of "
        f"{', '.join(registries.FAMILIES)} (for example dnn:30-30, cnn:8-16, "
        f"vit:p7-d32-l2-h4){names.nearest(family, registries.FAMILIES)}"
      )
    try:
      return cls(family, *registries.FAMILIES[family].parse(body))
    except ValueError as error:
      raise ValueError(f"architecture {text!r}: {error}") from None

  def __str__(self) -> str:
    return f"{self.family}:{self.traits.format(self.widths, self.options)}"

  @property
  def traits(self) -> Family:
    """What its family says about its networks."""
    return registries.FAMILIES[self.family]

  @property
  def depth(self) -> int:
    """Hidden layers (dnn), convolutions (cnn) or blocks (vit)."""
    return self.traits.depth(self.widths)

  @property
  def skeleton(self) -> tuple:
    depth = 0 if self.traits.deepen else self.depth
    return (self.family, depth, self.options)

  def extended(self, depth: int) -> "Architecture":
    """Adds the layers that a deeper parent runs and this network lacks."""
    missing, deepen = depth - self.depth, self.traits.deepen
    if not missing or deepen is None:
      return self
    more = deepen(self.widths, missing)
    return dataclasses.replace(self, widths=self.widths + more)

  def spec(self, problem: Problem) -> Spec:
    """Describes every leaf of the network.

    Args:
      problem: ((height, width, channels) of one image, number of classes).

    Raises:
      ValueError: the images are too small or not divisible by the patch.
    """
    return _spec(self, Problem(*problem))

  def num_params(self, input_shape: Shape, num_classes: int) -> int:
    """Counts the parameters exactly, without building the network."""
    return self.spec(Problem(input_shape, num_classes)).num_params

  def macs(self, input_shape: Shape, num_classes: int) -> int:
    """Counts multiply-accumulates of one image's forward pass.

    Matrix products and convolutions count; biases, normalisation, activation
    and the softmax do not.
    """
    return self.spec(Problem(input_shape, num_classes)).macs

  def sizes(self, problem: Problem, depth: int | None = None) -> dict[str, int]:
    """Gives the member's true size of each unit axis.

    Args:
      problem: the images and classes.
      depth: of the parent, where members of several depths share it: the
        sizes then name all of its axes, and "depth" is the member's own.
    """
    spec = self.extended(depth or self.depth).spec(problem)
    sizes = {axis: spec.sizes[axis] for axis in spec.unit_axes}
    return sizes | ({} if depth is None else {"depth": self.depth})


def parse(text: str) -> Architecture:
  """Is `Architecture.parse`."""
  return Architecture.parse(text)


# Planning asks for the same few specs thousands of times.
@functools.lru_cache(maxsize=1 << 14)
def _spec(architecture: Architecture, problem: Problem) -> Spec:
  traits = architecture.traits
  return traits.spec(architecture.widths, architecture.options, problem)


def parent(architectures: Iterable[Architecture]) -> Architecture:
  """Returns the smallest architecture that every given one is a part of.

  Raises:
    ValueError: the architectures do not share one skeleton.
  """
  members = list(architectures)
  if len({member.skeleton for member in members}) != 1:
    raise ValueError(
      "a parent needs architectures of one family and options, and of one "
      "depth where a deeper network cannot hold them; got "
      + ", ".join(map(str, members))
    )
  depth = max(member.depth for member in members)
  columns = zip(*(m.extended(depth).widths for m in members), strict=True)
  return dataclasses.replace(members[0], widths=tuple(map(max, columns)))
