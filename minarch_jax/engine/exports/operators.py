"""JAX's primitives in ONNX's operators: one table, and a graph that grows."""

from collections.abc import Callable, Sequence
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Value = str | np.ndarray  # a name in the graph, or a constant
_END = np.iinfo(np.int64).max


class Unknown(ValueError):
  """A primitive, or a use of one, that is not listed here."""


class Graph:
  """Nodes and initializers of a graph that is being built."""

  def __init__(self, onnx: Any, batch: Any):
    self.onnx, self.batch = onnx, batch
    self.nodes: list[Any] = []
    self.initializers: list[Any] = []
    self._made = 0
    self._stored: dict[tuple[Any, ...], str] = {}

  def _new(self) -> str:
    self._made += 1
    return f"v{self._made}"

  def type(self, dtype: Any) -> int:
    return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

  def add(
    self, operator: str, *inputs: str, name: str = "", **attributes: Any
  ) -> str:
    """Adds a node of one output and returns its name."""
    name = name or self._new()
    make = self.onnx.helper.make_node
    self.nodes.append(make(operator, inputs, [name], **attributes))
    return name

  def name(self, value: Value) -> str:
    """Names a value; a constant becomes an initializer."""
    if isinstance(value, str):
      return value
    return self._store(self.type(value.dtype), value.shape, value.tobytes())

  def _store(self, kind: int, shape: Sequence[int], data: bytes) -> str:
    """Adds an initializer, once for all that are equal."""
    key = (kind, *shape, data)
    if key not in self._stored:
      name = self._stored[key] = self._new()
      make = self.onnx.helper.make_tensor
      self.initializers.append(make(name, kind, shape, data, raw=True))
    return self._stored[key]

  def ints(self, *numbers: int) -> str:
    return self.name(np.array(numbers, np.int64))

  def like(self, number: float, step: Any) -> str:
    """Names a number in the type of a primitive's first input."""
    return self.name(np.array(number, step.invars[0].aval.dtype))

  def parameter(self, value: np.ndarray) -> str:
    """Stores a parameter; int8 codes that fit into 4 bits as two in a byte."""
    types = self.onnx.TensorProto
    fitting = [
      kind
      for kind, low in ((types.INT4, -8), (types.UINT4, 0))
      if value.min() >= low and value.max() <= low + 15
    ]
    if value.dtype != np.int8 or not fitting:
      return self.name(value)
    codes = value.reshape(-1).view(np.uint8) & 15
    codes = np.pad(codes, (0, codes.size % 2)).reshape(-1, 2)
    packed = (codes[:, 0] | codes[:, 1] << 4).astype(np.uint8)
    stored = self._store(fitting[0], value.shape, packed.tobytes())
    return self.add("Cast", stored, to=types.INT8)

  def reshape(self, x: str, shape: Sequence[Any]) -> str:
    """Reshapes to a shape of at most one size that depends on the images."""
    sizes = [n if isinstance(n, int) else -1 for n in shape]
    if sizes.count(-1) > 1:
      raise Unknown(f"a reshape to {tuple(shape)}")
    return self.add("Reshape", x, self.ints(*sizes))

  def expand(self, x: str, shape: Sequence[Any]) -> str:
    """Repeats axes of size 1."""
    if all(isinstance(n, int) for n in shape):
      return self.add("Expand", x, self.ints(*shape))
    parts = []
    for n in shape:
      if isinstance(n, int):
        parts.append(self.ints(n))
      elif n == self.batch:
        parts.append(self.add("Shape", "images", start=0, end=1))
      else:
        raise Unknown(f"a broadcast to {tuple(shape)}")
    return self.add("Expand", x, self.add("Concat", *parts, axis=0))

  def transpose(self, x: str, order: Sequence[int]) -> str:
    order = list(map(int, order))
    if order == sorted(order):
      return x
    return self.add("Transpose", x, perm=order)


Convert = Callable[[Graph, Any, list[str]], str]


def convert(graph: Graph, step: Any, inputs: list[str]) -> list[str]:
  """Adds what a primitive computes to the graph.

  Raises:
    Unknown: the primitive is not listed, or not in this use.
  """
  name = step.primitive.name
  if name == "split":
    return _split(graph, step, inputs)
  if name not in OPERATORS:
    raise Unknown(
      f"JAX's {name!r} has no operator in engine/exports/operators.py; export "
      "it as .stablehlo, which holds any program"
    )
  return [OPERATORS[name](graph, step, inputs)]


def _require(holds: bool, step: Any) -> None:
  if not holds:
    raise Unknown(f"{step.primitive.name} with {step.params}")


def _same(operator: str) -> Convert:
  return lambda graph, step, inputs: graph.add(operator, *inputs)


def _bool(operator: str) -> Convert:
  def logical(graph, step, inputs):
    _require(step.invars[0].aval.dtype == bool, step)
    return graph.add(operator, *inputs)

  return logical


def _reshaped(graph: Graph, step: Any, inputs: list[str]) -> str:
  turned = step.primitive.name == "reshape" and step.params["dimensions"]
  _require(not turned, step)
  return graph.reshape(inputs[0], step.outvars[0].aval.shape)


def _broadcast(graph: Graph, step: Any, inputs: list[str]) -> str:
  shape, before = step.params["shape"], step.invars[0].aval.shape
  aligned: list[Any] = [1] * len(shape)
  for axis, n in zip(step.params["broadcast_dimensions"], before, strict=True):
    aligned[axis] = n
  x = inputs[0]
  if tuple(aligned) != tuple(before):
    x = graph.reshape(x, aligned)
  return x if tuple(aligned) == tuple(shape) else graph.expand(x, shape)


def _power(graph: Graph, step: Any, inputs: list[str]) -> str:
  if step.params["y"] == 2:
    return graph.add("Mul", inputs[0], inputs[0])
  return graph.add("Pow", inputs[0], graph.like(step.params["y"], step))


def _round(graph: Graph, step: Any, inputs: list[str]) -> str:
  even = jax.lax.RoundingMethod.TO_NEAREST_EVEN
  _require(step.params["rounding_method"] == even, step)
  return graph.add("Round", *inputs)


def _select(graph: Graph, step: Any, inputs: list[str]) -> str:
  _require(len(inputs) == 3 and step.invars[0].aval.dtype == bool, step)
  which, no, yes = inputs
  return graph.add("Where", which, yes, no)


def _reduce(operator: str) -> Convert:
  def reduce(graph, step, inputs):
    axes = graph.ints(*step.params["axes"])
    return graph.add(operator, *inputs, axes, keepdims=0)

  return reduce


def _dot(graph: Graph, step: Any, inputs: list[str]) -> str:
  (left, right), (left_batch, right_batch) = step.params["dimension_numbers"]
  a, b = (len(each.aval.shape) for each in step.invars)
  if (left, right, b) == ((a - 1,), (0,), 2) and not left_batch:
    return graph.add("MatMul", *inputs)
  letters = list(string.ascii_lowercase[: a + b])
  first, second = letters[:a], letters[a:]
  for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
    second[j] = first[i]
  out = [first[i] for i in left_batch]
  out += [first[i] for i in range(a) if i not in (*left, *left_batch)]
  out += [second[j] for j in range(b) if j not in (*right, *right_batch)]
  text = f"{''.join(first)},{''.join(second)}->{''.join(out)}"
  return graph.add("Einsum", *inputs, equation=text)


def _convolution(graph: Graph, step: Any, inputs: list[str]) -> str:
  p = step.params
  plain = set(p["lhs_dilation"]) <= {1} and p["batch_group_count"] == 1
  _require(plain, step)
  images, kernel, out = p["dimension_numbers"]
  pads = [side for sides in zip(*p["padding"], strict=True) for side in sides]
  y = graph.add(
    "Conv",
    graph.transpose(inputs[0], images),
    graph.transpose(inputs[1], kernel),
    strides=list(p["window_strides"]),
    dilations=list(p["rhs_dilation"]),
    pads=list(map(int, pads)),
    group=p["feature_group_count"],
  )
  return graph.transpose(y, np.argsort(out).tolist())


def _pool(operator: str) -> Convert:
  """Windows over all axes but two, images and channels."""

  def pool(graph, step, inputs):
    p = step.params
    window = p["window_dimensions"]
    single = [axis for axis, n in enumerate(window) if n == 1]
    dilated = {*p["base_dilation"], *p["window_dilation"]} != {1}
    _require(len(single) >= 2 and not dilated, step)
    single = [single[0], single[-1]]
    spatial = [axis for axis in range(len(window)) if axis not in single]
    _require(
      all(p["window_strides"][axis] == 1 for axis in single)
      and all(p["padding"][axis] == (0, 0) for axis in single),
      step,
    )
    order = single + spatial
    pads = [p["padding"][axis][side] for side in (0, 1) for axis in spatial]
    more = {"count_include_pad": 1} if operator == "AveragePool" else {}
    y = graph.add(
      operator,
      graph.transpose(inputs[0], order),
      kernel_shape=[window[axis] for axis in spatial],
      strides=[p["window_strides"][axis] for axis in spatial],
      pads=pads,
      **more,
    )
    if operator == "AveragePool":  # of sums
      y = graph.add("Mul", y, graph.like(np.prod(window), step))
    return graph.transpose(y, np.argsort(order).tolist())

  return pool


def _gather(graph: Graph, step: Any, inputs: list[str]) -> str:
  """Takes whole slices along one axis."""
  p, x, indices = step.params, step.invars[0].aval, step.invars[1].aval
  numbers = p["dimension_numbers"]
  axes, taken = numbers.collapsed_slice_dims, len(indices.shape) - 1
  in_bounds = p["mode"] == jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
  _require(len(axes) == 1 and axes == numbers.start_index_map, step)
  (axis,) = axes
  whole = [n for i, n in enumerate(x.shape) if i != axis]
  sliced = [n for i, n in enumerate(p["slice_sizes"]) if i != axis]
  place = [i if i < axis else i + taken - 1 for i in range(len(x.shape))]
  place = tuple(n for i, n in enumerate(place) if i != axis)
  _require(in_bounds and whole == sliced, step)
  _require(numbers.offset_dims == place and indices.shape[-1] == 1, step)
  chosen = graph.reshape(inputs[1], indices.shape[:-1])
  return graph.add("Gather", inputs[0], chosen, axis=axis)


def _slice(graph: Graph, step: Any, inputs: list[str]) -> str:
  p, rank = step.params, len(step.invars[0].aval.shape)
  pairs = zip(p["limit_indices"], step.invars[0].aval.shape, strict=True)
  known = all(isinstance(n, int) or n == size for n, size in pairs)
  _require(known and all(isinstance(n, int) for n in p["start_indices"]), step)
  ends = [n if isinstance(n, int) else _END for n in p["limit_indices"]]
  return graph.add(
    "Slice",
    inputs[0],
    graph.ints(*p["start_indices"]),
    graph.ints(*ends),
    graph.ints(*range(rank)),
    graph.ints(*(p["strides"] or [1] * rank)),
  )


def _pad(graph: Graph, step: Any, inputs: list[str]) -> str:
  edges = step.params["padding_config"]
  _require(
    all(min(low, high) >= 0 == inner for low, high, inner in edges), step
  )
  pads = [edge[side] for side in (0, 1) for edge in edges]
  if not any(pads):
    return inputs[0]
  dtype = step.invars[0].aval.dtype
  if dtype.itemsize > 1 or not jnp.issubdtype(dtype, jnp.floating):
    return graph.add("Pad", inputs[0], graph.ints(*pads), inputs[1])
  # Runtimes convert floats of 8 bits and do nothing else with them.
  single = graph.type(np.float32)
  x, value = (graph.add("Cast", each, to=single) for each in inputs)
  x = graph.add("Pad", x, graph.ints(*pads), value)
  return graph.add("Cast", x, to=graph.type(dtype))


def _split(graph: Graph, step: Any, inputs: list[str]) -> list[str]:
  axis, start, parts = step.params["axis"], 0, []
  for size in step.params["sizes"]:
    span = graph.ints(start), graph.ints(start + size), graph.ints(axis)
    parts.append(graph.add("Slice", inputs[0], *span))
    start += size
  return parts


def _cast(graph: Graph, step: Any, inputs: list[str]) -> str:
  to = graph.type(step.outvars[0].aval.dtype)
  return graph.add("Cast", inputs[0], to=to)


def _identity(graph: Graph, step: Any, inputs: list[str]) -> str:
  return inputs[0]


OPERATORS: dict[str, Convert] = {
  "abs": _same("Abs"),
  "add": _same("Add"),
  "add_any": _same("Add"),
  "and": _bool("And"),
  "broadcast_in_dim": _broadcast,
  "ceil": _same("Ceil"),
  "clamp": lambda graph, step, inputs: graph.add(
    "Min", graph.add("Max", inputs[1], inputs[0]), inputs[2]
  ),
  "concatenate": lambda graph, step, inputs: graph.add(
    "Concat", *inputs, axis=step.params["dimension"]
  ),
  "conv_general_dilated": _convolution,
  "convert_element_type": _cast,
  "copy": _identity,
  "cos": _same("Cos"),
  "div": _same("Div"),
  "dot_general": _dot,
  "eq": _same("Equal"),
  "erf": _same("Erf"),
  "erfc": lambda graph, step, inputs: graph.add(
    "Sub", graph.like(1, step), graph.add("Erf", *inputs)
  ),
  "exp": _same("Exp"),
  "expm1": lambda graph, step, inputs: graph.add(
    "Sub", graph.add("Exp", *inputs), graph.like(1, step)
  ),
  "floor": _same("Floor"),
  "gather": _gather,
  "ge": _same("GreaterOrEqual"),
  "gt": _same("Greater"),
  "integer_pow": _power,
  "le": _same("LessOrEqual"),
  "log": _same("Log"),
  "log1p": lambda graph, step, inputs: graph.add(
    "Log", graph.add("Add", *inputs, graph.like(1, step))
  ),
  "logistic": _same("Sigmoid"),
  "lt": _same("Less"),
  "max": _same("Max"),
  "min": _same("Min"),
  "mul": _same("Mul"),
  "ne": lambda graph, step, inputs: graph.add(
    "Not", graph.add("Equal", *inputs)
  ),
  "neg": _same("Neg"),
  "not": _bool("Not"),
  "or": _bool("Or"),
  "pad": _pad,
  "pow": _same("Pow"),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
  "reshape": _reshaped,
  "round": _round,
  "rsqrt": lambda graph, step, inputs: graph.add(
    "Reciprocal", graph.add("Sqrt", *inputs)
  ),
  "select_n": _select,
  "sign": _same("Sign"),
  "sin": _same("Sin"),
  "slice": _slice,
  "sqrt": _same("Sqrt"),
  "square": lambda graph, step, inputs: graph.add("Mul", *inputs, *inputs),
  "squeeze": _reshaped,
  "stop_gradient": _identity,
  "sub": _same("Sub"),
  "tanh": _same("Tanh"),
  "transpose": lambda graph, step, inputs: graph.transpose(
    inputs[0], step.params["permutation"]
  ),
}
