"""A network that was checked, as the formats get it."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

from flax import linen
import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves, models, quantization
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.types import Params

Apply = Callable[[Params, Any], Any]  # (params, images) -> outputs
Shape = tuple[int, ...]  # of one image


class Network(NamedTuple):
  """One network, and how it is run.

  Attributes:
    apply: of real parameters and images.
    params: with QTensor leaves where it is quantized.
    input_shape: of one image.
    name: the architecture or function, and the images.
  """

  apply: Apply
  params: Params
  input_shape: Shape
  name: str

  def run(self, params: Params, x: Any) -> Any:
    """Runs it on parameters like its own, quantized or not."""
    return self.apply(quantization.dequantize(params), x)

  def split(self) -> tuple[list[Any], Callable[[list[Any], Any], Any]]:
    """Returns the leaves that hold numbers, and `run` as a function of them."""
    numbers, whole = leaves.split(self.params)
    return numbers, lambda numbers, x: self.run(whole(numbers), x)

  def images(self, batch: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *self.input_shape), jnp.float32)


def make_network(network: Any, params: Params, input_shape: Shape) -> Network:
  """Checks that a network runs on parameters and images of a shape.

  Raises:
    ValueError: it does not; see `export`.
  """
  shape = tuple(input_shape)
  if isinstance(network, str):
    network = Architecture.parse(network)
  if isinstance(network, Architecture):
    apply, name = _apply_of(network, params, shape), str(network)
  elif isinstance(network, linen.Module):
    apply = functools.partial(_apply_module, network)
    name = type(network).__name__
  elif callable(network):
    apply, name = network, getattr(network, "__name__", "function")
  else:
    raise ValueError(
      f"network {network!r} is none that can be run; give an architecture, a "
      "Flax module or a function apply(params, images)"
    )
  name = f"{name} on images {'x'.join(map(str, shape))}"
  found = Network(apply, params, shape, name)
  _check(found)
  return found


def _apply_module(module: linen.Module, params: Params, x: Any) -> Any:
  return module.apply({"params": params}, x)


def _apply_of(
  architecture: Architecture, params: Params, shape: Shape
) -> Apply:
  """Returns the function of an architecture, for parameters that fit it."""
  if len(shape) != 3:
    raise ValueError(
      f"input_shape {shape} of {architecture} is not (height, width, channels)"
    )
  flat = dict(leaves.named(params))
  classes = (_shape(flat.get(("output", "bias"))) or (0,))[-1]
  problem = Problem(shape, classes)
  spec = architecture.spec(problem)
  for leaf in spec.leaves:
    found = _shape(flat.get(leaf.path))
    if found != spec.shape(leaf):
      raise ValueError(
        f"leaf {leaf.name!r} has shape {found}; {architecture} on images "
        f"{shape} has {spec.shape(leaf)}; give one network, without a seed "
        "axis, and the architecture that ma.compact returned if it did"
      )
  # Other forms choose by the number of images, which an export leaves open.
  model = models.make_model(architecture, problem, convolution="stock")
  own: Any = None  # the architecture's own sizes
  return lambda params, x: model.apply(params, x, own)


def _shape(leaf: Any) -> Shape | None:
  return None if leaf is None else tuple(getattr(leaf, "shape", np.shape(leaf)))


def _check(network: Network) -> None:
  """Raises ValueError unless a network makes a row of numbers of each image."""
  numbers = [
    leaf for _, leaf in leaves.named(network.params) if leaves.is_array(leaf)
  ]
  if any(isinstance(leaf, core.Tracer) for leaf in numbers):
    raise ValueError(
      f"{network.name}: its parameters are traced; export outside jit and vmap"
    )
  try:
    numbers, run = network.split()
    found = jax.eval_shape(run, numbers, network.images(2))
  except Exception as error:
    raise ValueError(
      f"{network.name} cannot be run on these parameters ({error}); give what "
      "apply(params, images) takes, for one network, without a seed axis"
    ) from error
  shape = getattr(found, "shape", ())
  if shape[:1] != (2,) or not math.prod(shape):
    raise ValueError(
      f"{network.name} gives {found} for two images, not one array with a row "
      "for each; wrap it in a function that does"
    )
