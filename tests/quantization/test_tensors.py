"""One quantized tensor: its shape, its numbers, packed and exported."""

import math

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import quantization
from minarch_jax.quantization import formats, packing

SHAPE = (7, 2, 3)
PACKED = [
  name
  for name, format in quantization.FORMATS.items()
  if format.bits < 8 and format.packs_zero
]


def draw(*lead):
  kernel = np.random.default_rng(0).normal(size=(*lead, *SHAPE))
  return {"query": {"kernel": kernel.astype(np.float32)}}


def quantize(name, granularity="channel", packed=False):
  tree = quantization.quantize(draw(), name, granularity, packed=packed)
  return tree["query"]["kernel"]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_is_the_same_in_fewer_bytes(name, granularity):
  plain, packed = quantize(name, granularity), quantize(name, granularity, True)
  bits, size = formats.FORMATS[name].bits, math.prod(SHAPE)
  assert packed.values.dtype == np.uint8
  assert packed.values.nbytes == packing.num_bytes(size, bits)
  assert plain.shape == packed.shape == SHAPE
  np.testing.assert_array_equal(packed.dequantize(), plain.dequantize())
  back = packed.unpack()
  assert jax.tree.structure(back) == jax.tree.structure(plain)
  np.testing.assert_array_equal(back.values, plain.values)
  assert packed.pack() is packed and plain.unpack() is plain


def test_four_bits_are_half_a_byte():
  big = {"kernel": np.ones((100, 20), np.float32)}
  packed = quantization.quantize(big, 4, packed=True)["kernel"]
  assert packed.values.nbytes == 1000


@pytest.mark.parametrize("name", ["int8", "float8_e4m3", "bfloat16", "binary"])
def test_what_gains_nothing_or_has_no_zero_stays_as_it_is(name):
  plain = quantize(name)
  assert plain.pack() is plain
  assert quantize(name, packed=True).packed is None


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_come_in_the_type_asked_for(packed):
  """Rounded once, not by way of the original's type."""
  kernel = jnp.asarray(draw()["query"]["kernel"], jnp.bfloat16)
  tree = quantization.quantize({"query": {"kernel": kernel}}, 6, packed=packed)
  q = tree["query"]["kernel"]
  assert q.dequantize().dtype == jnp.bfloat16
  wide = q.dequantize(jnp.float32)
  assert wide.dtype == jnp.float32
  assert np.any(np.asarray(wide) != wide.astype(jnp.bfloat16))
  np.testing.assert_array_equal(q.dequantize(), wide.astype(jnp.bfloat16))


def test_packed_maps_over_seeds():
  stack = jax.vmap(lambda p: quantization.quantize(p, 3, packed=True))(draw(5))
  q = stack["query"]["kernel"]
  assert q.shape == (5, *SHAPE)
  assert q.values.shape == (5, packing.num_bytes(math.prod(SHAPE), 3))
  found = jax.vmap(quantization.dequantize)(stack)["query"]["kernel"]
  plain = jax.vmap(lambda p: quantization.fake_quantize(p, 3))(draw(5))
  np.testing.assert_array_equal(found, plain["query"]["kernel"])
  for call in (q.dequantize, lambda: quantization.dequantize(stack)):
    with pytest.raises(ValueError, match="use jax.vmap"):
      call()
  plain = jax.vmap(lambda p: quantization.quantize(p, 3))(draw(5))
  with pytest.raises(ValueError, match="use jax.vmap"):
    plain["query"]["kernel"].pack()


@pytest.mark.parametrize("packed", [False, True])
def test_a_function_of_quantized_parameters_is_exported(packed):
  pytest.importorskip("flatbuffers")
  tree = quantization.quantize(draw(), "uint4", "group:3", packed=packed)
  program = jax.jit(lambda t, x: x @ t["query"]["kernel"].dequantize()[:, 0])
  x = np.ones((2, 7), np.float32)
  data = export.export(program)(tree, x).serialize()
  back = export.deserialize(data)
  assert back.in_tree == jax.tree.structure(((tree, x), {}))
  np.testing.assert_array_equal(back.call(tree, x), program(tree, x))
