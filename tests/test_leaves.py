"""Every kind of tree is pruned and quantized as NumPy would, and comes back.

A kind is a tree and, for each of its weights, what the axes are: one letter
each, i(nput), o(utput), s(tacked).
"""

import collections
import dataclasses
import functools
from typing import NamedTuple

from flax import linen as nn
from flax import nnx
from flax.core import freeze
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax import leaves


def draw(*shape, dtype=np.float32, seed=0):
  """No two magnitudes are alike, in bfloat16 neither."""
  size = int(np.prod(shape))
  rng = np.random.default_rng([seed, *shape])
  values = 2.0 ** rng.uniform(-3, 0, size) * rng.choice([-1, 1], size)
  return jnp.asarray(values.reshape(shape), dtype)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["kernel", "bias"],
  meta_fields=["size"],
)
@dataclasses.dataclass
class Dense:
  kernel: object
  bias: object
  size: int = 3


Pair = collections.namedtuple("Pair", "kernel bias")


def dense(*shape, seed=0, dtype=np.float32):
  return {
    "kernel": draw(*shape, seed=seed, dtype=dtype),
    "bias": draw(shape[-1], seed=seed, dtype=dtype),
  }


def module():
  """An NNX module with all kinds of variables."""
  rngs = nnx.Rngs(0)
  return nnx.Sequential(
    nnx.Linear(4, 8, rngs=rngs),
    nnx.BatchNorm(8, rngs=rngs),
    nnx.Dropout(0.1, rngs=rngs),
    nnx.Linear(8, 4, rngs=rngs),
  )


def extras():
  """Leaves that hold no numbers, or none to train."""
  return {
    "layer": dense(8, 4),
    "activation": jnp.tanh,
    "key": jax.random.key(0),
    "raw_key": jax.random.key_data(jax.random.key(0)),
    "steps": 3,
    "rate": 0.5,
    "name": "net",
    "nothing": None,
  }


# name -> (tree, {weight: its axes}).
KINDS = {
  "dictionary": (
    lambda: {"a": dense(8, 4), "b": dense(4, 4, seed=1)},
    {"a/kernel": "io", "b/kernel": "io"},
  ),
  "frozen": (lambda: freeze({"a": dense(8, 4)}), {"a/kernel": "io"}),
  "list": (
    lambda: [dense(8, 4), (dense(4, 8), dense(8, 8))],
    {"0/kernel": "io", "1/0/kernel": "io", "1/1/kernel": "io"},
  ),
  "named tuple": (
    lambda: {"a": Pair(draw(8, 4), draw(4)), "b": Pair(draw(4, 4), None)},
    {"a/kernel": "io", "b/kernel": "io"},
  ),
  "dataclass": (
    lambda: [Dense(draw(8, 4), draw(4)), Dense(draw(4, 4), draw(4))],
    {"0/kernel": "io", "1/kernel": "io"},
  ),
  "bfloat16": (
    lambda: {"a": dense(8, 4, dtype=jnp.bfloat16), "b": dense(4, 4)},
    {"a/kernel": "io", "b/kernel": "io"},
  ),
  "float16": (lambda: dense(8, 4, dtype=jnp.float16), {"kernel": "io"}),
  "other leaves": (extras, {"layer/kernel": "io"}),
  "nnx state": (
    lambda: nnx.state(module()),
    {"layers/0/kernel": "io", "layers/3/kernel": "io"},
  ),
  "nnx parameters": (
    lambda: nnx.state(module(), nnx.Param),
    {"layers/0/kernel": "io", "layers/3/kernel": "io"},
  ),
}

# Trees of Equinox and Haiku, as these libraries would make them.
WEIGHT = {"names": ["weight"], "choose": lambda path: path[-1] == "weight"}
W = {"names": ["w"], "choose": lambda path: path[-1] == "w"}


class Linear(NamedTuple):
  weight: object
  bias: object


def equinox():
  return {
    "layers": [
      Linear(draw(8, 4), draw(8)),
      Linear(draw(5, 4, 3, 3), draw(5, 1, 1)),
    ],
    "stacked": Linear(draw(3, 8, 4), draw(3, 8)),
    "embedding": {"weight": draw(12, 4)},
    "activation": jnp.tanh,
  }


def linen(model, *inputs):
  made = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  shapes, treedef = jax.tree.flatten(made)
  return treedef.unflatten(
    [draw(*leaf.shape, seed=i) for i, leaf in enumerate(shapes)]
  )


class Images(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=True)(x)
    x = nn.Conv(8, (3, 2))(x)
    x = nn.Conv(4, (3,), use_bias=False)(x.mean(1))
    return nn.Dense(4)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
  bias: bool = True

  @nn.compact
  def __call__(self, x, _):
    attend = nn.MultiHeadDotProductAttention(2, use_bias=self.bias)
    x = x + attend(nn.LayerNorm()(x))
    return x + nn.Dense(8, use_bias=self.bias)(x), None


class Text(nn.Module):
  scanned: bool
  bias: bool = True

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(12, 8)(tokens)
    if self.scanned:
      stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
      )
      return stack(self.bias)(x, None)[0]
    return Block(self.bias)(x, None)[0]


TOKENS = jax.ShapeDtypeStruct((2, 5), np.int32)
ATTENTION = "MultiHeadDotProductAttention_0"


def text_axes(block, stacked=""):
  return {
    "Embed_0/embedding": "io",
    f"{block}/Dense_0/kernel": stacked + "io",
    f"{block}/{ATTENTION}/query/kernel": stacked + "ioo",
    f"{block}/{ATTENTION}/key/kernel": stacked + "ioo",
    f"{block}/{ATTENTION}/value/kernel": stacked + "ioo",
    f"{block}/{ATTENTION}/out/kernel": stacked + "iio",
  }


KINDS |= {
  "convolutions": (
    lambda: linen(Images(), jax.ShapeDtypeStruct((2, 8, 8, 4), np.float32)),
    {
      "Conv_0/kernel": "iiio",
      "Conv_1/kernel": "iiio",
      "Conv_2/kernel": "iio",
      "Dense_0/kernel": "io",
    },
  ),
  "attention": (lambda: linen(Text(False), TOKENS), text_axes("Block_0")),
  "scanned": (
    lambda: linen(Text(True), TOKENS),
    text_axes("ScanBlock_0", "s"),
  ),
  "scanned without biases": (
    lambda: linen(Text(True, False), TOKENS),
    text_axes("ScanBlock_0", "s"),
  ),
  "recurrent": (
    lambda: linen(
      nn.RNN(nn.OptimizedLSTMCell(4)),
      jax.ShapeDtypeStruct((2, 5, 8), np.float32),
    ),
    {f"cell/{a}{b}/kernel": "io" for a in "ih" for b in "ifgo"},
  ),
  "projections": (
    lambda: {
      "q_proj": {"kernel": draw(8, 2, 4)},
      "to_q": {"kernel": draw(4, 2, 8), "bias": draw(2, 8)},
    },
    {"q_proj/kernel": "ioo", "to_q/kernel": "ioo"},
  ),
  "nnx attention": (
    lambda: nnx.state(
      nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param
    ),
    {
      **dict.fromkeys(("query/kernel", "key/kernel", "value/kernel"), "ioo"),
      "out/kernel": "iio",
    },
  ),
  "nnx layers mapped": (
    lambda: nnx.state(
      nnx.vmap(lambda key: nnx.Linear(8, 4, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 3)
      )
    ),
    {"kernel": "sio"},
  ),
  "equinox": (
    equinox,
    {
      "layers/0/weight": "oi",
      "layers/1/weight": "oiii",
      "stacked/weight": "soi",
      "embedding/weight": "io",
    },
  ),
  "haiku": (
    lambda: {
      "mlp/~/linear_0": {"w": draw(8, 4), "b": draw(4)},
      "mlp/~/stack": {"w": draw(2, 4, 8), "b": draw(2, 8)},
      "conv2_d": {"w": draw(3, 3, 4, 5), "b": draw(5)},
      "layer_norm": {"scale": draw(4), "offset": draw(4)},
    },
    {
      "mlp/~/linear_0/w": "io",
      "mlp/~/stack/w": "sio",
      "conv2_d/w": "iiio",
    },
  ),
}
OTHER_NAMES = {"equinox": WEIGHT, "haiku": W}

every_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def kind_of(name):
  make, axes = KINDS[name]
  return make(), axes


# --- the reference ------------------------------------------------------------


def matrices(weight, axes):
  """The weight as [stacked, outputs, inputs] in float32."""
  order = [i for letter in "soi" for i, a in enumerate(axes) if a == letter]
  sizes = [
    int(np.prod([weight.shape[i] for i, a in enumerate(axes) if a == letter]))
    for letter in "soi"
  ]
  moved = np.asarray(weight, np.float32).transpose(order)
  return moved.reshape(sizes)


def back(matrix, weight, axes):
  """Undoes `matrices`."""
  order = [i for letter in "soi" for i, a in enumerate(axes) if a == letter]
  moved = np.reshape(matrix, [weight.shape[i] for i in order])
  return moved.transpose(np.argsort(order))


def largest(scores, sparsity, least=0):
  """Marks the largest of a pool."""
  count = max(round((1 - sparsity) * scores.size), least)
  marks = np.zeros(scores.size, bool)
  marks[np.argsort(scores.ravel())[scores.size - count :]] = True
  return marks.reshape(scores.shape)


def pruned(weights, axes, scope, sparsity):
  """Masks by name."""
  scores = {
    name: np.abs(matrices(w, axes[name])) for name, w in weights.items()
  }
  if scope == "global":
    marks = largest(
      np.concatenate([s.ravel() for s in scores.values()]), sparsity
    )
    ends = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(marks, ends), strict=True)
    marks = {name: part.reshape(s.shape) for (name, s), part in parts}
  elif scope == "layerwise":
    marks = {
      name: np.stack([largest(one, sparsity, 1) for one in s])
      for name, s in scores.items()
    }
  else:  # 2 of 4 along the inputs of each output
    marks = {}
    for name, s in scores.items():
      rows = s.reshape(-1, 4)
      rows = np.stack([largest(row, sparsity, 1) for row in rows])
      marks[name] = rows.reshape(s.shape)
  return {name: back(marks[name], w, axes[name]) for name, w in weights.items()}


def rounded(weight, axes, granularity):
  """Codes of four bits, and the numbers they stand for."""
  matrix = matrices(weight, axes)
  shape = matrix.shape
  if granularity == "tensor":
    matrix = matrix.reshape(shape[0], 1, -1)
  highest = np.abs(matrix).max(-1, keepdims=True)
  scale = highest / np.float32(7)
  codes = np.round(matrix / scale)
  numbers = (codes * scale).reshape(shape)
  return (
    back(codes.reshape(shape), weight, axes),
    back(numbers, weight, axes).astype(weight.dtype),
  )


# --- the laws -----------------------------------------------------------------


def assert_alike(a, b):
  """The same structure, and each leaf of the same type."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert type(x) is type(y)
    if leaves.is_array(x):
      assert x.dtype == y.dtype and x.shape == y.shape


def assert_others_left_alone(changed, tree, weights):
  for (path, a), (_, b) in zip(
    leaves.named(changed), leaves.named(tree), strict=True
  ):
    if "/".join(path) not in weights:
      if leaves.is_array(b):
        np.testing.assert_array_equal(a, b)
      else:
        assert a is b or np.all(a == b)


@every_kind
def test_names(kind):
  tree, axes = kind_of(kind)
  names = ["/".join(path) for path, _ in leaves.named(tree)]
  assert len(set(names)) == len(jax.tree.leaves(tree)) == len(names)
  assert set(axes) <= set(names)


@every_kind
@pytest.mark.parametrize("scope", ["global", "layerwise", "nm:4"])
def test_pruned_as_numpy_would(kind, scope):
  tree, axes = kind_of(kind)
  named = {"/".join(path): leaf for path, leaf in leaves.named(tree)}
  weights = {name: leaf for name, leaf in named.items() if name in axes}
  options = {"granularity": scope} if ":" in scope else {"scope": scope}
  if kind in OTHER_NAMES:
    options["names"] = OTHER_NAMES[kind]["names"]
  masks = ma.prune(tree, 0.6, **options)
  assert jax.tree.structure(masks) == jax.tree.structure(tree)
  expected = pruned(weights, axes, scope, 0.6)
  for path, mask in leaves.named(masks):
    wanted = expected.get("/".join(path), True)
    np.testing.assert_array_equal(mask, wanted, err_msg="/".join(path))
  sparse = ma.apply_masks(tree, masks)
  assert_alike(sparse, tree)
  assert_others_left_alone(sparse, tree, axes)
  for path, leaf in leaves.named(sparse):
    if (name := "/".join(path)) in axes:
      np.testing.assert_array_equal(leaf, weights[name] * expected[name])


@every_kind
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_quantized_as_numpy_would(kind, granularity):
  tree, axes = kind_of(kind)
  chosen = {}
  if kind in OTHER_NAMES:
    chosen["choose"] = OTHER_NAMES[kind]["choose"]
  stored = ma.quantize(tree, 4, granularity, **chosen)
  plain = ma.dequantize(stored)
  assert_alike(plain, tree)
  assert_others_left_alone(plain, tree, axes)
  faked = ma.fake_quantize(tree, 4, granularity, **chosen)
  for whole, codes, number, fake in zip(
    *map(leaves.named, (tree, stored, plain, faked)), strict=True
  ):
    name = "/".join(whole[0])
    if name not in axes:
      assert not leaves.is_qtensor(codes[1])
      continue
    expected = rounded(whole[1], axes[name], granularity)
    np.testing.assert_array_equal(codes[1].values, expected[0], name)
    np.testing.assert_array_equal(number[1], expected[1], name)
    np.testing.assert_array_equal(fake[1], expected[1], name)


def described(rules=None, **shapes):
  found = leaves.axes_of(
    [(tuple(name.split("/")), shape) for name, shape in shapes.items()], rules
  )
  return {"/".join(path): axes for path, axes in found.items()}


@pytest.mark.parametrize(
  "name, shape",
  [
    ("to_q/kernel", (8, 2, 4)),  # a query, or an output, or stacked layers
    ("mlp/kernel", (2, 8, 4, 4)),
    ("layer/weight", (3, 8, 4)),
    ("layer/table", (8, 4)),
  ],
)
def test_what_is_not_known_is_said_not_guessed(name, shape):
  layer, last = name.split("/")
  tree = {layer: {last: draw(*shape)}}
  names = {"names": [last]}
  message = f"leaf '{name}': say what its axes are, for example axes="
  for call in (
    lambda: ma.quantize(tree, 4, choose=lambda path: True),
    lambda: ma.storage_bytes(tree, 4, choose=lambda path: True),
    lambda: ma.prune(tree, 0.5, granularity="nm:4", **names),
    lambda: ma.prune(tree, 0.5, scope="layerwise", **names),
    lambda: ma.prune(tree, 0.5, scope="erk", **names),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  ma.prune(tree, 0.5, **names)  # to whom it does not matter
  rule = {f"*/{last}": "i" * (len(shape) - 1) + "o"}
  stored = ma.quantize(tree, 4, choose=lambda path: True, axes=rule)
  expected = (*(1,) * (len(shape) - 1), shape[-1])
  assert stored[layer][last].scale.shape == expected
  ma.prune(tree, 0.5, scope="layerwise", axes=rule, **names)


def test_rules_come_first():
  shapes = {"a/kernel": (3, 8, 4), "a/bias": (4,), "b/kernel": (8, 4)}
  assert described(**shapes)["a/kernel"] == leaves.Axes((0, 1), (2,))
  rules = {"a/*nel": "iso", "*/kernel": "oi..."}
  found = described(rules, **shapes)
  assert found["a/kernel"] == leaves.Axes((0,), (2,), (1,))
  assert found["b/kernel"] == leaves.Axes((1,), (0,))
  for wrong, message in (
    ({"c/kernel": "io"}, "matches no leaf; did you mean './kernel'"),
    ({"a/kernel": "io"}, r"a/kernel: axes 'io' do not fit the shape \(3, 8, 4"),
    ({"a/kernel": "iox"}, "i, o or s"),
    ({"b/kernel": "iio..."}, "do not fit"),
  ):
    with pytest.raises(ValueError, match=message):
      described(wrong, **shapes)


def test_n_of_m_of_heads_that_fit_together():
  """Two heads of six are three groups of four, as the product sums them."""
  out = draw(2, 6, 4)
  mask = ma.prune({"out": {"kernel": out}}, 0.5, granularity="nm:4")
  rows = np.asarray(mask["out"]["kernel"]).reshape(3, 4, 4)
  assert np.all(rows.sum(1) == 2)
  with pytest.raises(ValueError, match="axis 1 of leaf 'out/kernel' has 5"):
    ma.prune({"out": {"kernel": draw(2, 5, 4)}}, 0.5, granularity="nm:4")


def test_stacked_layers_have_names_and_scales_of_their_own():
  tree = {"a": {"kernel": draw(3, 8, 4), "bias": draw(3, 4)}}
  tree["a"]["kernel"] *= jnp.array([1.0, 10.0, 100.0])[:, None, None]
  masks = ma.prune(tree, 0.5, scope={"a": 0.75, "a/kernel/2": 0.25})
  counts = np.asarray(masks["a"]["kernel"]).sum((1, 2))
  np.testing.assert_array_equal(counts, [8, 8, 24])
  ranking = ma.rank(jax.tree.map(jnp.abs, tree), scope="erk")
  names = [layer.name for layer in ranking.plan.layers]
  assert names == ["a/kernel/0", "a/kernel/1", "a/kernel/2"]
  alone = jax.vmap(lambda p: ma.dequantize(ma.quantize(p, 4, "group:4")))(tree)
  both = ma.dequantize(ma.quantize(tree, 4, "group:4"))
  np.testing.assert_array_equal(both["a"]["kernel"], alone["a"]["kernel"])
  error = np.abs(both["a"]["kernel"] / tree["a"]["kernel"] - 1)
  assert np.median(error) < 0.1


def test_gptq_takes_kernels_of_one_layer():
  tree = {"a": {"kernel": draw(3, 8, 4), "bias": draw(3, 4)}}

  def apply(params, x, tap):
    return tap("a/kernel", x)

  with pytest.raises(ValueError, match="of one layer, not 'a/kernel'"):
    ma.gptq(apply, tree, draw(2, 8), 4)


def test_an_nnx_optimizer_keeps_masked_weights_zero():
  model = module()
  masks = ma.prune(nnx.state(model, nnx.Param), 0.5)
  tx = ma.masked(optax.adam(0.1), masks)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  x = draw(3, 4)

  @nnx.jit
  def step(model, optimizer):
    grads = nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)
    optimizer.update(model, grads)

  for _ in range(2):
    step(model, optimizer)
  named = dict(leaves.named(nnx.state(model, nnx.Param)))
  for path, mask in leaves.named(masks):
    mask = np.broadcast_to(mask, named[path].shape)
    assert not np.any(np.asarray(named[path])[~mask])
    if path[-1] == "kernel":
      assert np.all(np.asarray(named[path])[mask])
