"""Convolutional networks: cnn:8-16 has 3x3 convolutions of 8 and 16 channels.

One convolution is the paper's: stride 1, no padding. Several are padded to
keep the size, with 2x2 max-pooling (floor) between them.
"""

import math

from minarch_jax.architectures import families, ladder, specs
from minarch_jax.architectures.families import Body, Options, Shapes, Widths
from minarch_jax.architectures.specs import Problem, Shape, Spec


def output_sizes(depth: int, input_shape: Shape) -> list[tuple[int, int]]:
  """Gives the (height, width) of each convolution's output, before pooling.

  Raises:
    ValueError: so many do not fit the images.
  """
  height, width, _ = input_shape
  if depth == 1:
    sizes = [(height - 2, width - 2)]
  else:
    sizes = [(height >> i, width >> i) for i in range(depth)]
  if min(min(size) for size in sizes) < 1:
    raise ValueError(
      f"{depth} convolutions with pooling do not fit images of "
      f"{height}x{width}; use fewer channels in the list"
    )
  return sizes


def _spec(widths: Widths, options: Options, problem: Problem) -> Spec:
  del options
  outputs = output_sizes(len(widths), problem.input_shape)
  sizes = {
    "kernel_height": 3,
    "kernel_width": 3,
    "image_channels": problem.input_shape[2],
    "pixels": math.prod(outputs[-1]),
    "classes": problem.num_classes,
  }
  leaves, previous = [], "image_channels"
  for i, (channels, output) in enumerate(zip(widths, outputs, strict=True)):
    axis = f"channels_{i}"
    sizes[axis] = channels
    leaves += specs.dense(
      (f"conv_{i}",),
      ("kernel_height", "kernel_width", previous),
      (axis,),
      positions=math.prod(output),
      gain=2.0,
      activated=True,
    )
    previous = axis
  leaves += specs.dense(("output",), ("pixels", previous), ("classes",))
  units = tuple(f"channels_{i}" for i in range(len(widths)))
  return Spec(tuple(leaves), sizes, units)


def _problem(shapes: Shapes, widths: Widths, options: Options) -> Problem:
  del options
  channels = shapes["conv_0", "kernel"][-2]
  height, width = families.sides(shapes["output", "kernel"][-3])
  if len(widths) == 1:
    size = (height + 2, width + 2)
  else:
    scale = 1 << len(widths) - 1
    size = (height * scale, width * scale)
  return Problem((*size, channels), shapes["output", "bias"][-1])


def _single(problem: Problem) -> list[Body]:
  return [((channels,), ()) for channels in range(1, 33)]


def _square(problem: Problem) -> list[Body]:
  return [
    ((channels,) * depth, ())
    for depth in (1, 2, 3)
    for channels in (1, 2, 4, 8, 16, 32)
  ]


def _ladder(problem: Problem) -> list[Body]:
  return ladder.members(problem, (1, 2, 3), ladder.chains(_spec), _spec)


_parse = families.parse_chain("channels")

FAMILY = families.Family(
  parse=_parse,
  format=families.format_chain,
  spec=_spec,
  problem=_problem,
  grids={
    "ladder": _ladder,
    "paper": _single,
    "monotone": _single,
    "square": _square,
    "small": families.chains(
      _parse, "1 2 4 8 16 4-8 8-16 16-32 2-4-4 4-8-8 8-16-16 16-32-32"
    ),
    "tiny": families.chains(_parse, "1 4 2-3"),
  },
  module="minarch_jax.models.cnn:CNN",
  compact="minarch_jax.pruning.compaction:chain",
  costs=families.Costs(
    compile_seconds=2.5,
    step_seconds=60e-6,
    flops=50e9,
    state_bytes_per_second=7e9,
    layer_bytes_per_second=4e9,
    probe=families.Probe("8-8", 1.3, 0.7e-3),
  ),
  layouts={
    "cpu": families.Layout("map", "map", "hybrid"),
    "other": families.Layout("vmap", "vmap", "im2col"),
  },
)
