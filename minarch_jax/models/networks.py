"""Makes the pure `init` and `apply` of an architecture."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax import random
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.models import layers, parameters
from minarch_jax.types import Array, Model, Params, Sizes, Tap


def make_model(
  architecture: Architecture,
  problem: Problem,
  *,
  compute_dtype: Any = None,
  convolution: str = "hybrid",
  init: str = parameters.HE,
) -> Model:
  """Turns an architecture into a pure `init`/`apply` pair.

  Args:
    architecture: the network, or the parent of those it will hold.
    problem: ((height, width, channels) of one image, number of classes).
    compute_dtype: type of activations and products; None = the parameters'
      own (float32, or float64 under `jax.enable_x64`). Logits are always in
      the parameters' type.
    convolution: formulation, a name of `registries.CONVOLUTIONS`.
    init: law of initial values, a name of `registries.INITS`.

  Returns:
    Model. `sizes` may be None for the architecture itself.

  Raises:
    ValueError: the architecture does not fit the images.
  """
  problem = Problem(*problem)
  spec = architecture.spec(problem)
  module = architecture.traits.network(
    architecture, problem, compute_dtype, convolution
  )
  full = {axis: spec.sizes[axis] for axis in spec.unit_axes}

  def start(key: jax.Array, sizes: Sizes | None = None) -> Params:
    return _init(key, sizes or full, architecture, problem, init)

  def apply(
    params: Params,
    x: Array,
    sizes: Sizes | None = None,
    tap: Tap = layers.no_tap,
  ) -> jax.Array:
    dtype = compute_dtype or jnp.result_type(float)
    logits = module.clone(tap=tap).apply(
      {"params": params}, jnp.asarray(x, dtype), sizes or full
    )
    return jnp.asarray(logits, jnp.result_type(float))

  return Model(start, apply)


# Compiled whole: in a notebook one operation after the other takes seconds.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _init(
  key: jax.Array,
  sizes: Sizes,
  architecture: Architecture,
  problem: Problem,
  init: str,
) -> Params:
  spec = architecture.spec(problem)
  leaves = parameters.random_leaves(spec, init)
  # All leaves in one call: a generator each would dominate compilation.
  values = random.normals(key, leaves)
  draws = dict(zip((path for path, _ in leaves), values, strict=True))
  return parameters.initial(draws, spec, sizes, init)


def on_unit_rows(model: Model, architecture: Architecture) -> Model:
  """Returns the model of parameters kept as `unit_rows` lays them out."""
  kernel = architecture.traits.image_kernel

  def apply(params, *arguments, **options):
    params = parameters.unit_rows(params, kernel)
    return model.apply(params, *arguments, **options)

  return model._replace(apply=apply)
