"""Files: of the bytes counted, read back exactly, whole or not at all."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import quantization
from minarch_jax.quantization import storage
from minarch_jax.quantization.networks import files

FORMATS = list(quantization.FORMATS)


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
  payload = files.save_model(path, quantized, note="dnn:5")
  back = files.load_model(path)
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


def test_a_stored_weight_knows_the_type_it_had(tmp_path):
  kernel = jnp.asarray(model(0.5)["block"]["out"]["kernel"], jnp.bfloat16)
  quantized = quantization.quantize({"out": {"kernel": kernel}}, 4)
  path = os.path.join(tmp_path, "model.safetensors")
  files.save_model(path, quantized)
  back = quantization.dequantize(files.load_model(path))["out"]["kernel"]
  assert back.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    back, quantization.dequantize(quantized)["out"]["kernel"]
  )


def test_readable_by_safetensors(tmp_path):
  """The container is real: the public reader sees the plain tensors."""
  safetensors = pytest.importorskip("safetensors.numpy")
  path = os.path.join(tmp_path, "model.safetensors")
  files.save_model(path, quantization.quantize(model(0.5), 4))
  tensors = safetensors.load_file(path)
  np.testing.assert_array_equal(tensors["norm/scale"], np.ones(3))
  assert tensors["block/out/kernel:codes"].dtype == np.uint8


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
  path = os.path.join(tmp_path, "model.safetensors")
  files.save_model(path, model(0.0))

  def full_disk(file):
    raise OSError("no space left")

  monkeypatch.setattr(os, "fsync", full_disk)
  with pytest.raises(OSError, match="no space"):
    files.save_model(path, quantization.quantize(model(0.0), 2))
  assert os.listdir(tmp_path) == ["model.safetensors"]
  np.testing.assert_array_equal(
    files.load_model(path)["block"]["out"]["kernel"],
    model(0.0)["block"]["out"]["kernel"],
  )


def test_broken_files_are_refused(tmp_path):
  path = os.path.join(tmp_path, "model.safetensors")
  files.save_model(path, quantization.quantize(model(0.0), 4))
  with open(path, "rb") as file:
    data = file.read()
  for broken in (data[:-1], data[:40], b"", b"{}", data + b"x"):
    with open(path, "wb") as file:
      file.write(broken)
    with pytest.raises(ValueError, match="not a whole model file"):
      files.load_model(path)


def store(path, **metadata):
  """Writes a small model as 0.1.0 did, with metadata of somebody."""
  header, payload = files.content(quantization.quantize(model(0.0), "nf4"))
  header = json.loads(header[8:])
  header["__metadata__"] |= {"kind": "minarch_jax.quantization.1", **metadata}
  for name in {"sha256", "formats"} - metadata.keys():
    del header["__metadata__"][name]
  text = json.dumps(header).encode()
  with open(path, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text + payload)


def test_every_changed_byte_is_noticed(tmp_path):
  path = os.path.join(tmp_path, "model.safetensors")
  files.save_model(path, quantization.quantize(model(0.5), 4), note="dnn:5")
  with open(path, "rb") as file:
    data = file.read()
  padding = len(data) - len(data.rstrip())
  for i in range(8, len(data) - padding, 7):
    changed = bytearray(data)
    changed[i] ^= 1
    with open(path, "wb") as file:
      file.write(changed)
    with pytest.raises(ValueError, match="model.safetensors is not a whole"):
      files.load_model(path)


def test_files_without_a_hash_are_read(tmp_path):
  """As 0.1.0 wrote them."""
  path = os.path.join(tmp_path, "model.safetensors")
  store(path)
  found = files.load_model(path)
  expected = quantization.quantize(model(0.0), "nf4")
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_files_of_others_are_refused(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  path = os.path.join(tmp_path, "other.safetensors")
  safetensors.save_file({"kernel": np.ones((2, 2), np.float32)}, path)
  with pytest.raises(ValueError, match="other.safetensors is not .* ma.export"):
    files.load_model(path)


@pytest.mark.parametrize(
  "name, message",
  [("nf4", "'nf4' of other levels"), ("nf5", "'nf5', .* did you mean 'nf4'")],
)
def test_a_format_that_is_another_here_is_named(tmp_path, name, message):
  path = os.path.join(tmp_path, "model.safetensors")
  levels = {"bits": 4, "levels": list(range(16))}
  store(path, formats=json.dumps({name: levels}))
  with pytest.raises(ValueError, match=message):
    files.load_model(path)


@pytest.mark.parametrize("name", ["int3", "nf4", "binary", "uint6"])
def test_packed_codes_are_stored_as_others_are(tmp_path, name):
  path = os.path.join(tmp_path, "model.safetensors")
  stored = []
  for packed in (False, True):
    quantized = quantization.quantize(model(0.5), name, packed=packed)
    files.save_model(path, quantized)
    with open(path, "rb") as file:
      stored.append(file.read())
  assert stored[0] == stored[1]


def test_unstorable_leaves(tmp_path):
  path = os.path.join(tmp_path, "model.safetensors")
  one = np.ones((2, 2), np.float32)
  for tree in ({"a:b": one}, {"a/b": one, "a": {"b": one}}):
    with pytest.raises(ValueError, match="a.b': a name with ':', or of two"):
      files.save_model(path, tree)
  with pytest.raises(ValueError, match="kernel: cannot store complex64"):
    files.save_model(path, {"kernel": np.ones((2, 2), np.complex64)})
