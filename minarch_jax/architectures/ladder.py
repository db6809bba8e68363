"""A matched ladder: family and depth crossed at equal parameter counts.

Comparing depths or families asks for networks of one size. A ladder has steps
in geometric progression, the same for all families, and on each step one member
of every family and depth, as near to its size as whole widths allow.
"""

from collections.abc import Callable, Iterable, Iterator
import math

from minarch_jax.architectures.families import Body, Options, Widths
from minarch_jax.architectures.specs import Problem, Spec

STEPS, RATIO = 4, 3.0
TOLERANCE = 0.1  # of a member's size; what fits worse is left out
EVEN = 0.03  # equal widths this near are taken before unequal ones

SpecOf = Callable[[Widths, Options, Problem], Spec]
Cell = Callable[[Problem, int, int], Iterable[Body]]


def sizes(problem: Problem) -> list[int]:
  """The parameter counts of the steps.

  The first is that of a single 3x3 convolution of one channel: the smallest
  that all families reach.
  """
  height, width, channels = problem.input_shape
  pixels = max(height - 2, 1) * max(width - 2, 1)
  first = 9 * channels + 1 + (pixels + 1) * problem.num_classes
  return [round(first * RATIO**step) for step in range(STEPS)]


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
