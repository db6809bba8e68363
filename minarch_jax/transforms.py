"""Transforms of parameters: functions from one tree to another, chained."""

from minarch_jax.types import Params, Transform


def identity(params: Params) -> Params:
  """Returns the parameters as they are: dense, 32 bits."""
  return params


def chain(*transforms: Transform) -> Transform:
  """Makes one transform that applies the given ones from left to right.

  `chain()` is the identity, and chaining is associative. The result maps over
  seeds with `jax.vmap` when its parts do.

  Raises:
    ValueError: an argument is not a function.
  """
  for transform in transforms:
    if not callable(transform):
      raise ValueError(
        f"chain takes functions from params to params, not {transform!r}; "
        "bind other arguments first, for example with functools.partial"
      )

  def chained(params: Params) -> Params:
    for transform in transforms:
      params = transform(params)
    return params

  return chained
