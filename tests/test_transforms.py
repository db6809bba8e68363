"""Chains of transforms: identity, order, associativity, mapping."""

import jax
import numpy as np
import pytest

from minarch_jax import pruning, transforms

PARAMS = {"kernel": np.arange(6, dtype=np.float32)}


def double(params):
  return jax.tree.map(lambda leaf: leaf * 2, params)


def plus_one(params):
  return jax.tree.map(lambda leaf: leaf + 1, params)


def test_an_empty_chain_is_the_identity():
  assert transforms.chain()(PARAMS) is PARAMS
  assert transforms.identity(PARAMS) is PARAMS


def test_transforms_apply_from_left_to_right():
  out = transforms.chain(double, plus_one)(PARAMS)
  np.testing.assert_array_equal(out["kernel"], PARAMS["kernel"] * 2 + 1)


def test_chaining_is_associative():
  left = transforms.chain(transforms.chain(double, plus_one), double)
  right = transforms.chain(double, transforms.chain(plus_one, double))
  np.testing.assert_array_equal(left(PARAMS)["kernel"], right(PARAMS)["kernel"])


def test_a_chain_maps_over_seeds():
  def half(params):
    return pruning.apply_masks(params, pruning.prune(params, 0.5))

  chained = transforms.chain(half, double)
  stacked = {"kernel": np.stack([PARAMS["kernel"], -PARAMS["kernel"][::-1]])}
  out = jax.jit(jax.vmap(chained))(stacked)["kernel"]
  np.testing.assert_array_equal(out[0], [0, 0, 0, 6, 8, 10])
  np.testing.assert_array_equal(out[1], [-10, -8, -6, 0, 0, 0])


def test_what_is_no_function_is_named():
  with pytest.raises(ValueError, match="not 0.5; bind"):
    transforms.chain(double, 0.5)
