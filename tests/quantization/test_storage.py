"""Bits, bytes and files: packed exactly, counted exactly, read back exactly."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import quantization
from minarch_jax.quantization import packing, storage
from minarch_jax.quantization.networks import files

FORMATS = list(quantization.FORMATS)
WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32]


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_round_trip(bits):
  """Equal to numpy's bit order, of the formula's length, jitted and eager."""
  raw = np.random.default_rng(bits).integers(0, 2**bits, 77, np.uint64)
  raw = raw.astype(packing.raw_dtype(bits))
  packed = jax.jit(packing.pack, static_argnums=1)(raw, bits)
  digits = np.unpackbits(
    raw.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little"
  )
  expected = np.packbits(digits[:, :bits].reshape(-1), bitorder="little")
  np.testing.assert_array_equal(packed, expected)
  assert packed.size == packing.num_bytes(77, bits) == -(-77 * bits // 8)
  unpack = jax.jit(packing.unpack, static_argnums=(1, 2))
  back = unpack(packed, bits, 77)
  assert back.dtype == raw.dtype
  np.testing.assert_array_equal(back, raw)


def test_packing_rejects():
  with pytest.raises(ValueError, match="bits 9 cannot be packed"):
    packing.pack(jnp.zeros(3, jnp.uint8), 9)
  with pytest.raises(ValueError, match="take 3 bytes"):
    packing.unpack(jnp.zeros(2, jnp.uint8), 4, 5)


def model(sparsity):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(2, 9, 5)).astype(np.float32)
  kernel[rng.random(kernel.shape) < sparsity] = 0
  return {
    "block": {"out": {"kernel": kernel, "bias": np.arange(5.0, dtype="f4")}},
    "norm": {"scale": np.ones(3, np.float32)},
  }


@pytest.mark.parametrize(
  "name, granularity, sparsity",
  [(name, "group:4", 0.9) for name in FORMATS]
  + [(name, "channel", 0.0) for name in ("float32", "uint5", "binary")],
)
def test_file_round_trip(tmp_path, name, granularity, sparsity):
  """The same tree bit for bit; payload as counted; the rest is the header."""
  params = model(sparsity)
  quantized = quantization.quantize(params, name, granularity)
  path = os.path.join(tmp_path, "model.safetensors")
  payload = files.save(path, quantized, note="dnn:5")
  back = files.load(path)
  assert jax.tree.structure(back) == jax.tree.structure(quantized)
  for a, b in zip(
    jax.tree.leaves(back), jax.tree.leaves(quantized), strict=True
  ):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  nonzeros = storage.count_nonzeros(quantization.dequantize(quantized))
  counted = storage.storage_bytes(params, name, granularity, nonzeros=nonzeros)
  assert payload == counted
  with open(path, "rb") as file:
    header = int.from_bytes(file.read(8), "little")
    content = json.loads(file.read(header))
  assert os.path.getsize(path) == 8 + header + payload
  assert content["__metadata__"]["note"] == "dnn:5"
  assert os.listdir(tmp_path) == ["model.safetensors"]


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


def test_readable_by_safetensors(tmp_path):
  """The container is real: the public reader sees the plain tensors."""
  safetensors = pytest.importorskip("safetensors.numpy")
  path = os.path.join(tmp_path, "model.safetensors")
  files.save(path, quantization.quantize(model(0.5), 4))
  tensors = safetensors.load_file(path)
  np.testing.assert_array_equal(tensors["norm/scale"], np.ones(3))
  assert tensors["block/out/kernel:codes"].dtype == np.uint8


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
  path = os.path.join(tmp_path, "model.safetensors")
  files.save(path, model(0.0))

  def full_disk(file):
    raise OSError("no space left")

  monkeypatch.setattr(os, "fsync", full_disk)
  with pytest.raises(OSError, match="no space"):
    files.save(path, quantization.quantize(model(0.0), 2))
  assert os.listdir(tmp_path) == ["model.safetensors"]
  np.testing.assert_array_equal(
    files.load(path)["block"]["out"]["kernel"],
    model(0.0)["block"]["out"]["kernel"],
  )


def test_broken_files_are_refused(tmp_path):
  path = os.path.join(tmp_path, "model.safetensors")
  files.save(path, quantization.quantize(model(0.0), 4))
  with open(path, "rb") as file:
    data = file.read()
  for broken in (data[:-1], data[:40], b"", b"{}", data + b"x"):
    with open(path, "wb") as file:
      file.write(broken)
    with pytest.raises(ValueError, match="not a whole model file"):
      files.load(path)


def test_unstorable_leaves(tmp_path):
  path = os.path.join(tmp_path, "model.safetensors")
  with pytest.raises(ValueError, match="a/b"):
    files.save(path, {"a/b": {"kernel": np.ones((2, 2), np.float32)}})
  with pytest.raises(ValueError, match="kernel: cannot store float64"):
    files.save(path, {"kernel": np.ones((2, 2))})
