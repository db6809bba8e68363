"""A matched ladder: family and depth crossed at equal parameter counts.

Comparing depths or families asks for networks of one size. A ladder has steps
in geometric progression, the same for all families, and on each step one member
of every family and depth, as near to its size as whole widths allow.
"""

from collections.abc import Callable, Iterable, Iterator
import math

from minarch_jax.architectures.architecture import Architecture
from minarch_jax.architectures.families import Body, Options, Widths
from minarch_jax.architectures.specs import Problem, Spec

STEPS = 4
SPAN = 1250  # about the last step by the root of the first: 24,000 on 8x8
TOLERANCE = 0.1  # of a member's size; what fits worse is left out
EVEN = 0.03  # equal widths this near are taken before unequal ones

SpecOf = Callable[[Widths, Options, Problem], Spec]
Cell = Callable[[Problem, int, int], Iterable[Body]]


def sizes(problem: Problem) -> list[int]:
  """The parameter counts of the steps.

  The first is that of a single 3x3 convolution of one channel: the smallest
  that all families reach. The last grows about as its root: the smallest
  networks mostly read pixels, larger ones mostly connect units. Steps are whole
  multiples, because the sizes of single convolutions are.
  """
  height, width, channels = problem.input_shape
  pixels = max(height - 2, 1) * max(width - 2, 1)
  first = 9 * channels + 1 + (pixels + 1) * problem.num_classes
  ratio = max(2, round((SPAN / math.sqrt(first)) ** (1 / (STEPS - 1))))
  return [first * ratio**step for step in range(STEPS)]


def gaps(problem: Problem, found: Iterable[Architecture]) -> list[str]:
  """Names the cells that none of the architectures found fills, where whole
  widths allow no network of that family, depth and size."""
  params: dict[tuple[str, int], list[int]] = {}
  for a in found:
    own = params.setdefault((a.family, a.depth), [])
    own.append(a.spec(problem).num_params)
  return [
    f"{family} of depth {depth} at {size:,} parameters"
    for (family, depth), known in params.items()
    for size in sizes(problem)
    if not any(abs(p / size - 1) <= TOLERANCE for p in known)
  ]


def members(
  problem: Problem, depths: Iterable[int], candidates: Cell, spec: SpecOf
) -> list[Body]:
  """Lists the members of one family, depth by depth, smallest first.

  Args:
    problem: images and classes.
    depths: of the family.
    candidates: `candidates(problem, depth, size)` lists bodies, evenly shaped
      ones first.
    spec: the family's.
  """
  found: dict[Body, None] = {}
  for depth in depths:
    for size in sizes(problem):
      best = _nearest(problem, size, candidates(problem, depth, size), spec)
      if best is not None:
        found[best] = None
  return list(found)


def _nearest(
  problem: Problem, size: int, bodies: Iterable[Body], spec: SpecOf
) -> Body | None:
  """The first body within `EVEN` of a size, or the nearest within the
  tolerance."""
  best, least = None, math.inf
  for widths, options in bodies:
    try:
      params = spec(widths, options, problem).num_params
    except ValueError:  # does not fit the images
      continue
    error = abs(params / size - 1)
    if error <= EVEN:
      return widths, options
    if error < min(least, TOLERANCE):
      best, least = (widths, options), error
  return best


def chains(spec: SpecOf) -> Cell:
  """Makes the candidates of a family whose widths are those of its layers:
  equal ones, then those that grow by one at some layer."""

  def candidates(problem: Problem, depth: int, size: int) -> Iterator[Body]:
    def params(width: int) -> int:
      return spec((width,) * depth, (), problem).num_params

    try:
      width = _first_above(params, size)
    except ValueError:  # so many layers do not fit the images
      return
    near = [w for w in (width, width - 1) if w > 0]
    yield from (((w,) * depth, ()) for w in near)
    yield from (
      ((near[-1],) * small + (width,) * (depth - small), ())
      for small in range(1, depth)
    )

  return candidates


def _first_above(params: Callable[[int], int], size: int) -> int:
  """The smallest width whose network is at least so large."""
  width = 1
  while params(width) < size:
    width *= 2
  low = width // 2
  while width - low > 1:
    middle = (low + width) // 2
    low, width = (low, middle) if params(middle) >= size else (middle, width)
  return width
