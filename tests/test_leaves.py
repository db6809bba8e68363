"""Every kind of tree is pruned and quantized as NumPy would, and comes back.

A kind is a tree and, for each of its weights, what the axes are: one letter
each, i(nput), o(utput), s(tacked).
"""

import collections
import dataclasses
import functools

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
  options = {"granularity": scope, "scope": "global"}
  if ":" not in scope:
    options = {"scope": scope}
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
  stored = ma.quantize(tree, 4, granularity)
  plain = ma.dequantize(stored)
  assert_alike(plain, tree)
  assert_others_left_alone(plain, tree, axes)
  faked = ma.fake_quantize(tree, 4, granularity)
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
