"""Fully connected networks: dnn:30-30 has two hidden layers of 30."""

import itertools
import math

from minarch_jax.architectures import families, ladder, specs
from minarch_jax.architectures.families import Body, Options, Shapes, Widths
from minarch_jax.architectures.specs import Problem, Spec

PAPER_WIDTHS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


def _spec(widths: Widths, options: Options, problem: Problem) -> Spec:
  del options
  sizes = {
    "inputs": math.prod(problem.input_shape),
    "classes": problem.num_classes,
  }
  leaves, previous = [], "inputs"
  for i, width in enumerate(widths):
    axis = f"hidden_{i}"
    sizes[axis] = width
    leaves += specs.dense(
      (axis,), (previous,), (axis,), gain=2.0, layer=i, activated=True
    )
    previous = axis
  leaves += specs.dense(("output",), (previous,), ("classes",))
  units = tuple(f"hidden_{i}" for i in range(len(widths)))
  return Spec(tuple(leaves), sizes, units)


def _problem(shapes: Shapes, widths: Widths, options: Options) -> Problem:
  del widths, options
  inputs = shapes["hidden_0", "kernel"][-2]
  return Problem((1, inputs, 1), shapes["output", "bias"][-1])


def _deepen(widths: Widths, missing: int) -> Widths:
  """The added layers pass the last layer's outputs on, so they are as wide."""
  return widths[-1:] * missing


def _monotone(problem: Problem) -> list[Body]:
  """1-4 hidden layers: equal, strictly increasing or strictly decreasing."""
  shapes = []
  for depth in range(1, 5):
    rising = list(itertools.combinations(PAPER_WIDTHS, depth))
    falling = [widths[::-1] for widths in rising] if depth > 1 else []
    equal = [(width,) * depth for width in PAPER_WIDTHS] if depth > 1 else []
    shapes += equal + rising + falling
  return [(widths, ()) for widths in shapes]


def _square(problem: Problem) -> list[Body]:
  return [
    ((width,) * depth, ()) for depth in range(1, 5) for width in PAPER_WIDTHS
  ]


def _relations(problem: Problem) -> list[Body]:
  """The 480 groups of a review of the paper, less the repeated shapes.

  A group is a depth, a size, and how each layer relates to the one before it:
  as wide, wider or narrower. How a relation becomes a width is not published;
  here it is one step along `PAPER_WIDTHS`, which ends at its ends.
  """
  last, shapes = len(PAPER_WIDTHS) - 1, {}
  for depth in range(1, 5):
    for start in range(len(PAPER_WIDTHS)):
      for steps in itertools.product((0, 1, -1), repeat=depth - 1):
        places = [start]
        for step in steps:
          places.append(min(max(places[-1] + step, 0), last))
        shapes[tuple(PAPER_WIDTHS[i] for i in places)] = None
  return [(widths, ()) for widths in shapes]


def _ladder(problem: Problem) -> list[Body]:
  return ladder.members(problem, (1, 2, 4), ladder.chains(_spec), _spec)


_parse = families.parse_chain("width")

FAMILY = families.Family(
  parse=_parse,
  format=families.format_chain,
  spec=_spec,
  problem=_problem,
  grids={
    "ladder": _ladder,
    "paper": _relations,
    "monotone": _monotone,
    "square": _square,
    "small": families.chains(
      _parse,
      "1 3 10 30 100 1000 10-10 30-30 100-100 10-10-10-10 30-30-30-30 "
      "100-100-100-100",
    ),
    "tiny": families.chains(_parse, "2 16 8-4"),
  },
  module="minarch_jax.models.dnn:DNN",
  compact="minarch_jax.pruning.compaction:chain",
  costs=families.Costs(
    compile_seconds=2.0,
    step_seconds=24e-6,
    flops=290e9,
    state_bytes_per_second=7e9,
    layer_bytes_per_second=17e9,
    probe=families.Probe("32-32", 0.55, 0.09e-3),
  ),
  layouts={
    "cpu": families.Layout("map", "vmap"),
    "other": families.Layout("vmap", "vmap"),
  },
  deepen=_deepen,
  image_kernel=("hidden_0", "kernel"),
)
