"""What a family must say about itself: one `Family` in one file.

A new family is a file that ends in `FAMILY = Family(...)` and a line of
`registries.FAMILIES`; nothing else in the project names a family.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

from minarch_jax import registries
from minarch_jax.architectures.specs import Path, Problem, Spec

Widths = tuple[int, ...]  # every size that may differ between pack members
Options = tuple[int | str, ...]  # what members of one pack must agree on
Body = tuple[Widths, Options]
Shapes = Mapping[Path, tuple[int, ...]]  # of a network's leaves
Grid = Callable[[Problem], Sequence[Body]]


class Probe(NamedTuple):
  """A network that tells how fast a machine is; see `engine.machine`.

  Attributes:
    body: what follows the colon of its name.
    compile_seconds, step_seconds: what a step of it took on the machine that
      the costs describe.
  """

  body: str
  compile_seconds: float
  step_seconds: float


class Costs(NamedTuple):
  """Rough costs on one of two busy cores; they decide plans and forecasts only.

  They are those of one machine (Intel Xeon with AVX-512, jax 0.12), fitted to
  steps of 30 packs on 8x8 and 28x28 images to within a third; `engine.costs`
  multiplies them by what was measured on another.

  Attributes:
    compile_seconds: of the program of one layer.
    step_seconds: overhead of a step, per hidden layer and one more.
    flops: floating-point operations per second of its products.
    state_bytes_per_second: of parameters and moments.
    layer_bytes_per_second: of what layers read and write forward.
    probe: None = the family is taken to be like the others.
  """

  compile_seconds: float
  step_seconds: float
  flops: float
  state_bytes_per_second: float
  layer_bytes_per_second: float
  probe: Probe | None = None


class Layout(NamedTuple):
  """How a pack runs inside a program: the fastest that was measured.

  Attributes:
    seeds, members: "vmap", or "map": one after another.
    convolution: a formulation of `registries.CONVOLUTIONS`.
  """

  seeds: str
  members: str
  convolution: str = "stock"


@dataclasses.dataclass(frozen=True)
class Family:
  """Everything that the project asks of a family.

  Attributes:
    parse: reads what follows the colon of "dnn:30-30"; ValueError names the
      part that is wrong.
    format: writes it; `parse` undoes it.
    spec: describes every leaf of a network on a problem; ValueError where the
      images do not fit.
    problem: infers the problem from the leaves' shapes; images are taken as
      square where only their area can be seen.
    grids: architectures of each named grid, for a problem.
    module: the Flax module, called with (architecture, problem, dtype,
      convolution, tap); it or "module:name".
    compact: `compact(architecture, leaves) -> widths` removes units that do not
      matter from float64 leaves by path, in place; it or "module:name"; None
      where units cannot be removed.
    costs, layouts: of the machine; layouts by backend, "other" for the rest.
    level: LLVM's optimization level on CPU.
    depth: hidden layers (dnn), convolutions (cnn) or blocks (vit) of widths.
    deepen: widths of the layers that a parent deeper by so many adds to a
      member, which then lacks them; None where members must be equally deep.
    image_kernel: the kernel by which all members of a pack read the same
      images, kept with units as rows while it trains (`models.unit_rows`).
  """

  parse: Callable[[str], Body]
  format: Callable[[Widths, Options], str]
  spec: Callable[[Widths, Options, Problem], Spec]
  problem: Callable[[Shapes, Widths, Options], Problem]
  grids: Mapping[str, Grid]
  module: Any
  compact: Any
  costs: Costs
  layouts: Mapping[str, Layout]
  level: int = 2
  depth: Callable[[Widths], int] = len
  deepen: Callable[[Widths, int], Widths] | None = None
  image_kernel: Path | None = None

  @property
  def network(self) -> Callable[..., Any]:
    """The Flax module's class."""
    return registries.resolve(self.module)

  @property
  def remove_units(self) -> Callable[..., list[int]] | None:
    """The function of `compact`."""
    return registries.resolve(self.compact)


def positive(text: str, what: str) -> int:
  """Reads a positive integer.

  Raises:
    ValueError: it is none.
  """
  if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
    raise ValueError(f"{what} {text!r} is not a positive integer")
  return int(text)


def parse_chain(what: str) -> Callable[[str], Body]:
  """Makes the reader of widths joined by "-"."""

  def parse(body: str) -> Body:
    return tuple(positive(part, what) for part in body.split("-")), ()

  return parse


def format_chain(widths: Widths, options: Options) -> str:
  """Joins widths by "-"."""
  del options
  return "-".join(map(str, widths))


def chains(parse: Callable[[str], Body], texts: str) -> Grid:
  """Makes a grid that is the same for all problems."""
  bodies = [parse(text) for text in texts.split()]
  return lambda problem: bodies


def sides(area: int) -> tuple[int, int]:
  """Height and width of an area: a square, or a column where it is none."""
  side = math.isqrt(area)
  return (side, side) if side * side == area else (area, 1)
