"""ONNX: the network as a graph of operators, for any number of images.

The program is traced as JAX sees it, and each of its primitives becomes the
operators that `operators` lists. Parameters are initializers in the type that
they have; codes that fit into 4 bits take 4.
"""

import importlib
from typing import Any

import jax
from jax import export
from jax.extend import core
import numpy as np

from minarch_jax import leaves
from minarch_jax.engine.exports import operators
from minarch_jax.engine.exports.networks import Network
from minarch_jax.quantization import jaxprs

OPSET, IR = 21, 10  # the first that know integers of 4 bits


def content(network: Network) -> bytes:
  """Returns an ONNX model from "images" to "outputs".

  Raises:
    ImportError: onnx is missing.
    ValueError: the network needs to know the number of images, or an operation
      that is not listed.
  """
  onnx = _onnx()
  (batch,) = export.symbolic_shape("batch")
  numbers, run = network.split()
  params = [
    leaf.unpack() if leaves.is_qtensor(leaf) else leaf for leaf in numbers
  ]
  try:
    traced = jax.make_jaxpr(run)(params, network.images(batch))
  except Exception as error:
    raise ValueError(
      f"{network.name} cannot be exported for any number of images ({error}); "
      "make it independent of it"
    ) from error
  graph = operators.Graph(onnx, batch)
  inputs = [graph.parameter(np.asarray(p)) for p in jax.tree.leaves(params)]
  try:
    found = _run(graph, traced.jaxpr, traced.consts, [*inputs, "images"])
  except operators.Unknown as error:
    raise ValueError(f"{network.name} is no ONNX graph: {error}") from None
  graph.add("Identity", graph.name(found[0]), name="outputs")
  return _model(graph, traced.out_avals[0], network).SerializeToString()


def _onnx() -> Any:
  try:
    return importlib.import_module("onnx")
  except ImportError as error:
    raise ImportError(
      "the onnx library is not installed: pip install 'minarch-jax[export]'"
    ) from error


def _run(
  graph: operators.Graph, jaxpr: Any, consts: Any, inputs: list[Any]
) -> list[operators.Value]:
  """Adds a program to the graph; what is constant in it is computed now."""
  known: dict[Any, operators.Value] = {}

  def read(atom: Any) -> operators.Value:
    if isinstance(atom, core.Literal):
      aval: Any = atom.aval
      return np.asarray(atom.val, aval.dtype)
    return known[atom]

  known.update(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
  known.update(zip(jaxpr.invars, inputs, strict=True))
  for step in jaxpr.eqns:
    values = list(map(read, step.invars))
    if inner := jaxprs.called(step):
      found = _run(graph, *inner, values)
    elif _is_constant(step, values):
      found = step.primitive.bind(*values, **step.params)
      found = found if step.primitive.multiple_results else [found]
      found = list(map(np.asarray, found))
    else:
      found = operators.convert(graph, step, list(map(graph.name, values)))
    known.update(zip(step.outvars, found, strict=True))
  return list(map(read, jaxpr.outvars))


def _is_constant(step: Any, values: list[operators.Value]) -> bool:
  shapes = [n for out in step.outvars for n in out.aval.shape]
  named = any(isinstance(value, str) for value in values)
  return not named and all(isinstance(n, int) for n in shapes)


def _model(graph: operators.Graph, out: Any, network: Network) -> Any:
  """Names inputs and outputs, and checks the whole."""
  helper = graph.onnx.helper

  def value(name: str, dtype: Any, shape: Any) -> Any:
    dims = [n if isinstance(n, int) else str(n) for n in shape]
    return helper.make_tensor_value_info(name, graph.type(dtype), dims)

  images = network.images("batch")
  made = helper.make_graph(
    graph.nodes,
    "network",
    [value("images", images.dtype, images.shape)],
    [value("outputs", out.dtype, out.shape)],
    graph.initializers,
    doc_string=network.name,
  )
  model = helper.make_model(
    made,
    producer_name="minarch_jax",
    ir_version=IR,
    opset_imports=[helper.make_opsetid("", OPSET)],
  )
  graph.onnx.checker.check_model(model)
  return model
