"""Networks: the spec's tree, padding that changes nothing, references.

A member inside a wider parent must be the network it is alone: same initial
values, outputs and gradients, and exactly nothing in the padding.
"""

import math

from flax import linen as nn
from flax import traverse_util
import jax
from jax.extend import core as jex_core
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import architectures, models, registries
from minarch_jax.architectures import Problem
from minarch_jax.models import vit
from tests.architectures.members import GRIDS, SHAPES
from tests.models.networks import (
  assert_trees_equal,
  build,
  CLASSES,
  drawn,
  images,
  initial,
  MEMBERS,
  ONE_OF_EACH,
  PADDED,
  pair,
  parse,
  perturbed,
  SHAPE,
)

# --- the tree is the spec ----------------------------------------------------


def declared_shapes(a, shape, classes):
  """What the flax module itself asks for, by path."""
  module = a.traits.network(a, Problem(shape, classes))
  x = jax.ShapeDtypeStruct((1, *shape), np.float32)
  tree = jax.eval_shape(
    module.init, jax.random.key(0), x, a.sizes(Problem(shape, classes))
  )
  flat = traverse_util.flatten_dict(tree["params"])
  return {path: leaf.shape for path, leaf in flat.items()}


def initial_shapes(a, shape, classes):
  model = models.make_model(a, Problem(shape, classes))
  flat = traverse_util.flatten_dict(
    jax.eval_shape(model.init, jax.random.key(0))
  )
  return {path: leaf.shape for path, leaf in flat.items()}


def check_tree(a, shape):
  spec = a.spec(Problem(shape, 10))
  expected = {leaf.path: spec.shape(leaf) for leaf in spec.leaves}
  assert declared_shapes(a, shape, 10) == expected, a
  assert initial_shapes(a, shape, 10) == expected, a
  total = sum(math.prod(size) for size in expected.values())
  assert a.num_params(shape, 10) == total, a


@pytest.mark.parametrize("name, family", GRIDS)
def test_modules_declare_the_leaves_of_the_spec(name, family):
  members = architectures.grid(name, family, SHAPE, 10)
  for a in members[:: max(1, len(members) // 5)]:
    check_tree(a, SHAPE)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)], ids=str)
@pytest.mark.parametrize("family", registries.FAMILIES)
def test_modules_declare_the_leaves_on_larger_images(family, shape):
  for a in architectures.grid("tiny", family, shape, 10):
    check_tree(a, shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name, family", GRIDS)
def test_modules_declare_the_leaves_of_every_member(name, family, shape):
  for a in architectures.grid(name, family, shape, 10):
    check_tree(a, shape)


def products(jaxpr):
  """Multiply-accumulates of all matrix products and convolutions."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      inner = math.prod(shape[axis] for axis in contracted)
      total += inner * math.prod(equation.outvars[0].aval.shape)
    elif equation.primitive.name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      total += math.prod(kernel[:3]) * math.prod(equation.outvars[0].aval.shape)
    for part in jex_core.jaxprs_in_params(equation.params):
      total += products(part)
  return total


@pytest.mark.parametrize("text", MEMBERS)
def test_macs_are_the_products_of_a_forward_pass(text, monkeypatch):
  monkeypatch.setattr(vit, "FEW_TOKENS", 0)
  model = build(text, convolution="stock")
  params = jax.eval_shape(model.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((1, *SHAPE), np.float32)
  traced = jax.make_jaxpr(model.apply)(params, x)
  assert parse(text).macs(SHAPE, CLASSES) == products(traced.jaxpr)


# --- initial values ----------------------------------------------------------


@pytest.mark.parametrize("text", PADDED)
def test_initial_values_do_not_depend_on_the_parent(text):
  (alone, spec), (parent, wide), sizes = pair(text)
  found, expected = drawn(parent, 11, sizes), drawn(alone, 11)
  assert_trees_equal(models.unpad(found, spec, wide), expected)
  assert_trees_equal(found, models.pad(expected, spec, wide))


@pytest.mark.parametrize("text", ["dnn:5-3", "vit:p4-d4-l1-h2"])
def test_initial_values_depend_on_the_key_and_on_nothing_else(text):
  init = jax.jit(build(text).init)
  keys = [jax.random.key(seed) for seed in (0, 1)]
  first, other = map(init, keys)
  mapped = jax.vmap(init)(jnp.stack(keys))
  assert_trees_equal(jax.tree.map(lambda leaf: leaf[1], mapped), other)
  for path, leaf in traverse_util.flatten_dict(first).items():
    same = np.array_equal(leaf, traverse_util.flatten_dict(other)[path])
    assert same == (path[-1] in ("bias", "scale")), path


def test_leaves_do_not_share_their_values():
  flat = traverse_util.flatten_dict(initial("vit:p4-d8-l2-h2"))
  drawn = [
    np.asarray(leaf / np.std(leaf)).ravel()[:8]
    for path, leaf in flat.items()
    if path[-1] in ("kernel", "embedding")
  ]
  assert len(np.unique(np.round(drawn, 4), axis=0)) == len(drawn)


# Fan-in and gain by what the layer is, not by the spec.
KERNELS = {
  "dnn:400-300": {"hidden_0": 2 / 64, "hidden_1": 2 / 400, "output": 1 / 300},
  "cnn:64-64": {"conv_0": 2 / 9, "conv_1": 2 / (9 * 64), "output": 1 / 1024},
  "vit:p2-d64-l1-h4-m96": {
    "embed": 1 / 4,
    "query": 1 / 64,
    "key": 1 / 64,
    "value": 1 / 64,
    "attention/out": 1 / 64,
    "mlp/in": 1 / 64,
    "mlp/out": 1 / 96,
    "output": 1 / 64,
  },
}


@pytest.mark.parametrize("text", KERNELS)
def test_initial_variance_is_gain_over_fan_in(text):
  init = jax.vmap(build(text, classes=40).init)
  params = jax.jit(init)(jax.random.split(jax.random.key(0), 4))
  flat = traverse_util.flatten_dict(params, sep="/")
  kernels = [name for name in flat if name.endswith("/kernel")]
  for name in kernels:
    layer = name.removesuffix("/kernel")
    (variance,) = [
      v for part, v in KERNELS[text].items() if f"/{layer}".endswith(f"/{part}")
    ]
    spread = 6 * math.sqrt(2 / flat[name].size)
    assert abs(np.var(flat[name]) / variance - 1) < spread, name
    assert abs(np.mean(flat[name])) < 6 * math.sqrt(variance / flat[name].size)
  for name, leaf in flat.items():
    if name.endswith("bias"):
      assert not leaf.any()
    if name.endswith("scale"):
      assert (leaf == 1).all()
    if name.endswith("embedding"):
      assert abs(np.std(leaf) / 0.02 - 1) < 0.15


# --- padding -----------------------------------------------------------------


def loss_and_gradient(model, sizes):
  def loss(params, x, y):
    logits = model.apply(params, x, sizes)
    chosen = jnp.take_along_axis(nn.log_softmax(logits), y[:, None], 1)
    return -chosen.mean(), logits

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("text", PADDED)
def test_padding_changes_neither_outputs_nor_gradients(text):
  with jax.enable_x64(True):
    (alone, spec), (parent, wide), sizes = pair(text)
    params = perturbed(drawn(alone, 1))
    x, y = images()
    (_, logits), expected = loss_and_gradient(alone, None)(params, x, y)
    (_, padded), found = loss_and_gradient(parent, sizes)(
      models.pad(params, spec, wide), x, y
    )
  assert logits.dtype == np.float64
  np.testing.assert_allclose(padded, logits, rtol=1e-12, atol=1e-12)
  found = jax.device_get(found)
  inside = models.unpad(found, spec, wide)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13),
    inside,
    expected,
  )
  masks = traverse_util.flatten_dict(models.width_masks(wide, sizes))
  own = {leaf.path for leaf in spec.leaves}
  for path, value in traverse_util.flatten_dict(found).items():
    # Biases of the blocks that a ViT lacks have gradients; training masks them.
    if path in own or path[-1] != "bias":
      assert not np.asarray(value)[~masks[path]].any(), path


# --- pure functions ----------------------------------------------------------


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_logits_of_an_image_do_not_depend_on_its_batch(text):
  model = build(text)
  params = perturbed(initial(text))
  apply = jax.jit(model.apply)
  x, _ = images(5)
  together = apply(params, x)
  assert together.shape == (5, CLASSES) and together.dtype == np.float32
  alone = np.concatenate([apply(params, x[i : i + 1]) for i in range(5)])
  np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)
  assert np.abs(np.diff(together, axis=0)).max() > 1e-3


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_products_in_bfloat16_stay_near_and_give_float32(text):
  params = perturbed(initial(text))
  x, _ = images()
  exact = jax.jit(build(text).apply)(params, x)
  narrow = build(text, compute_dtype=jnp.bfloat16)
  rough = jax.jit(narrow.apply)(params, x)
  assert rough.dtype == np.float32
  assert not np.array_equal(rough, exact)
  np.testing.assert_allclose(rough, exact, atol=0.1 * np.abs(exact).max())


@pytest.mark.parametrize("text", PADDED)
def test_the_tap_is_given_the_input_of_every_kernel(text):
  model = build(text)
  params = perturbed(initial(text))
  x, _ = images()

  @jax.jit
  def tapped(params, x):
    seen = {}

    def tap(name, x):
      seen[name] = x
      return x

    return model.apply(params, x, tap=tap), seen

  logits, seen = tapped(params, x)
  expected = jax.jit(model.apply)(params, x)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  spec = parse(text).spec(Problem(SHAPE, CLASSES))
  kernels = {"/".join(leaf.path) for leaf in spec.leaves if leaf.is_kernel}
  assert seen.keys() == kernels
  for leaf in spec.leaves:
    name = "/".join(leaf.path)
    if name in seen and not name.startswith("conv"):
      inputs = spec.shape(leaf)[: -leaf.outputs]
      assert seen[name].shape[-len(inputs) :] == inputs
  silent = jax.jit(
    lambda p, x: model.apply(p, x, tap=lambda name, x: jnp.zeros_like(x))
  )
  np.testing.assert_array_equal(
    silent(params, x), np.tile(params["output"]["bias"], (4, 1))
  )


def test_networks_that_do_not_fit_are_refused_before_they_are_built():
  with pytest.raises(ValueError, match="patch 3 does not divide"):
    build("vit:p3-d4-l1-h1")


# --- references in flax's own layers -----------------------------------------


def plain_dnn(params, x):
  x = x.reshape(len(x), -1)
  for name in sorted(params)[:-1]:
    x = jnp.maximum(x @ params[name]["kernel"] + params[name]["bias"][None], 0)
  return x @ params["output"]["kernel"] + params["output"]["bias"][None]


def flax_cnn(params, x):
  names = sorted(params)[:-1]
  for i, name in enumerate(names):
    if i:
      x = nn.max_pool(x, (2, 2), (2, 2))
    padding = "VALID" if len(names) == 1 else "SAME"
    features = params[name]["bias"].shape[0]
    conv = nn.Conv(features, (3, 3), padding=padding)
    x = nn.relu(conv.apply({"params": params[name]}, x))
  kernel, bias = params["output"]["kernel"], params["output"]["bias"]
  return x.reshape(len(x), -1) @ kernel.reshape(-1, CLASSES) + bias[None]


def flax_vit(params, x, *, patch, cls):
  def of(layer, tree, *inputs):
    return layer.apply({"params": tree}, *inputs)

  def dense(tree, x):
    return of(nn.Dense(tree["bias"].shape[0]), tree, x)

  norm = nn.LayerNorm()
  embed = params["embed"]["kernel"]
  conv = nn.Conv(embed.shape[1], (patch, patch), (patch, patch), "VALID")
  kernel = embed.reshape(patch, patch, x.shape[-1], -1)
  x = of(conv, {"kernel": kernel, "bias": params["embed"]["bias"]}, x)
  x = x.reshape(len(x), -1, embed.shape[1])
  if cls:
    token = params["class_token"]["embedding"]
    x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
  x = x + params["position"]["embedding"][None]
  for i in range(sum("block" in name for name in params)):
    block = params[f"block_{i}"]
    heads, size, _ = block["attention"]["out"]["kernel"].shape
    attention = nn.MultiHeadDotProductAttention(
      heads, qkv_features=heads * size
    )
    y = of(norm, block["attention_norm"], x)
    x = x + of(attention, block["attention"], y)
    y = of(norm, block["mlp_norm"], x)
    x = x + dense(block["mlp"]["out"], nn.gelu(dense(block["mlp"]["in"], y)))
  x = of(norm, params["norm"], x)
  return dense(params["output"], x[:, 0] if cls else x.mean(1))


REFERENCES = {
  "dnn:5": plain_dnn,
  "dnn:5-3-4": plain_dnn,
  "cnn:3": flax_cnn,
  "cnn:2-3": flax_cnn,
  "cnn:9-8-4": flax_cnn,
  "vit:p4-d4-l1-h2": lambda p, x: flax_vit(p, x, patch=4, cls=False),
  "vit:p2-d6-l2-h2-m5-cls": lambda p, x: flax_vit(p, x, patch=2, cls=True),
}


@pytest.mark.parametrize("text", REFERENCES)
def test_logits_equal_the_reference(text):
  shape = (8, 8, 3)
  params = perturbed(initial(text, shape))
  x, _ = images(shape=shape)
  found = jax.jit(build(text, shape).apply)(params, x)
  expected = jax.jit(REFERENCES[text])(params, x)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


def test_every_family_has_a_reference():
  assert {text[:3] for text in REFERENCES} == registries.FAMILIES.keys()
