"""What leaves the framework computes what it did here, in bytes as told."""

import functools
import os
import sys

from flax import linen
import jax
from jax import export
import numpy as np
import pytest

import minarch_jax as ma
from minarch_jax import leaves, models, registries
from minarch_jax.quantization.networks import files
from tests import test_documentation

SHAPE, CLASSES = (8, 8, 1), 3
X = np.random.default_rng(0).normal(size=(7, *SHAPE)).astype(np.float32)
ARCHITECTURES = ("dnn:9-6", "cnn:4-5", "vit:p4-d8-l1-h2")


@functools.cache
def network(text):
  """An architecture, its function and parameters with biases that count."""
  architecture = ma.Architecture.parse(text)
  model = models.make_model(architecture, (SHAPE, CLASSES))
  params = jax.jit(model.init)(jax.random.key(0))
  draws = np.random.default_rng(1)
  params = jax.tree.map(
    lambda p: p + 0.1 * draws.normal(size=p.shape).astype(np.float32), params
  )
  return architecture, model.apply, jax.device_get(params)


def pruned(text):
  architecture, apply, params = network(text)
  masks = ma.prune(params, 0.7, scope="layerwise")
  return architecture, apply, ma.apply_masks(params, masks)


def rounded(text, bits, **how):
  architecture, apply, params = network(text)
  return architecture, apply, ma.quantize(params, bits, **how)


def compacted(text):
  """Pruned by units, made smaller and rounded."""
  architecture, _, params = network(text)
  spec = architecture.spec((SHAPE, CLASSES))
  masks = ma.prune(
    params, 0.5, scope="layerwise", granularity="unit", spec=spec
  )
  small, few = ma.compact(architecture, params, masks)
  assert small != architecture
  apply = models.make_model(small, (SHAPE, CLASSES)).apply
  return small, apply, ma.quantize(few, 4)


NETWORKS = {text: functools.partial(network, text) for text in ARCHITECTURES}
NETWORKS |= {
  f"{text} {name}": functools.partial(make, text, *bits, **how)
  for text in ARCHITECTURES
  for name, make, bits, how in (
    ("pruned", pruned, (), {}),
    ("int8", rounded, (8,), {}),
    ("int4 packed", rounded, (4,), {"packed": True}),
    ("compacted", compacted, (), {}),
  )
}
NETWORKS |= {
  name: functools.partial(
    rounded, ARCHITECTURES[0], name, granularity="group:4"
  )
  for name in registries.FORMATS
}


def outputs(apply, params, x):
  return np.asarray(jax.jit(apply)(ma.dequantize(params), x))


class Small(linen.Module):
  """Somebody else's network: other names, two inputs' axes, a norm."""

  @linen.compact
  def __call__(self, x):
    x = linen.Conv(4, (3, 3), name="first")(x)
    x = linen.LayerNorm()(linen.gelu(linen.avg_pool(x, (2, 2), (2, 2))))
    return linen.Dense(5)(x.reshape(x.shape[0], -1))


@functools.cache
def foreign():
  module = Small()
  params = module.init(jax.random.key(0), X)["params"]
  return module, jax.device_get(params)


def apply_foreign(params, x):
  return Small().apply({"params": params}, x)


# --- a program ---------------------------------------------------------------


def call(path, *x):
  with open(path, "rb") as file:
    program = export.deserialize(bytearray(file.read()))
  return [np.asarray(program.call(each)) for each in x]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_computes_the_same_for_any_number_of_images(tmp_path, name):
  pytest.importorskip("flatbuffers")
  path = str(tmp_path / "net.stablehlo")
  architecture, apply, params = NETWORKS[name]()
  size = ma.export(path, architecture, params, SHAPE)
  assert size == os.path.getsize(path)
  parts = X[:1], X[:4], X
  for x, found in zip(parts, call(path, *parts), strict=True):
    expected = outputs(apply, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_program_holds_codes_packed_and_tells_no_places(tmp_path):
  pytest.importorskip("flatbuffers")
  path = str(tmp_path / "net.stablehlo")
  architecture, _, params = network("dnn:300")
  sizes, contents = {}, []
  for bits in (32, 8, 4, 4):
    sizes[bits] = ma.export(
      path, architecture, ma.quantize(params, bits), SHAPE
    )
    with open(path, "rb") as file:
      contents.append(file.read())
  weights = 300 * (64 + CLASSES)
  assert weights * 4 < sizes[32] < weights * 4 + 10_000
  assert weights < sizes[8] < weights + 10_000
  assert weights / 2 < sizes[4] < weights / 2 + 10_000
  assert contents[-1] == contents[-2]
  assert not any(b"minarch" in content for content in contents)


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("form", ["module", "function"])
def test_other_peoples_networks(tmp_path, form, bits):
  pytest.importorskip("flatbuffers")
  module, params = foreign()
  path, params = str(tmp_path / "net.stablehlo"), ma.quantize(params, bits)
  given = module if form == "module" else apply_foreign
  assert ma.export(path, given, params, SHAPE) == os.path.getsize(path)
  for x, found in zip((X[:2], X), call(path, X[:2], X), strict=True):
    expected = outputs(apply_foreign, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_program_that_counts_its_images_is_refused(tmp_path):
  pytest.importorskip("flatbuffers")
  path = str(tmp_path / "net.stablehlo")

  def counting(params, x):
    return x[:, 0] * params["w"] if len(x) < 5 else x[:, 1] * params["w"]

  with pytest.raises(ValueError, match="counting .* for any number of images"):
    ma.export(path, counting, {"w": np.ones((), np.float32)}, SHAPE)
  assert not os.listdir(tmp_path)


# --- a graph -----------------------------------------------------------------


def session(path):
  runtime = pytest.importorskip("onnxruntime")
  options = runtime.SessionOptions()
  options.intra_op_num_threads = 1
  return runtime.InferenceSession(
    path, options, providers=["CPUExecutionProvider"]
  )


@pytest.mark.parametrize("name", [*NETWORKS, "foreign"])
def test_a_graph_computes_the_same_for_any_number_of_images(tmp_path, name):
  pytest.importorskip("onnx")
  path = str(tmp_path / "net.onnx")
  if name == "foreign":
    (given, params), apply = foreign(), apply_foreign
    params = ma.quantize(params, 4)
  else:
    given, apply, params = NETWORKS[name]()
  assert ma.export(path, given, params, SHAPE) == os.path.getsize(path)
  runs = session(path)
  for x in (X[:1], X):
    (found,) = runs.run(["outputs"], {"images": x})
    expected = outputs(apply, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_graph_holds_codes_in_few_bits(tmp_path):
  pytest.importorskip("onnx")
  path = str(tmp_path / "net.onnx")
  architecture, _, params = network("dnn:300")
  weights = 300 * (64 + CLASSES)
  for bits, each in (32, 4), (8, 1), (4, 0.5), (2, 0.5):
    size = ma.export(path, architecture, ma.quantize(params, bits), SHAPE)
    assert weights * each < size < weights * each + 5_000


def test_a_graph_of_unknown_operators_is_refused(tmp_path):
  pytest.importorskip("onnx")

  def summing(params, x):
    return jax.lax.cumsum(x, 1) * params["w"]

  params = {"w": np.ones((), np.float32)}
  with pytest.raises(ValueError, match="summing .* 'cumsum' .* as .stablehlo"):
    ma.export(str(tmp_path / "net.onnx"), summing, params, SHAPE)
  assert not os.listdir(tmp_path)


# --- numbers -----------------------------------------------------------------


@functools.cache
def reader():
  """The function that README shows."""
  _, code = test_documentation.blocks(
    test_documentation.section("Out of the framework"), "python"
  )
  names = {}
  exec(code, names)
  return names["read"]


@pytest.mark.parametrize("name", [*NETWORKS, "foreign"])
def test_numpy_alone_reads_the_numbers(tmp_path, name):
  """Bit for bit; the bytes are those counted, the header with them."""
  path = str(tmp_path / "net.safetensors")
  if name == "foreign":
    given, params = foreign()
    params = ma.quantize(params, "uint5", "group:3")
  else:
    given, _, params = NETWORKS[name]()
  size = ma.export(path, given, params, SHAPE)
  assert size == os.path.getsize(path)
  payload = files.save_model(str(tmp_path / "same.safetensors"), params)
  with open(path, "rb") as file:
    header = int.from_bytes(file.read(8), "little")
  assert size == 8 + header + payload
  found = reader()(path)
  expected = leaves.named(ma.dequantize(params))
  assert list(sorted(found)) == sorted("/".join(p) for p, _ in expected)
  for p, leaf in expected:
    assert found["/".join(p)].dtype == np.float32
    np.testing.assert_array_equal(found["/".join(p)], leaf)


def test_the_public_library_reads_codes_and_scales(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  path = str(tmp_path / "net.safetensors")
  architecture, _, params = rounded("dnn:9-6", 4, packed=True)
  ma.export(path, architecture, params, SHAPE)
  found = safetensors.load_file(path)
  for p, leaf in leaves.named(params):
    name = "/".join(p)
    if leaves.is_qtensor(leaf):
      np.testing.assert_array_equal(found[f"{name}:codes"], leaf.values)
      np.testing.assert_array_equal(found[f"{name}:scale"], leaf.scale)
    else:
      np.testing.assert_array_equal(found[name], leaf)


# --- refused -----------------------------------------------------------------

BAD = {
  "ending": ("a.safetensor", "dnn:9-6", None, "did you mean 'safetensors'"),
  "no ending": ("model", "dnn:9-6", None, "ending '' is not one of stablehlo"),
  "network": ("a.safetensors", 3, None, "network 3 is none that can be run"),
  "architecture": ("a.safetensors", "dnn:9-7", None, "leaf 'hidden_1/kernel'"),
  "images": ("a.safetensors", "dnn:9-6", (9, 9, 1), "on images .9, 9, 1. has"),
  "image": ("a.safetensors", "dnn:9-6", (64,), "not .height, width, channels."),
  "function": ("a.stablehlo", lambda p, x: p["no"], None, "cannot be run"),
  "one number": ("a.stablehlo", lambda p, x: x.sum(), None, "a row for each"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_exported_is_named(tmp_path, case):
  name, given, shape, message = BAD[case]
  params = network("dnn:9-6")[2]
  with pytest.raises(ValueError, match=message):
    ma.export(str(tmp_path / name), given, params, shape or SHAPE)
  assert not os.listdir(tmp_path)


def test_seeds_and_traces_are_refused(tmp_path):
  path = str(tmp_path / "net.safetensors")
  architecture, _, params = network("dnn:9-6")
  stack = jax.tree.map(lambda p: np.stack([p, p]), params)
  quantized = jax.vmap(lambda p: ma.quantize(p, 8))(stack)
  for tree in (stack, quantized):
    with pytest.raises(ValueError, match="without a seed axis"):
      ma.export(path, architecture, tree, SHAPE)
  with pytest.raises(ValueError, match="outside jit and vmap"):
    jax.jit(lambda p: ma.export(path, architecture, p, SHAPE))(params)


def test_a_missing_library_is_named_with_its_command(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  architecture, _, params = network("dnn:9-6")
  monkeypatch.setitem(sys.modules, "onnx", None)
  for ending in ("stablehlo", "onnx"):
    with pytest.raises(ImportError, match="pip install 'minarch-jax.export.'"):
      ma.export(str(tmp_path / f"net.{ending}"), architecture, params, SHAPE)


def test_a_format_is_added_by_a_line(tmp_path, monkeypatch):
  entries = dict(registries.EXPORTS._entries)
  monkeypatch.setattr(registries.EXPORTS, "_entries", entries)
  registries.EXPORTS["txt"] = lambda network: network.name.encode()
  path = str(tmp_path / "net.txt")
  ma.export(path, "dnn:9-6", network("dnn:9-6")[2], SHAPE)
  with open(path) as file:
    assert file.read() == "dnn:9-6 on images 8x8x1"
