"""Bytes: one formula, by hand, for one network and for a grid of them."""

import jax
import numpy as np
import pytest

from minarch_jax import architectures, quantization
from minarch_jax.architectures import Problem
from minarch_jax.quantization import formats, storage


def model(sparsity):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(2, 9, 5)).astype(np.float32)
  kernel[rng.random(kernel.shape) < sparsity] = 0
  return {
    "block": {"out": {"kernel": kernel, "bias": np.arange(5.0, dtype="f4")}},
    "norm": {"scale": np.ones(3, np.float32)},
  }


def test_bytes_by_hand():
  """90 weights for 5 outputs, 5 biases and 3 norm scales of 4 bytes."""
  params = model(0.0)
  shapes = jax.eval_shape(lambda: params)
  rest = 4 * (5 + 3)

  def count(*args, **options):
    return storage.storage_bytes(shapes, *args, **options) - rest

  assert count(32) == 360
  assert count("bfloat16") == 180
  assert count(8) == 90 + 5 * 4
  assert count(8, "tensor") == 90 + 4
  assert count("uint4") == 45 + 5 * 5
  assert count(3) == 34 + 5 * 4  # 270 bits
  assert count(4, "group:4") == 45 + 2 * 3 * 5 * 4  # 3 groups in each head
  kernel = "block/out/kernel"
  # Bitmap of 12 bytes and 9 codes of 8 bits.
  assert count(8, nonzeros={kernel: 9}) == 12 + 9 + 20
  assert count(32, nonzeros={kernel: 9}) == 12 + 36
  # Dense where a bitmap takes more; binary has no 0 and must take it.
  assert count(2, nonzeros={kernel: 89}) == 23 + 20
  assert count(1, nonzeros={kernel: 89}) == 12 + 12 + 20
  assert count({kernel: 8}) == count(8)


def test_a_matrix_by_hand():
  leaf = (("kernel",), (784, 300))

  def count(format, nonzeros, bits=None):
    return storage.weight_bytes(leaf, format, "channel", nonzeros, bits)

  assert count(formats.FLOAT32, None) == 940_800
  assert count(formats.FLOAT32, 23_520) == 29_400 + 94_080
  assert count(formats.INT8, 23_520) == 29_400 + 23_520 + 1_200
  assert count(formats.INT8, 23_520, 3) == 29_400 + 8_820 + 1_200
  assert count(formats.INT8, 23_520, 32) == 29_400 + 94_080


@pytest.mark.parametrize("text", ["dnn:6-5", "cnn:4-2", "vit:p4-d4-l1-h2-cls"])
def test_a_dense_network_takes_four_bytes_for_each_parameter(text):
  spec = architectures.Architecture.parse(text).spec(Problem((8, 8, 1), 10))
  leaves = [(leaf.path, spec.shape(leaf)) for leaf in spec.leaves]
  full = np.array([[np.prod(shape) for _, shape in leaves]])
  found = storage.grid_bytes(
    leaves, full, np.array([32]), [quantization.Rounding()]
  )
  assert found.tolist() == [4 * spec.num_params]


@pytest.mark.parametrize("name", quantization.FORMATS)
def test_bytes_fall_with_the_count_and_the_bits(name):
  """Arrays of counts are counted as one after the other."""
  leaf, format = (("kernel",), (10, 10)), formats.FORMATS[name]
  counts = np.arange(101)
  sizes = storage.weight_bytes(leaf, format, "tensor", counts)
  alone = [storage.weight_bytes(leaf, format, "tensor", int(k)) for k in counts]
  np.testing.assert_array_equal(sizes, alone)
  rising = counts[:-1] if name == "binary" else counts  # full needs no bitmap
  assert np.all(np.diff(sizes[rising]) >= 0)
  for bits in range(2, 8):
    fewer, more = (
      storage.weight_bytes(leaf, format, "tensor", counts, b)
      for b in (bits, bits + 1)
    )
    assert np.all(fewer <= more)
  stacked = storage.storage_bytes(
    {"kernel": np.ones((10, 10))}, name, "tensor", nonzeros={"kernel": counts}
  )
  np.testing.assert_array_equal(stacked, sizes)
